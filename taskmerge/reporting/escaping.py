"""Text inside a page: never markup, never an order to whatever shows it."""

from __future__ import annotations

import html

from taskmerge.printable import printable


def escape(text: str) -> str:
    """Return a text as it stands between tags or in a quoted attribute of HTML."""
    return html.escape(printable(text), quote=True)
