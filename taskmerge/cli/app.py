"""All commands, one module per group; each command imports what it needs when it runs."""

from __future__ import annotations

import typer

from taskmerge import __version__
from taskmerge.cli import demo, fusing, looking, machine, measuring, reference, searching, soups, training, vectors
from taskmerge.cli.output import say

app = typer.Typer(
    name="taskmerge",
    help="Merge models by task-vector arithmetic, find what the fusion broke, and repair it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def taskmerge(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Merge models by task-vector arithmetic, find what the fusion broke, and repair it."""


for group in (demo, fusing, searching, looking, vectors, soups, measuring, training, reference, machine):
    for command in group.COMMANDS:
        app.command()(command)
