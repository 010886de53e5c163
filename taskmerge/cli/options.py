"""Options that several commands share, declared once."""

from __future__ import annotations

import typer

JSON = typer.Option(False, "--json", help="Print JSON for machines.")
