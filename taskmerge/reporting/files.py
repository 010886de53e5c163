"""Writing a report: the page, and its twin for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.output.record import is_made_here
from taskmerge.errors import OutputError
from taskmerge.measuring.drift.report import plain_data
from taskmerge.reporting.content import Section
from taskmerge.reporting.making import making_section
from taskmerge.reporting.page import GENERATOR, render
from taskmerge.words.places import output_path
from taskmerge.words.system_errors import writing


def write_report(
    path: str | Path, title: str, sections: Sequence[Section], data: Mapping[str, Any], lead: str = "", recipe: str = ""
) -> tuple[Path, Path]:
    """Write a page as `path` (HTML), and its data under the same name with .json.

    Pages of ours are replaced, and their files; nothing else is.

    Args:
        path: the HTML file.
        title: of the page.
        sections: in order.
        data: the content of the sections as plain data; NaN and infinity become null.
        lead: the sentence under the title.
        recipe: its text, for the last section, on the origin of the numbers.

    Returns:
        The two paths.

    Raises:
        OutputError: if another file would be replaced, or if the folder cannot be written to.
    """
    page, twin = check_page(path)
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(title, lead, [*sections, making_section(recipe)]), encoding="utf-8")
        twin.write_text(json.dumps(plain_data(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return page, twin


def check_page(path: str | Path) -> tuple[Path, Path]:
    """Return the paths of a page and of its JSON file. Raises OutputError if a foreign file would be replaced."""
    page = output_path(path)
    if page.suffix not in (".html", ".htm"):
        page = page.with_name(page.name + ".html")
    twin = page.with_suffix(".json")
    ours = is_made_here(page.parent, "report") or _is_page(page)
    for one in (page, twin):
        if one.is_symlink() or (one.exists() and not (ours and one.is_file())):
            what = "would be overwritten by the report, but was not made by taskmerge"
            raise OutputError(what, str(one), "give the page another name")
    return page, twin


def _is_page(page: Path) -> bool:
    try:
        return page.is_file() and GENERATOR in page.read_text("utf-8", errors="replace")[:1000]
    except OSError:
        return False
