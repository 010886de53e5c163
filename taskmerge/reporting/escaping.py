"""Text inside a page: never markup, never an order to whatever shows it."""

from __future__ import annotations

import html
import re

from taskmerge.printable import printable


def escape(text: str) -> str:
    """Return a text in a form for use between tags or in a quoted attribute of HTML."""
    return html.escape(printable(text), quote=True)


def breakable(text: str) -> str:
    """Return the text of a name, escaped, that may break after a dot, slash, underscore or bracket before a word."""
    return re.sub(r"([._/(])(?=[^\W\d]{4})", r"\1<wbr>", escape(text))
