"""A merge's own comparison: against numpy on whole arrays, and against what `compare` says of the same models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskmerge.merging import plan
from taskmerge.merging.algebra.comparison import compare_task_vectors
from taskmerge.merging.compared import compare_planned
from taskmerge.merging.fused import FusedStateDict
from taskmerge.recipes import loads

SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.1.mlp.up_proj.weight": (24, 16),
    "model.layers.1.input_layernorm.weight": (16,),
    "model.embed_tokens.weight": (40, 16),
}
INPUTS = "base: base\nspecialists: {law: {model: law, weight: 0.5}, code: {model: code, weight: 0.7}}\n"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def models(folder: Path, dtype: str) -> dict[str, dict[str, np.ndarray]]:
    """Base and two specialists as files; the same numbers as float64. One tensor of `law` does not move."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator).to(DTYPES[dtype]) for name, shape in SHAPES.items()}
    stored = {"base": base}
    for label, size in (("law", 0.1), ("code", 0.3)):
        stored[label] = {
            name: (value.double() + size * torch.randn(value.shape, generator=generator)).to(DTYPES[dtype])
            for name, value in base.items()
        }
    stored["law"]["model.layers.1.input_layernorm.weight"] = base["model.layers.1.input_layernorm.weight"].clone()
    for label, tensors in stored.items():
        (folder / label).mkdir()
        save_file(tensors, folder / label / "model.safetensors", {"format": "pt"})
        (folder / label / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    return {
        label: {name: value.double().numpy() for name, value in tensors.items()} for label, tensors in stored.items()
    }


def fused(folder: Path, merge: str) -> FusedStateDict:
    text = (
        f"base: base\nspecialists: {{law: {{model: law, weight: 0.5}}, code: {{model: code, weight: 0.7}}}}\n{merge}\n"
    )
    return FusedStateDict(plan(loads(text, "recipe.yaml", folder)))


def flat(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values[name].ravel() for name in SHAPES])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_cosines_and_conflicts_are_those_of_the_arrays(tmp_path: Path, dtype: str) -> None:
    arrays = models(tmp_path, dtype)
    found = compare_planned(fused(tmp_path, "merge: {method: sum}"))
    base = flat(arrays["base"])
    law, code = flat(arrays["law"]) - base, flat(arrays["code"]) - base
    exact = 0.5 * law + 0.7 * code
    merged = (torch.from_numpy(base + exact).to(DTYPES[dtype])).double().numpy() - base
    vectors = {"law": law, "code": code, "merged": merged}
    assert found["merged"] == "merged"
    for name, vector in vectors.items():
        length = np.linalg.norm(vector)
        assert found["norms"][name] == pytest.approx([length, length / np.linalg.norm(base)], rel=1e-6)
        for other, second in vectors.items():
            cosine = vector @ second / np.linalg.norm(vector) / np.linalg.norm(second)
            assert found["cosine"][name][other] == pytest.approx(cosine, abs=1e-6)
    both = (law != 0) & (code != 0)
    assert found["sign_conflict"]["law"]["code"] == pytest.approx((law * code < 0)[both].mean(), abs=1e-12)
    assert found["kept"] == {}


def test_it_says_what_compare_says(tmp_path: Path) -> None:
    models(tmp_path, "float32")
    found = compare_planned(fused(tmp_path, "merge: {method: sum}"))
    told = compare_task_vectors(str(tmp_path / "base"), {name: str(tmp_path / name) for name in ("law", "code")})
    for key in ("norms", "cosine", "sign_conflict"):
        for name, row in told[key].items():
            mine = found[key][name]
            assert (
                mine == pytest.approx(row)
                if key == "norms"
                else [mine[n] for n in row] == pytest.approx([*row.values()])
            )
    for layer, norms in told["by_layer"].items():
        assert {name: found["by_layer"][layer][name] for name in norms} == pytest.approx(norms)


@pytest.mark.parametrize("trim", ["tensor", "model"])
def test_what_trimming_kept_is_counted(tmp_path: Path, trim: str) -> None:
    arrays = models(tmp_path, "float32")
    found = compare_planned(fused(tmp_path, f"merge: {{method: ties, density: 0.25, trim: {trim}}}"))
    layers = [name for name in SHAPES if ".layers." in name]
    for label in ("law", "code"):
        sizes = {name: np.abs(arrays[label][name] - arrays["base"][name]).astype(np.float32) for name in SHAPES}
        bar = np.sort(np.concatenate([size.ravel() for size in sizes.values()]))
        kept = 0
        for name in layers:
            own = bar if trim == "model" else np.sort(sizes[name].ravel())
            least = own[-max(1, int(0.25 * own.size))]
            kept += int(np.count_nonzero((sizes[name] >= least) & (sizes[name] > 0)))
        share = kept / sum(sizes[name].size for name in layers)
        assert found["kept"]["backbone"][label] == pytest.approx(share, abs=1e-12)
    assert set(found["kept"]) == {"backbone", "embeddings"}


def test_random_drops_are_told_by_their_density(tmp_path: Path) -> None:
    models(tmp_path, "float32")
    found = compare_planned(fused(tmp_path, "merge: {method: dare_linear, density: 0.4}"))
    assert found["kept"]["backbone"] == pytest.approx({"law": 0.4, "code": 0.4})


def test_a_specialist_may_be_called_merged(tmp_path: Path) -> None:
    models(tmp_path, "float32")
    text = "base: base\nspecialists: {merged: {model: law, weight: 0.5}, code: {model: code, weight: 0.7}}\n"
    found = compare_planned(FusedStateDict(plan(loads(text, "recipe.yaml", tmp_path))))
    assert found["merged"] == "merged result" and set(found["norms"]) == {"merged", "code", "merged result"}


def test_methods_of_whole_tensors_are_compared_too(tmp_path: Path) -> None:
    models(tmp_path, "float32")
    merge = fused(tmp_path, "merge: {method: tsv}")
    told: list[int] = []
    found = compare_planned(merge, told.append)
    assert 0 < found["cosine"]["law"]["merged"] < 1
    assert sum(told) == sum(step.info.nbytes for step in merge.plan.steps)


def test_the_page_of_a_fuse(tmp_path: Path, command: Callable[..., Any]) -> None:
    models(tmp_path, "bfloat16")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{INPUTS}merge: {{method: ties, density: 0.5}}\noutput: {{path: out}}\n")
    page = tmp_path / "page.html"
    assert command("fuse", recipe, "--html", page).code == 0
    text = page.read_text("utf-8")
    assert "Tensors: 4 merged" in text and "The task vectors were not compared" in text and "Sign conflict" not in text
    assert command("fuse", recipe, "--fresh", "--html", page, "--compare").code == 0
    text = page.read_text("utf-8")
    assert "Sign conflict" in text and "Entries kept of each task vector" in text
    stored = json.loads(page.with_suffix(".json").read_text("utf-8"))
    assert stored["compared"]["kept"]["backbone"]["law"] > 0
    assert stored["components"] == {"backbone": {"merge": 3}, "embeddings": {"merge": 1}}
    assert not (tmp_path / "out" / "page.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare"], "--compare shows task vectors on a page"),
        (["--html", "page.html", "--dry-run"], "--dry-run does not write one"),
        (["--html", "page.html", "--part", "1/2"], "--part does not write one"),
        (["--html", "page.html", "--sweep", "scale=0.1,0.5"], "--sweep does not write one"),
        (["--html", "mine.html"], "mine.html: would be overwritten"),
    ],
)
def test_pages_of_what_is_not_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.html").write_text("mine")
    ran = command("fuse", "nowhere.yaml", *words)
    assert ran.code in (1, 2) and said in ran.err and "nowhere" not in ran.err
    assert not Path("page.html").exists() and Path("mine.html").read_text() == "mine"
