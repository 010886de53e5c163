"""Every class of checkpoint, saved in every way users save it: fused, reloaded, compared with live modules.

The reference never sees taskmerge: transformers loads base and specialists with the base's own class, the float64
formula merges what it saved, transformers loads that. A new class is one row of `zoo.KINDS`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored

SHARD = "12KB"
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Saved:
    """A way of saving. loader: "full", "AutoModel"; sharded; original: file names as the hub has them."""

    loader: str = "full"
    dtype: str = "float32"
    sharded: bool = False
    original: bool = True


# How base and both specialists were saved, and the method that merges them.
SETTINGS: dict[str, tuple[Saved, Saved, Saved, str]] = {
    "task_arithmetic, base full": (Saved(), Saved("AutoModel"), Saved(original=False), "task_arithmetic"),
    "ties, base AutoModel": (Saved("AutoModel"), Saved(sharded=True), Saved("AutoModel"), "ties"),
    "task_arithmetic, bf16 sharded": (
        Saved(dtype="bfloat16", sharded=True),
        Saved(dtype="bfloat16"),
        Saved(dtype="float16", sharded=True),
        "task_arithmetic",
    ),
    "ties, names of memory": (Saved(original=False), Saved(), Saved(sharded=True), "ties"),
}
WEIGHTS = (0.6, 0.3)
OPTIONS: dict[str, dict[str, float]] = {"task_arithmetic": {"scale": 0.8}, "ties": {"density": 0.5, "scale": 0.9}}


def model_class(kind: zoo.Kind, way: Saved) -> Any:
    import transformers

    return transformers.AutoModel if way.loader == "AutoModel" and kind.auto else getattr(transformers, kind.classes[0])


def load(kind: zoo.Kind, way: Saved, folder: Path) -> tuple[Any, dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return model_class(kind, way).from_pretrained(
            folder, output_loading_info=True, dtype=TORCH[way.dtype], attn_implementation="eager"
        )


def write(model: Any, way: Saved, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(TORCH[way.dtype]).save_pretrained(
            folder, max_shard_size=SHARD if way.sharded else "5GB", save_original_format=way.original
        )
    return folder


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(kind, seed, way) -> folder. seed 0 is the base; a specialist is the base moved by its seed."""
    root = tmp_path_factory.mktemp("library")

    @cache
    def folder(name: str, seed: int, way: Saved) -> Path:
        kind = zoo.BY_NAME[name]
        place = root / name.replace(" ", "_") / str(seed)
        plain = Saved()
        if way == plain:
            model = kind.build()
            return write(zoo.perturb(model, seed) if seed else model, way, place / "full")
        model, _ = load(kind, Saved(way.loader), folder(name, seed, plain))
        return write(model, way, place / repr(way).replace("'", ""))

    return folder


# ---------------------------------------------------------------------------------------------------- the formula


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def formula(method: str, base: np.ndarray, deltas: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """float64 in and out. TIES: arXiv 2306.01708, trimmed per tensor, magnitudes compared as float32."""
    options = OPTIONS[method]
    if method == "task_arithmetic":
        return base + options["scale"] * sum(w * d for w, d in zip(weights, deltas, strict=True))
    trimmed = []
    for delta in deltas:
        size = np.abs(delta).astype(np.float32).ravel()
        keep = max(1, int(options["density"] * size.size))
        trimmed.append(np.where(np.abs(delta).astype(np.float32) >= np.sort(size)[-keep], delta, 0.0))
    weighted = [w * d for w, d in zip(weights, trimmed, strict=True)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    total, share = np.zeros_like(base), np.zeros_like(base)
    for w, d, wd in zip(weights, trimmed, weighted, strict=True):
        agrees = (d * sign) > 0
        total += np.where(agrees, wd, 0.0)
        share += np.where(agrees, w, 0.0)
    return base + options["scale"] * np.divide(total, share, out=np.zeros_like(total), where=share > 0)


def by_file_tensor(method: str, base: np.ndarray, deltas: list[np.ndarray], weights: list[float], parts: int) -> Any:
    """The formula on each tensor of the file. parts: 0, or how many of an expert's tensors memory packs as rows of
    (experts, rows, columns)."""
    if not parts:
        return formula(method, base, deltas, weights)
    merged = np.empty_like(base)
    for expert in range(base.shape[0]):
        for rows in np.array_split(np.arange(base.shape[1]), parts):
            merged[expert, rows] = formula(method, base[expert, rows], [d[expert, rows] for d in deltas], weights)
    return merged


def expected_model(kind: zoo.Kind, library: Any, setting: str) -> Any:
    """The same merge on live modules, all loaded by the base's own class; newly made tensors take no part."""
    base_way, *ways, method = SETTINGS[setting]
    base, _ = load(kind, base_way, library(kind.name, 0, base_way))
    loaded = [
        load(kind, Saved(base_way.loader, way.dtype), library(kind.name, seed, way))
        for seed, way in enumerate(ways, start=1)
    ]
    merged = {}
    for name, tensor in base.state_dict().items():
        sharing = [i for i, (_, info) in enumerate(loaded) if name not in info["missing_keys"]]
        merged[name] = tensor
        if tensor.dtype.is_floating_point and torch.isfinite(tensor).all() and sharing:
            start = tensor.double().numpy()
            deltas = [loaded[i][0].state_dict()[name].double().numpy() - start for i in sharing]
            packed = base_way.original and ".experts." in name and tensor.dim() == 3
            parts = 0 if not packed else 2 if name.endswith("gate_up_proj") else 1
            value = by_file_tensor(method, start, deltas, [WEIGHTS[i] for i in sharing], parts)
            merged[name] = torch.from_numpy(np.asarray(value)).to(tensor.dtype)
    base.load_state_dict(merged)
    return base


# ------------------------------------------------------------------------------------------------------ the matrix


def recipe_for(kind: zoo.Kind, library: Any, setting: str) -> recipes.Recipe:
    base_way, *ways, method = SETTINGS[setting]
    folders = [library(kind.name, seed, way) for seed, way in enumerate(ways, start=1)]
    return recipes.from_dict(
        {
            "base": str(library(kind.name, 0, base_way)),
            "specialists": {
                label: {"model": str(folder), "weight": weight}
                for label, folder, weight in zip(("first", "second"), folders, WEIGHTS, strict=True)
            },
            "merge": {"method": method, **OPTIONS[method]},
            "output": {"path": "out", "shard_size": SHARD if base_way.sharded else "5GB"},
        }
    )


def fuse(recipe: recipes.Recipe, out: Path) -> Path:
    fusion.execute(fusion.plan(recipe), recipe, out)
    return out


def outputs(kind: zoo.Kind, model: Any) -> list[torch.Tensor]:
    wanted = {
        name: value.to(model.dtype) if value.is_floating_point() else value for name, value in kind.inputs().items()
    }
    with torch.no_grad():
        found = model.eval()(**wanted)
    return [value for value in found.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point()]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", zoo.KINDS, ids=lambda kind: kind.name)
def test_the_matrix(kind: zoo.Kind, setting: str, library: Any, tmp_path: Path) -> None:
    base_way = SETTINGS[setting][0]
    out = fuse(recipe_for(kind, library, setting), tmp_path / "out")
    assert set(read_all(out)) == set(read_all(library(kind.name, 0, base_way)))
    fused, info = load(kind, base_way, out)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = expected_model(kind, library, setting)
    rounding: dict[str, Any] = (
        {"rtol": 2e-6, "atol": 1e-7} if base_way.dtype == "float32" else {"rtol": 2**-7, "atol": 1e-6}
    )
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], tensor, msg=partial("{}: {}".format, name), **rounding)
    ours, theirs = outputs(kind, fused), outputs(kind, expected)
    assert ours and len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs, strict=True):
        tolerance = 1e-4 if base_way.dtype == "float32" else 0.1
        torch.testing.assert_close(mine, yours, rtol=tolerance, atol=tolerance, equal_nan=True)


def fused_in_memory(base: Path, specialists: dict[str, tuple[Path, float]], method: str) -> dict[str, np.ndarray]:
    rows = {label: {"model": str(folder), "weight": weight} for label, (folder, weight) in specialists.items()}
    settings = {"method": method, **OPTIONS[method], "scale": 1.0}
    weights = fusion.FusedStateDict(
        fusion.plan(recipes.from_dict({"base": str(base), "specialists": rows, "merge": settings}))
    )
    return {name: weights.read(name) for name in weights.tensors}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("kind", zoo.KINDS, ids=lambda kind: kind.name)
def test_identity_nothing_and_order(kind: zoo.Kind, library: Any) -> None:
    """One specialist at weight 1 is that specialist; weight 0 is the base; the order of specialists does not matter.
    All bit for bit, ±inf bounds and integers included."""
    base, first, second = (library(kind.name, seed, Saved()) for seed in (0, 1, 2))
    stored = {folder: open_stored(folder) for folder in (base, first)}
    values = {folder: {name: own.read(name) for name in own.tensors} for folder, own in stored.items()}
    assert_same(fused_in_memory(base, {"one": (first, 1.0)}, "task_arithmetic"), values[first])
    assert_same(fused_in_memory(base, {"one": (first, 0.0)}, "task_arithmetic"), values[base])
    pair = {"one": (first, 0.6), "two": (second, 0.3)}
    assert_same(fused_in_memory(base, pair, "ties"), fused_in_memory(base, dict(reversed(pair.items())), "ties"))
