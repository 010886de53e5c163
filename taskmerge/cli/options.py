"""Options that several commands share, declared once."""

from __future__ import annotations

import typer

DEVICE = typer.Option(None, "--device", help="Where models run: cpu (the default), cuda, cuda:1, mps.")
JSON = typer.Option(False, "--json", help="Print JSON for machines.")
