"""mergekit configurations, fused by taskmerge, against what mergekit 0.1.5 made of the same models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mergekit_cases import CASES, fingerprint, save_models
from places import TESTS

from taskmerge import recipes
from taskmerge.errors import MergeError
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.plan import plan

WANTED: dict[str, Any] = json.loads((TESTS / "oracles" / "mergekit.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("models")
    save_models(path)
    yield path


def fused(text: str, folder: Path) -> dict[str, np.ndarray]:
    """Every tensor, as its output format holds it, in float64."""
    weights = FusedStateDict(plan(recipes.loads(text, "merge.yml", folder)), "cpu")
    values = {}
    for name in weights.tensors:
        entries = weights.read(name)
        bits16 = entries.dtype == np.uint16
        values[name] = ((entries.astype(np.uint32) << 16).view(np.float32) if bits16 else entries).astype(np.float64)
    return values


@pytest.mark.parametrize("name", CASES)
def test_gives_mergekits_result(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = fused(CASES[name], folder)
    assert set(found) == set(WANTED[name])
    # mergekit computes in float32: each entry may be off by its rounding, hundreds of them add up in a projection.
    near = 2e-2 if "bfloat16" in name else 2e-6
    for tensor, prints in fingerprint(found).items():
        np.testing.assert_allclose(prints, WANTED[name][tensor], atol=near, err_msg=tensor)


def test_fingerprints_tell_different_merges_apart() -> None:
    assert set(WANTED) == set(CASES)
    plain, graded = WANTED["sum"], WANTED["sum, gradient"]
    assert abs(plain["lm_head.weight"][0] - graded["lm_head.weight"][0]) > 1e-3


def test_layers_that_are_not_there_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = CASES["passthrough"].replace("[0, 4]", "[0, 5]")
    with pytest.raises(MergeError, match=r"m0 has 4 layers; stack\[0\] takes layer 4 of it"):
        fused(text, folder)


def test_the_config_counts_the_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    made = plan(recipes.loads(CASES["passthrough, stacked"], "merge.yml", folder))
    assert made.beside.config["num_hidden_layers"] == 7
    assert made.table()["backbone"] == {"keep": 7 * 9 + 1}


def test_a_density_for_each_specialist_and_gradients_in_our_own_words(folder: Path) -> None:
    """Numbers by name, one of them a gradient: the same as one fuse per layer would give."""
    text = (
        "base: {0}/base\nspecialists: {{a: {0}/m0, b: {0}/m1}}\n"
        "merge: {{method: ties, density: {{a: [0.2, 0.8], b: 0.5}}{1}}}\n"
    )
    whole = fused(text.format(folder, ""), folder)
    for layer, density in enumerate((0.2, 0.4, 0.6, 0.8)):
        plain = fused(text.format(folder, "").replace("[0.2, 0.8]", str(density)), folder)
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        np.testing.assert_array_equal(whole[name], plain[name])


@pytest.mark.parametrize("edges", ["ends", "first"])
def test_tensors_outside_the_layers_take_an_end_of_a_gradient(folder: Path, edges: str) -> None:
    specialists = f"{{a: {{model: {folder}/m0, weight: [0.0, 1.0]}}}}"
    text = f"base: {folder}/base\nspecialists: {specialists}\nmerge: {{edges: {edges}}}\n"
    found = fused(text, folder)
    base = fused(text.replace("[0.0, 1.0]", "0.0"), folder)
    assert (found["model.embed_tokens.weight"] == base["model.embed_tokens.weight"]).all()
    assert (found["lm_head.weight"] == base["lm_head.weight"]).all() == (edges == "first")
