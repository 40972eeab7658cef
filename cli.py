"""`python cli.py ...` is the same program as the installed `bplightning` command."""

from bplightning.cli import main

if __name__ == "__main__":
    main()
