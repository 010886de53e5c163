"""The command line. `main` is the entry point; importing this package imports no command."""

from __future__ import annotations

import gc
import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Runs the command line: errors meant for the user become messages and exit codes, never tracebacks."""
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # its threads sleep while there is nothing for them, not spin
    gc.set_threshold(100_000, 20, 100)  # imports make many objects that live to the end: do not look through them
    from taskmerge.cli.app import app
    from taskmerge.cli.output import report_error
    from taskmerge.errors import TaskmergeError

    try:
        app()
    except TaskmergeError as error:
        report_error(error)
        sys.exit(error.exit_code)
    except ImportError as error:
        from taskmerge.words.extras import explained

        told = explained(error)
        if told is None:
            raise
        report_error(told)
        sys.exit(told.exit_code)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer has turned Ctrl-C into this
            print("interrupted; run the same command again to go on", file=sys.stderr)
        raise
