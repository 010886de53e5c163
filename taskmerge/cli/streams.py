"""The standard streams of commands: open, accepting every character, and without control sequences for the terminal.

The output of this program is escaped where it is printed. Other libraries also print (warnings, logs), and quote
untrusted text.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskmerge.printable import printable

_OF_A_BAR = re.compile(r"\r|(?:\n|\x1b\[A)+\Z")
"""What libraries draw progress with: back to the beginning of the line before a text, and moves up alone."""


class Washed:
    """A text stream that escapes control sequences. stream: the stream that it writes to."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text to the stream, with characters that it can print."""
        bar = _OF_A_BAR.match(text)
        kept = bar.end() if bar else 0
        self.stream.write(text[:kept] + printable(text[kept:]))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines to the stream, see `write`."""
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unwashed(stream: Any) -> Any:
    """Return the underlying stream, for code that draws with control sequences and escapes the texts itself."""
    return stream.stream if isinstance(stream, Washed) else stream


_apart: list[Any] = []
"""Where results go while sys.stdout is what stderr is."""


@contextmanager
def results_apart(wanted: bool) -> Iterator[None]:
    """Inside the block, if wanted, what any library prints goes to stderr, and `results()` alone leads to stdout."""
    if not wanted:
        yield
        return
    _apart.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = _apart.pop()


def results() -> Any:
    """Return the stream of a command's result."""
    return _apart[-1] if _apart else sys.stdout


@contextmanager
def safe_streams() -> Iterator[None]:
    """Inside the block no standard stream is closed, refuses a character or carries control sequences."""
    for number in range(3):  # a closed one would be the number of the next file opened, which then gets our messages
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = Path(os.devnull).open("w")  # noqa: SIM115 (stays open)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream if isinstance(stream, Washed) else Washed(stream))
    try:
        yield
    finally:
        _silence_unwritable()
        sys.stdout, sys.stderr = before


def _silence_unwritable() -> None:
    """Keep Python from reporting errors when it flushes both streams at its end."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, number)
            os.close(sink)
