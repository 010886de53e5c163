"""Lines and branches that tests reach, of `coverage json -o - | python tests/helpers/covered.py`."""

from __future__ import annotations

import json
import sys
from typing import Any

LEAST = 0.92
"""Of the lines; branches are stated."""


def shares(totals: dict[str, Any]) -> tuple[float, float]:
    """The shares of lines and of branches."""
    lines = totals["covered_lines"] / totals["num_statements"]
    return lines, totals["covered_branches"] / max(1, totals["num_branches"])


def main() -> None:
    """Print both shares; end with 1 when too few lines are reached."""
    lines, branches = shares(json.load(sys.stdin)["totals"])
    print(f"{lines:.1%} of lines, {branches:.1%} of branches")
    if lines < LEAST:
        sys.exit(f"at least {LEAST:.0%} of lines")


if __name__ == "__main__":
    main()
