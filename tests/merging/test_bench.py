"""Many merges of one opening: the bits of a fuse of its own every time, and nothing decomposed or measured twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read_model, same_bits

from taskmerge.embedders.putting import put
from taskmerge.merging import execute, plan
from taskmerge.merging.bench import Bench, changed
from taskmerge.methods import all_methods
from taskmerge.recipes import from_dict

SPECIALISTS = {"a": "a", "b": "b"}
WITHOUT = ("regmean", "nearswap", "arcee_fusion")
"""Methods that need covariances beside the models, or take one specialist."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and two specialists with matrices, vectors and a token table."""
    from checkpoint_files import write_model

    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shapes = {"embed_tokens.weight": (20, 16), "layers.0.mlp.weight": (24, 16), "layers.0.norm.weight": (16,),
              "layers.1.mlp.weight": (24, 16), "layers.1.norm.weight": (16,)}  # fmt: skip
    base = {name: random(*shape) for name, shape in shapes.items()}
    write_model(folder / "base", base)
    for name in SPECIALISTS:
        write_model(folder / name, {key: value + 0.1 * random(*value.shape) for key, value in base.items()})
    return folder


def recipe_of(folder: Path, weights: tuple[float, float], merge: dict[str, Any]) -> Any:
    named = {name: {"model": name, "weight": weight} for name, weight in zip(SPECIALISTS, weights, strict=True)}
    return from_dict({"base": "base", "specialists": named, "merge": merge}, folder)


METHODS = [method.name for method in all_methods() if method.function.__module__.startswith("taskmerge.")]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WITHOUT])
def test_a_trial_has_the_bits_of_the_fused_file(models: Path, tmp_path: Path, method: str) -> None:
    """After other points, a live model that was merged into holds what a fuse of the last recipe writes."""
    points = [((0.3, 0.5), {"method": method, "scale": 0.7}), ((0.3, 0.5), {"method": method, "scale": 0.2}),
              ((0.9, 0.1), {"method": method, "scale": 0.2})]  # fmt: skip
    bench = Bench(recipe_of(models, *points[0]))
    live = {name: tensor.clone() for name, tensor in read_model(models / "base").items()}
    before = None
    for number, point in enumerate(points):
        recipe = recipe_of(models, *point)
        decided = bench.planned(recipe)
        put(live, bench.fused(decided), None if before is None else changed(before, decided))
        before = decided
        execute(plan(recipe), recipe, tmp_path / str(number))
        written = read_model(tmp_path / str(number))
        assert all(same_bits(live[name], written[name]) for name in written), (method, number)


def test_model_wide_thresholds_follow_what_varies_elsewhere(models: Path, tmp_path: Path) -> None:
    """With trim "model" a rule's density moves thresholds of its own tensors alone, an exempt tensor those of all."""
    merge = {"method": "ties", "trim": "model", "density": 0.3}
    rule = {"match": "layers.0.*", "method": "task_arithmetic"}
    points = [merge, {**merge, "rules": [rule]}, {**merge, "scale": 0.5}]
    bench = Bench(recipe_of(models, (0.3, 0.5), merge))
    live = {name: tensor.clone() for name, tensor in read_model(models / "base").items()}
    before = None
    for number, point in enumerate(points):
        recipe = recipe_of(models, (0.3, 0.5), point)
        decided = bench.planned(recipe)
        put(live, bench.fused(decided), None if before is None else changed(before, decided))
        before = decided
        execute(plan(recipe), recipe, tmp_path / str(number))
        written = read_model(tmp_path / str(number))
        assert all(same_bits(live[name], written[name]) for name in written), number


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call of a decomposition of torch, by name."""
    called: list[str] = []
    for name in ("svd", "qr", "eigh", "eigvalsh", "pinv", "solve"):
        original = getattr(torch.linalg, name)

        def counted(*arguments: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            called.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(torch.linalg, name, counted)
    return called


def merged(bench: Bench, recipe: Any) -> None:
    fused = bench.fused(bench.planned(recipe))
    for name in fused.tensors:
        fused.read(name)


@pytest.mark.parametrize("method", [m.name for m in all_methods() if m.whole_matrices])
def test_a_scale_costs_no_second_decomposition(models: Path, decompositions: list[str], method: str) -> None:
    bench = Bench(recipe_of(models, (0.3, 0.5), {"method": method}))
    merged(bench, bench.recipe)
    first = len(decompositions)
    assert first
    for scale in (0.1, 0.5, 2.0):
        merged(bench, recipe_of(models, (0.3, 0.5), {"method": method, "scale": scale}))
    assert len(decompositions) == first


@pytest.mark.parametrize("method", ["tsv", "star", "knots", "core"])
def test_weights_leave_the_task_vectors_own_spectra(models: Path, method: str) -> None:
    """What is decomposed of each task vector by itself, and their common bases, are found once for all weights."""
    bench = Bench(recipe_of(models, (0.3, 0.5), {"method": method}))
    merged(bench, bench.recipe)
    kinds = ("triplets", "common_columns")
    found = [bench.store.computed.get(kind, 0) for kind in kinds]
    merged(bench, recipe_of(models, (0.8, 0.2), {"method": method}))
    assert [bench.store.computed.get(kind, 0) for kind in kinds] == found and any(found)


@pytest.mark.parametrize(("method", "kind"), [("ties", "passes over a tensor"), ("model_stock", "passes over a tensor"),
                                              ("slerp", "passes over a tensor")])  # fmt: skip
def test_passes_over_tensors_are_made_once_for_all_weights(models: Path, method: str, kind: str) -> None:
    bench = Bench(recipe_of(models, (0.3, 0.5), {"method": method}))
    merged(bench, bench.recipe)
    passes = bench.store.computed[kind]
    assert passes == 5
    for weights in ((0.9, 0.5), (0.3, 0.1)):
        merged(bench, recipe_of(models, weights, {"method": method, "scale": 0.4}))
    assert bench.store.computed[kind] == passes


def test_only_what_moved_is_written_again(models: Path) -> None:
    rule = {"match": "layers.1.*", "weight": {"a": 0.9}}
    bench = Bench(recipe_of(models, (0.3, 0.5), {}))
    other = bench.planned(recipe_of(models, (0.3, 0.5), {"rules": [rule]}))
    assert changed(bench.plan, other) == ["layers.1.mlp.weight", "layers.1.norm.weight"]
    assert changed(bench.plan, bench.planned(bench.recipe)) == []


def test_what_finds_no_room_is_said_and_computed_again(models: Path, decompositions: list[str]) -> None:
    bench = Bench(recipe_of(models, (0.3, 0.5), {"method": "iso_c"}), memory=0)
    merged(bench, bench.recipe)
    first = len(decompositions)
    merged(bench, recipe_of(models, (0.3, 0.5), {"method": "iso_c", "scale": 0.5}))
    assert len(decompositions) == 2 * first and bench.store.left_out > 0


def test_layers_that_no_adapter_touches_are_left_alone(tmp_path: Path) -> None:
    """Of LoRA specialists under a sum only adapted layers are written, with the bits of a fuse."""
    import peft
    import zoo

    kind = zoo.BY_NAME["Qwen3"]
    zoo.save(kind.build(), tmp_path / "base")
    for seed, name in enumerate(SPECIALISTS, start=1):
        model = peft.get_peft_model(kind.build(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(str(tmp_path / name))

    def recipe(one: float, two: float) -> Any:
        rows = {name: {"model": "base", "adapter": name, "weight": weight}
                for name, weight in zip(SPECIALISTS, (one, two), strict=True)}  # fmt: skip
        return from_dict({"base": "base", "specialists": rows}, tmp_path)

    bench = Bench(recipe(0.3, 0.5))
    live = dict(bench_tensors(bench, bench.plan))
    decided = bench.planned(recipe(0.7, 0.1))
    names = changed(bench.plan, decided, bench.unmoved)
    assert names and all("q_proj" in name for name in names)
    put(live, bench.fused(decided), names)
    execute(plan(recipe(0.7, 0.1)), recipe(0.7, 0.1), tmp_path / "written")
    written = read_model(tmp_path / "written")
    assert all(same_bits(live[name], written[name]) for name in written)


def bench_tensors(bench: Bench, decided: Any) -> dict[str, torch.Tensor]:
    fused = bench.fused(decided)
    return {name: torch.from_numpy(fused.read(name).copy()).reshape(info.shape) for name, info in fused.tensors.items()}
