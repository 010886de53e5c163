"""What was found before and handed on: `known.txt`."""

from __future__ import annotations

import re
from pathlib import Path

_PATTERNS = [
    re.compile(line, re.DOTALL)
    for line in (Path(__file__).parent / "known.txt").read_text("utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def is_known(finding: str) -> bool:
    """Whether a finding (of a command, without the case's name) is one that is handed on."""
    return any(pattern.search(finding) for pattern in _PATTERNS)
