"""The charts of a report as SVG files of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from taskmerge.reporting.blocks import chart
from taskmerge.reporting.content import Banner, Section, Table, Texts
from taskmerge.reporting.style import PICTURE
from taskmerge.words.system_errors import writing


def write_pictures(folder: Path, sections: Sequence[Section]) -> list[Path]:
    """Write every chart as an SVG that needs no other file, named by its title. Returns their paths."""
    written = []
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Banner | Table | Texts):
                continue
            drawn = chart(block)
            if drawn:
                path = folder / f"{picture_name(block.title)}.svg"
                with writing(path):
                    path.write_text(_alone(drawn), "utf-8")
                written.append(path)
    return written


def picture_name(title: str) -> str:
    """Return the file name of a chart, without its ending."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80]


def _alone(drawn: str) -> str:
    """A chart of the page with the page's colours in it."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    return drawn.replace("<svg ", head, 1).replace(">", f"><style>{PICTURE}</style>", 1) + "\n"
