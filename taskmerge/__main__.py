"""`python -m taskmerge`: the command line where the script is not on the path."""

from taskmerge.cli import main

if __name__ == "__main__":
    main()
