"""`python -m bplightning`: the command line."""

from bplightning.cli import main

if __name__ == "__main__":
    main()
