"""The one place where exceptions end: the message that the user sees, and the exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

from taskmerge import __version__
from taskmerge.cli.output import begin_printing, report_error, report_error_as_json
from taskmerge.cli.streams import results, results_apart, safe_streams
from taskmerge.cli.verbosity import begin, verbosity
from taskmerge.errors import OutputError, TaskmergeError, UsageError, clipped, first_line
from taskmerge.words.extras import explained
from taskmerge.words.system_errors import MOVES, as_output_error

INTERRUPTED = 130
FAULT = 70
_PACKAGE = Path(__file__).parents[1]
_UNSHOWN = "cannot be written to: the printed output is lost; all files are saved"
_MEMORY = "close other programs, lower --memory, use smaller batches, or use a machine with more memory"


def funnel(run: Callable[[], object]) -> int:
    """Run a command and turn every exception into a short message on stderr.

    Args:
        run: the command; its output goes to sys.stdout, which is flushed here.

    Returns:
        The exit code: 0; that of a `TaskmergeError`; 1 for errors of the system; `INTERRUPTED`; `FAULT` for an
        unexpected error, whose traceback is saved in a file that the message names.
    """
    sys.unraisablehook = lambda _: None  # a failure during the deletion of an object needs no next move
    begin()
    begin_printing()
    with safe_streams(), results_apart(verbosity.json):
        try:
            code = _code(run)
            results().flush()
            return code
        except BaseException as error:
            return _ended(error)


def told(error: BaseException) -> TaskmergeError:
    """Return what an exception means for the user: its own message if it was expected, otherwise a bug in taskmerge."""
    if isinstance(error, TaskmergeError):
        return error
    if (misread := _of_the_command_line(error)) is not None:
        return misread
    if isinstance(error, ImportError) and (missing := explained(error)):
        return missing
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return TaskmergeError(f"not enough memory: {clipped(first_line(error), 300)}", next_move=_MEMORY)
    return as_output_error(error) or _fault(error)


def _of_the_command_line(error: BaseException) -> UsageError | None:
    """Return typer's error about unknown arguments as an error of ours: typer would print the arguments unescaped."""
    if "typer" not in sys.modules:
        return None
    import typer

    if not isinstance(error, typer.BadParameter.__mro__[2]):  # click's own base, which typer has under another name
        return None
    said: Any = error
    command = getattr(getattr(said, "ctx", None), "command_path", "taskmerge")
    return UsageError(said.format_message(), command, f"`{command} --help` lists its arguments")


def _code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer has turned Ctrl-C into this
            return _interrupted()
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _ended(error: BaseException) -> int:
    try:
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            return _interrupted()
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
            return UsageError.exit_code
        if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
            return 1
        unshown = _unshown(error)
        meant = OutputError(_UNSHOWN, "standard output", MOVES.get(error.errno or 0)) if unshown else told(error)  # type: ignore[attr-defined]
        if verbosity.verbose:
            traceback.print_exception(error)
        report_error(meant)
        code = FAULT if isinstance(meant, Fault) else meant.exit_code
        if verbosity.json and not unshown:
            report_error_as_json(meant, code)
            results().flush()
        return code
    except Exception:  # stderr itself cannot be written to: the exit code says it
        return 1


def _unshown(error: BaseException) -> TypeGuard[OSError]:
    """Whether writing our own output failed: such an error, raised where something is printed, has no file name."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and (
        Path(frames[-1].filename).parent == Path(__file__).parent or "click" in Path(frames[-1].filename).parent.name
    )


def _interrupted() -> int:
    said = "interrupted; run the same command again to continue"
    print(said, file=sys.stderr)
    if verbosity.json:
        report_error_as_json(Interrupted(said), INTERRUPTED)
    return INTERRUPTED


class Interrupted(TaskmergeError):
    """The user stopped it."""


class Fault(TaskmergeError):
    """An unexpected error: a bug in taskmerge."""


def _fault(error: BaseException) -> Fault:
    what = f"a bug in taskmerge {__version__}: {type(error).__name__}: {clipped(first_line(error), 500)}"
    kept = _keep_trace(error)
    where = f"the full traceback is in {kept}" if kept else "the traceback could not be saved"
    return Fault(what, _last_place(error), f"please report it; {where}. Finished files are kept")


def _last_place(error: BaseException) -> str | None:
    """Return the last line of this package that was running."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    return f"{Path(own[-1].filename).relative_to(_PACKAGE.parent)}:{own[-1].lineno}" if own else None


def _keep_trace(error: BaseException) -> str | None:
    text = "".join(traceback.format_exception(error))
    words = f"taskmerge {__version__}, Python {sys.version}\n{sys.argv}\n\n{text}"
    try:
        number, path = tempfile.mkstemp(prefix="taskmerge-fault-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(words)
        return path
    except OSError:
        return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch reports it: on a GPU with its own exception class, on the CPU in the message."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
