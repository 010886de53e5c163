"""`python -m taskmerge`: the command line where the script is not on the path."""

import os
import sys

if __name__ == "__main__":
    # Python looks for libraries in the current folder first, where another program's torch.py may be
    if sys.path[0] in ("", os.getcwd()) and not os.path.isdir("taskmerge"):  # noqa: PTH109, PTH112 (pathlib is there)
        del sys.path[0]
    from taskmerge.cli import main

    main()
