"""Text in a safe form for display: foreign names of files and tensors must not control the terminal."""

from __future__ import annotations

import re

_ORDERS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, escape codes among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing
    "\u2028\u2029"  # line ends that only some readers know
    "\ud800-\udfff\ufff9-\ufffb"  # halves of pairs (a file name that is not UTF-8), annotations
    "\U000e0000-\U000e007f"  # invisible tags
)
_IN_TEXT = re.compile(f"[{_ORDERS}]")
_IN_LINE = re.compile(f"[\t\n{_ORDERS}]")


def printable(text: str) -> str:
    r"""Return a text of one or several lines in which every character that is an order is written out: \x1b, \u202e."""
    return _IN_TEXT.sub(_written_out, text)


def printable_line(text: str) -> str:
    r"""Return a text as one line: `printable`, with tabs and line ends written out too."""
    return _IN_LINE.sub(_written_out, text)


def printable_json(text: str) -> str:
    r"""Return a text of JSON that says the same, with such characters as JSON escapes: \u009b."""
    return _IN_TEXT.sub(_as_json, text)


def _written_out(match: re.Match[str]) -> str:
    character = match[0]
    if character in "\t\n\r":
        return {"\t": "\\t", "\n": "\\n", "\r": "\\r"}[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _as_json(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
