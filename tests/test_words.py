"""Words that a reader stumbles over do not come back: help, docs and messages are plain international English."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from taskmerge.cli.app import app

# from the table in CONTRIBUTING.md, whole words and phrases
FORBIDDEN = re.compile(r"\b(dear|anew|most bytes of|shipped anew|goes on where it was)\b", re.IGNORECASE)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages(page: Path) -> None:
    assert not FORBIDDEN.findall(page.read_text("utf-8"))


@pytest.mark.parametrize("command", sorted(getattr(get_command(app), "commands", {})))
def test_help(command: str) -> None:
    assert not FORBIDDEN.findall(CliRunner().invoke(app, [command, "--help"]).output)
