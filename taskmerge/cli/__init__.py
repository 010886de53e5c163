"""The command line. `main` is the entry point; importing this package imports no command."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line. Every exception ends in `funnel`, as a message and an exit code, never as a traceback."""
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # its threads sleep while there is nothing for them, not spin
    gc.set_threshold(100_000, 20, 100)  # imports make many objects that live to the end: do not look through them
    from taskmerge.cli.funnel import funnel

    code = funnel(_run)
    gc.freeze()  # as it ends, the interpreter would look through every object that there is
    sys.exit(code)


def _run() -> None:
    from taskmerge.cli.app import app
    from taskmerge.cli.watching import show_work

    with show_work():
        sys.exit(app(standalone_mode=False) or 0)  # what typer would print itself ends in the funnel too
