"""Words that a reader stumbles over do not come back: help, docs and messages are plain international English."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from taskmerge.cli.app import app

# from the table in CONTRIBUTING.md, whole words and phrases
EVERYWHERE = re.compile(
    r"\b(dear|anew|afresh|thereof|most bytes of|goes on where it was|goes on from|by heart|told at once|"
    r"said to lie|whoever reads|anybody's|throws? (?:it|them) away|as it came|uncut)\b",
    re.IGNORECASE,
)
# in what the package prints and its help says: X is no Y, where things lie and stand, what is not done here
PRINTED = re.compile(
    rf"{EVERYWHERE.pattern}|"
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|other|more)[a-z]|"
    r"\b(?:lie|lies|stand|stands) (?:in|at|here|there|outside|beyond|beside|before|behind|with)\b|"
    r"\bnot (?:done|known|read) here\b|\b(?:nobody|somebody|anybody) (?:can|knows|writes)\b|"
    r"\b(?:go on|mend|hand in|goes on|had from)\b|\bkept back\b|\bleft out: (?:all|as|the|each|an?|1)\b|"
    r"\b(?:told apart|cannot be told|taken over|made again|cut off|cut to|switched off|by hand|undoes|evens? out)\b|"
    r"\b(?:does not|may|recipe|table|page|verdict|message|config\.json) says? |\bis it (?:for|the)\b|"
    r"\bare (?:both|base|they) (?:of|the)\b|\bnames (?:no|files|tensors|matrices)\b|\bone an? (?!time|of)[a-z]+|"
    r"\bbesides? (?:the|this|its|it|their|that)\b|\bwhole (?!numbers?\b)[a-z]",
    re.IGNORECASE,
)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
MODULES = sorted((ROOT / "taskmerge").rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages(page: Path) -> None:
    assert not _found(EVERYWHERE, page.read_text("utf-8"))


@pytest.mark.parametrize("command", sorted(getattr(get_command(app), "commands", {})))
def test_help(command: str) -> None:
    assert not _found(PRINTED, CliRunner().invoke(app, [command, "--help"]).output)


def test_messages() -> None:
    """Every text of the package that is not a docstring: messages, tables, pages, descriptions of keys."""
    wrong = [(str(path.relative_to(ROOT)), found) for path in MODULES for found in _found(PRINTED, *_texts(path))]
    assert not wrong


@pytest.mark.parametrize(
    "text",
    ["'1XB' is no size", "config.json is no table", "a killed run goes on where it was", "a killed run goes on from it",
     "Speak, draw and train what is shipped anew first", "64-bit products are dear", "Most bytes of one file",
     "parts lie here", "not known here", "is it for another model?", "are both of the same lineage?",
     "One a finding.", "does not say which", "the page of a whole output", "the JSON beside this page",
     "pairs kept back", "left out: each one's own", "config.json says x", "index.json names files that are missing"],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    assert _found(PRINTED, text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no file",
        "it is no longer there",
        "it understands",
        "believes in",
        "a whole number",
        "left out: 3 files",
    ],
)
def test_what_is_not_refused(text: str) -> None:
    assert not _found(PRINTED, text)


def _found(pattern: re.Pattern[str], *texts: str) -> list[str]:
    return [match.group() for text in texts for match in pattern.finditer(text)]


def _texts(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
