"""All commands, one module per group; each command imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from taskmerge import __version__
from taskmerge.cli import (
    demo,
    fusing,
    looking,
    machine,
    measuring,
    pushing,
    reference,
    searching,
    soups,
    starting,
    training,
    vectors,
    verifying,
)
from taskmerge.cli.output import say
from taskmerge.cli.verbosity import be_quiet, be_verbose

app = typer.Typer(
    name="taskmerge",
    help="Merge models by task-vector arithmetic, find what the fusion broke, and repair it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


class Command(TyperCommand):
    """A command with the options that all commands have."""

    def __init__(self, *names: Any, params: list[Any] | None = None, **settings: Any) -> None:
        common = [
            _flag("-q", "--quiet", be_quiet, "Print results, warnings and errors only."),
            _flag("-v", "--verbose", be_verbose, "Also print library logs, and the traceback of a failure."),
        ]
        super().__init__(*names, params=[*(params or []), *common], **settings)

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence of the help without cutting it."""
        first, ends, _ = " ".join((self.help or "").partition("\n\n")[0].split()).partition(". ")
        return first + ends.strip()


def _flag(short: str, long: str, wanted: Callable[[], None], text: str) -> TyperOption:
    def found(context: Any, option: Any, value: bool) -> None:
        if value and not context.resilient_parsing:
            wanted()

    settings: dict[str, Any] = {"is_flag": True, "default": False, "expose_value": False, "is_eager": True}
    return TyperOption(param_decls=[short, long], callback=found, help=text, show_default=False, **settings)


def _version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def taskmerge(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Merge models by task-vector arithmetic, find what the fusion broke, and repair it."""


for group in (
    demo,
    starting,
    fusing,
    verifying,
    searching,
    looking,
    vectors,
    soups,
    measuring,
    training,
    reference,
    pushing,
    machine,
):
    for command in group.COMMANDS:
        app.command(cls=Command)(command)
