"""Output of every command with --json if it fails."""

from __future__ import annotations

from typing import Annotated, TypedDict

from taskmerge.declarations import Doc


class ErrorProblem(TypedDict):
    """One problem of an error."""

    what: Annotated[str, Doc("What is wrong, with the user's own text.")]
    place: Annotated[str | None, Doc("file:line, a tensor or a path.")]
    next_move: Annotated[str | None, Doc("What to do about it.")]


class ErrorBody(TypedDict):
    """An error, with all of its problems."""

    kind: Annotated[str, Doc("Class of the error: UsageError, RecipeError, CheckpointError, OutputError, MergeError, "
                             "Fault (an unexpected error), Interrupted.")]  # fmt: skip
    text: Annotated[str, Doc("The text that is printed on stderr.")]
    problems: Annotated[list[ErrorProblem], Doc("All problems, not shortened.")]
    exit_code: Annotated[int, Doc("The exit code of the command.")]


class Failed(TypedDict):
    """Printed instead of a result, by every command."""

    error: Annotated[ErrorBody, Doc("Why there is no result.")]
