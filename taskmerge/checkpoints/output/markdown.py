"""Names inside a card (README.md): text, never markup, HTML or a link."""

from __future__ import annotations

import re

from taskmerge.printable import printable, printable_line

_PLAIN = re.compile(r"[A-Za-z0-9]+([.-][A-Za-z0-9]+)*")


def name(text: str) -> str:
    """Return a name in a form for a heading or a sentence: plain where it is, else as `code`."""
    return text if _PLAIN.fullmatch(text) and not text.startswith("www.") else code(text)


def code(text: str, in_table: bool = False) -> str:
    """Return a text as a code span, in which nothing else is read.

    Args:
        text: what to show.  in_table: inside a row of a table, where a bar would begin the next cell.
    """
    text = printable_line(text)
    if in_table:
        text = text.replace("|", "\\|")
    ticks = "`" * (_longest_run(text) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{room}{text}{room}{ticks}"


def sentence(text: str) -> str:
    """Return a sentence with names in it, in which nothing is read as markup, HTML or a link."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&!@]|:(?=//))", r"\\\1", printable_line(text))
    return escaped.replace("www.", "www\\.")


def plain(line: str) -> str:
    """Return one line of foreign Markdown, without control sequences for a terminal."""
    return printable_line(line.replace("\t", "    "))


def block(text: str, language: str) -> str:
    """Return a text of several lines as a fenced block that none of its own lines ends."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
