"""`python -m bplightning`: the command line.

Python looks for modules in the current folder first when it is started so. It no longer does from here on, since a
folder that somebody works in is not where libraries come from; a class path that is typed is still found there.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.path[0] == str(Path.cwd()) != str(Path(__file__).parents[1]):
        del sys.path[0]
    from bplightning.cli import main

    main()
