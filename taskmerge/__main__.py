"""`python -m taskmerge`: the command line where the script is not on the path."""

import os
import sys

if __name__ == "__main__":
    # Python looks for libraries in the current folder first, where a stranger's torch.py may lie
    if sys.path[0] in ("", os.getcwd()) and not os.path.isdir("taskmerge"):  # noqa: PTH109, PTH112 (pathlib lies there, too)
        del sys.path[0]
    from taskmerge.cli import main

    main()
