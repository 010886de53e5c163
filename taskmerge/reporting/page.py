"""The frame of every page: one HTML file that needs no other file, no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence

from taskmerge.reporting.blocks import as_html
from taskmerge.reporting.content import Section
from taskmerge.reporting.escaping import escape
from taskmerge.reporting.style import PAGE

GENERATOR = '<meta name="generator" content="taskmerge">'
"""By which a page of ours is known."""


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the complete page: title, contents, sections in order. Texts are escaped; empty sections are left out.

    A term is explained under the first card that uses it.
    """
    shown = [section for section in sections if section.blocks]
    explained: set[str] = set()
    body = "".join(_section(section, number, explained) for number, section in enumerate(shown, 1))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"{GENERATOR}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE}</style></head>"
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{_contents(shown)}{body}'
        "</main></body></html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections, where there is more than one."""
    if len(sections) < 2:
        return ""
    rows = (f'<li><a href="#part-{number}">{escape(one.title)}</a></li>' for number, one in enumerate(sections, 1))
    return f'<nav aria-label="Contents"><ul class="contents">{"".join(rows)}</ul></nav>'


def _section(section: Section, number: int, explained: set[str]) -> str:
    blocks = "".join(as_html(block, explained) for block in section.blocks)
    return f'<section><h2 id="part-{number}">{escape(section.title)}</h2>{blocks}</section>'
