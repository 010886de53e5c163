"""What the scripts of this folder leave: a table as JSON, printed and kept in the file of --out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all of them take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path)
    return parser


def leave(table: dict[str, Any], out: Path | None) -> None:
    """Print a table, and write it where the user wants it."""
    text = json.dumps(table, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")
