"""The commands' help as one page: `python -m taskmerge.cli.docs > docs/commands.md`."""

from __future__ import annotations

import sys

from typer.main import get_command

from taskmerge.cli.app import app
from taskmerge.cli.exit_codes import EXIT_CODES

_WIDTH = 100
_HEAD = """# Commands

Made from the commands' own help by `python -m taskmerge.cli.docs`; edit the help, not this page.

Data goes to stdout, progress and messages to stderr; tables are drawn on a terminal and tab-separated otherwise;
`--json` prints [one documented JSON object](json.md), also for errors. `NO_COLOR`, `HF_HOME`, `HF_HUB_OFFLINE` and
`HF_TOKEN` are honoured, and `TASKMERGE_THREADS` limits the cores used. `--html FILE` writes [a page](pages.md).

## Exit codes

| exit code | means |
|---|---|
"""


def page() -> str:
    """Return the text of docs/commands.md."""
    group = get_command(app)
    codes = "\n".join(f"| {code} | {text} |" for code, text in EXIT_CODES.items())
    sections = [f"{_HEAD}{codes}\n"]
    with group.make_context("taskmerge", [], resilient_parsing=True) as around:
        for name, command in sorted(getattr(group, "commands", {}).items()):
            settings = {"resilient_parsing": True, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
            with command.make_context(name, [], parent=around, **settings) as context:
                help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
            sections.append(f"## {name}\n\n```\n{help_text}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    sys.stdout.write(page())
