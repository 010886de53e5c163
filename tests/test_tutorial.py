"""The tutorial is run: its page and its notebook show what the commands print, in one fresh folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from executed_pages import NOTEBOOK, PAGE, Cell, Terminal, cells_in, cells_of, difference, notebook_of, page_of

AGAIN = "run `make tutorial`, and read what changed"


def test_the_notebook_is_the_page() -> None:
    page, notebook = PAGE.read_text("utf-8"), NOTEBOOK.read_text("utf-8")
    cells = cells_of(page)
    assert page_of(cells) == page and notebook_of(cells) == notebook, AGAIN
    assert [one for one in cells_in(notebook) if one.kind != "markdown"] == [c for c in cells if c.kind != "markdown"]
    book = json.loads(notebook)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    assert sum(cell["cell_type"] == "code" for cell in book["cells"]) >= 10
    links = re.findall(r"\]\((?!http)([^)#]+)\)", "".join(cell["source"] for cell in book["cells"]))
    assert len(links) > 5 and all((NOTEBOOK.parent / target).exists() for target in links), links


def test_every_cell_prints_what_is_shown(tmp_path: Path) -> None:
    """Half a minute of one core: two merges of a real model, and its scores."""
    terminal = Terminal(tmp_path)
    for cell in cells_in(NOTEBOOK.read_text("utf-8")):
        ran = terminal.run(cell)
        assert not (found := difference(cell.printed, ran.printed)), f"{cell.text}\n{found}\n{AGAIN}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("90.9 MB in 5.5 s: out/merged\n", "90.9 MB in 0.3 s: out/merged\n", True),
        ("│ base │ 0.100 │\n", "│ base │  0.101  │\n", True),
        ("│ base │ 0.100 │\n", "│ base │ 0.200 │\n", False),
        ("103 tensors merged\n", "104 tensors merged\n", False),
        ("next: taskmerge fuse\n", "next: taskmerge run\n", False),
        ("one\n", "one\ntwo\n", False),
        ("one\ntwo\n", "one\n", False),
    ],
)
def test_what_counts_as_a_difference(shown: str, printed: str, same: bool) -> None:
    assert (not difference(shown, printed)) is same


def test_a_command_that_prints_something_else_is_found(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    ran = terminal.run(Cell("console", "taskmerge methods nothing_like_it"))
    assert terminal.code == 2 and "nothing_like_it" in ran.printed
    assert terminal.run(Cell("console", "echo $?")).printed == "2\n"
    assert terminal.run(Cell("python", "print(6 * 7)")).printed == "42\n"
    listed = terminal.run(Cell("console", "taskmerge methods | head -2")).printed
    assert len(listed.splitlines()) == 2 and difference("name\n", listed)
    middle = terminal.run(Cell("console", "seq 9", "1\n…\n9\n"))
    assert middle.printed == "1\n…\n9\n"
