"""The printed pages are up to date, name everything, and their code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from places import ROOT

from taskmerge import recipes
from taskmerge.declarations import fields_of
from taskmerge.methods import all_methods
from taskmerge.recipes.docs import pages

EXAMPLE = (ROOT / "merge_configs" / "omni_audio_graft.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", ["methods.md", "recipe.md"])
def test_the_page_is_what_the_declarations_say(name: str) -> None:
    written = (ROOT / "docs" / name).read_text("utf-8")
    assert written == pages(EXAMPLE)[name], "run `python -m taskmerge.recipes.docs docs`"


def test_every_method_and_parameter_is_on_the_page() -> None:
    text = pages(EXAMPLE)["methods.md"]
    for method in all_methods():
        section = text.split(f"\n### `{method.name}`")[1].split("\n### ")[0]
        assert all(f"\n| `{row.name}` |" in section for row in method.parameters)


def test_every_key_of_the_recipe_is_on_the_page() -> None:
    text = pages(EXAMPLE)["recipe.md"]
    for row in fields_of(recipes.Recipe):
        assert f"\n| `{row.name}` |" in text
    for name in ("specialists", "merge", "rules", "output", "fail_above", "recover", "lora", "balance", "specialize"):
        assert f"\n### `{name}`\n" in text


def test_the_example_method_runs_from_a_recipe(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", pages(EXAMPLE)["methods.md"], re.DOTALL)
    assert len(code) == 1
    (tmp_path / "median.py").write_text(code[0])
    recipe = "base: b\nspecialists: {a: m}\nmerge: {method: median.py:median, scale: 0.5}\n"
    method = recipes.loads(recipe, folder=tmp_path).merge.settings().method
    deltas = torch.tensor([[1.0, 2.0], [3.0, -2.0], [9.0, 5.0]])
    assert method.merge(deltas, torch.ones(3), {"scale": 0.5}).tolist() == [1.5, 1.0]


def test_the_example_recipe_is_read() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", pages(EXAMPLE)["recipe.md"], re.DOTALL)
    assert recipes.loads(example).specialists["audio"].weight == 0.5
