"""The ready recipes: each is read, valid under the schema, and says what it is for."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from places import ROOT

from taskmerge import recipes

CONFIGS = sorted((ROOT / "merge_configs").glob("*.yaml"))
EACH = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_there_are_some() -> None:
    assert len(CONFIGS) >= 10


@EACH
def test_is_read_and_written_back(path: Path) -> None:
    recipe = recipes.load(path)
    assert recipe.output.path
    assert recipes.from_dict(recipe.to_dict()) == recipe


@EACH
def test_is_valid_under_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text("utf-8")), recipes.schema())


@EACH
def test_says_what_it_is_for(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=./taskmerge.schema.json"
    assert lines[1].startswith("# ") and len(lines[1]) > 40
    assert all(len(line) <= 120 for line in lines)
