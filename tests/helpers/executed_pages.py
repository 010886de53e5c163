"""Pages whose blocks are run: `python tests/helpers/executed_pages.py` writes what the tutorial's commands print.

A page holds ```console blocks (`$ command` and what it printed) and ```python blocks (a ```text block behind one holds
what it printed). All run in one fresh folder, in order, as on a terminal of 100 columns without colours. Where the
page shows a line `…`, lines of the middle are left out. A notebook is the same page in cells.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "tutorial.md", ROOT / "examples" / "tutorial.ipynb"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
TERMINAL = {"COLUMNS": "100", "LINES": "50", "NO_COLOR": "1", "TERM": "xterm", "HF_HUB_OFFLINE": "1"}
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r")
_PASSING = re.compile(r"^(?:Preparing kernels for this processor.*|.*\d \S+/s, .*)\n", re.MULTILINE)
"""What is printed on a slow machine alone, or drawn over by a bar."""
LEFT_OUT = "…"
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_FREE = re.compile(
    r"\b\d+(?:\.\d+)?(?= (?:s|ms|min|[kMG]i?B/s)\b)"  # how long it took here
    r"|\b[0-9a-f]{12,64}\b"  # hashes of files that hold times or paths
    r"|(?<=taskmerge )\d+\.\d+\.\d+"
)


class Cell(NamedTuple):
    """A part of a page. kind: markdown, console or python. text: the prose, the commands, or the program.
    printed: what it printed."""

    kind: str
    text: str
    printed: str = ""


def cells_of(page: str) -> list[Cell]:
    """Cut a page into cells; commands of one block are a cell each, blocks of other languages belong to the prose."""
    cells: list[Cell] = []
    at = 0
    for block in FENCE.finditer(page):
        language, body = block.groups()
        if language == "text" and cells and cells[-1].kind == "python" and not page[at : block.start()].strip():
            cells[-1] = cells[-1]._replace(printed=body)
        elif language in ("console", "python"):
            cells += _prose(page[at : block.start()])
            cells += _commands(body) if language == "console" else [Cell("python", body.rstrip("\n"))]
        else:
            continue
        at = block.end()
    return [*cells, *_prose(page[at:])]


def _prose(text: str) -> Iterator[Cell]:
    if text.strip():
        yield Cell("markdown", text.strip("\n"))


def _commands(body: str) -> Iterator[Cell]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield Cell("console", command, printed)


def page_of(cells: list[Cell]) -> str:
    """The page again: commands that follow each other are one block."""
    parts: list[str] = []
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell.kind == "markdown":
            parts.append(cell.text + "\n")
        elif cell.kind == "python":
            parts.append(f"```python\n{cell.text}\n```\n" + (f"\n```text\n{cell.printed}```\n" if cell.printed else ""))
        elif before and before.kind == "console":
            parts[-1] = parts[-1].removesuffix("```\n") + f"$ {cell.text}\n{cell.printed}```\n"
        else:
            parts.append(f"```console\n$ {cell.text}\n{cell.printed}```\n")
    return "\n".join(parts)


class Terminal:
    """Runs commands and programs in a folder. code: the exit code of the latest command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.code, self.scope = folder, 0, {"__name__": "__main__"}

    def run(self, cell: Cell) -> Cell:
        """The cell with what it prints here and now."""
        if cell.kind == "markdown":
            return cell
        with _at(self.folder):
            printed = self._program(cell.text) if cell.kind == "python" else self._command(cell.text)
        text = _PASSING.sub("", _ESCAPES.sub("", printed)).replace(str(self.folder), ".").strip("\n")
        lines = _shortened([line.rstrip() for line in text.splitlines()], cell.printed.splitlines())
        return cell._replace(printed="".join(f"{line}\n" for line in lines))

    def _program(self, text: str) -> str:
        return _printed(lambda: exec(compile(text, "page", "exec"), self.scope))

    def _command(self, line: str) -> str:
        if line == "echo $?":
            return f"{self.code}\n"
        head, _, filters = line.partition(" | ")
        words = head.partition("  #")[0].split()
        if words[0] != "taskmerge":
            return subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
        printed = _printed(lambda: self._taskmerge(words), terminal=not filters)
        if not filters:
            return printed
        return subprocess.run(filters, shell=True, input=printed, capture_output=True, text=True, check=True).stdout

    def _taskmerge(self, words: list[str]) -> None:
        import taskmerge.cli

        sys.argv = [word.strip("'\"") for word in words]
        try:
            taskmerge.cli.main()
        except SystemExit as ended:
            self.code = ended.code if isinstance(ended.code, int) else 1


def _shortened(lines: list[str], shown: list[str]) -> list[str]:
    """What was printed, without its middle where the page leaves one out."""
    if LEFT_OUT not in shown:
        return lines
    head, tail = shown.index(LEFT_OUT), len(shown) - shown.index(LEFT_OUT) - 1
    return [*lines[:head], LEFT_OUT, *lines[len(lines) - tail :]] if len(lines) > head + tail else lines


class _Screen(io.StringIO):
    """Where what is printed is kept; a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class _Messages(io.TextIOBase):
    """Standard error, on the same screen, without bars that are drawn over."""

    def __init__(self, screen: _Screen) -> None:
        self.screen = screen

    def write(self, text: str) -> int:
        return self.screen.write(text)

    def isatty(self) -> bool:
        return False


def _printed(work: Callable[[], Any], terminal: bool = True) -> str:
    screen = _Screen(terminal)
    with redirect_stdout(screen), redirect_stderr(_Messages(screen)):
        work()
    return screen.getvalue()


@contextmanager
def _at(folder: Path) -> Iterator[None]:
    before, environment, argv = Path.cwd(), dict(os.environ), sys.argv
    os.environ.update(TERMINAL)
    os.environ.pop("FORCE_COLOR", None)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv


def difference(shown: str, printed: str) -> str:
    """What a page shows and a run does not, or nothing. Times, rates and hashes may differ; other numbers by what
    processors differ: 0.02, or 2 % of it."""
    for number, (one, other) in enumerate(zip(_lines(shown), _lines(printed), strict=False), 1):
        if _NUMBER.sub("#", one) != _NUMBER.sub("#", other) or not all(map(_near, *map(_NUMBER.findall, (one, other)))):
            return f"line {number}\nshown:   {one}\nprinted: {other}"
    counts = len(_lines(shown)), len(_lines(printed))
    return "" if counts[0] == counts[1] else f"{counts[0]} lines are shown, {counts[1]} printed:\n{printed}"


def _lines(text: str) -> list[str]:
    """Without free numbers; how wide a column is drawn does not count."""
    return [re.sub(r"[ ─━]+", " ", _FREE.sub("~", line)).strip() for line in text.splitlines()]


def _near(one: str, other: str) -> bool:
    first, second = float(one), float(other)
    return one == other or (("." in one or "." in other) and abs(first - second) <= 0.02 + 0.02 * abs(second))


def notebook_of(cells: list[Cell]) -> str:
    """The page as a Jupyter notebook (format 4.5) with what was printed."""
    made = []
    for number, cell in enumerate(cells):
        one: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if cell.kind == "markdown":
            one |= {"cell_type": "markdown", "source": _seen_from_examples(cell.text)}
        else:
            source = cell.text if cell.kind == "python" else f"!{cell.text}"
            stream = [{"output_type": "stream", "name": "stdout", "text": cell.printed}] if cell.printed else []
            one |= {"cell_type": "code", "execution_count": None, "source": source, "outputs": stream}
        made.append(dict(sorted(one.items())))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def _seen_from_examples(text: str) -> str:
    """Links as they lead from the notebook's folder."""
    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", lambda to: f"]({_relative(to[1])})", text)


def _relative(target: str) -> str:
    return os.path.relpath(PAGE.parent / target, NOTEBOOK.parent)


def cells_in(notebook: str) -> list[Cell]:
    """The cells of such a notebook."""
    return [_cell_in(one) for one in json.loads(notebook)["cells"]]


def _cell_in(one: dict[str, Any]) -> Cell:
    if one["cell_type"] == "markdown":
        return Cell("markdown", one["source"])
    printed = "".join(output["text"] for output in one["outputs"])
    command = one["source"].startswith("!")
    return Cell("console" if command else "python", one["source"].removeprefix("!"), printed)


def main() -> None:
    """Run the tutorial; write its page and its notebook with what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(Path(folder).resolve())
        cells = [terminal.run(cell) for cell in cells_of(PAGE.read_text("utf-8"))]
    PAGE.write_text(page_of(cells), "utf-8")
    NOTEBOOK.write_text(notebook_of(cells), "utf-8")


if __name__ == "__main__":
    main()
