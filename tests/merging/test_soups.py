"""Checkpoints of one run as one specialist, against the mean computed by hand in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import Tensors, random_model, read_model, write_model

from taskmerge import recipes
from taskmerge.errors import TaskmergeError
from taskmerge.merging import FusedStateDict, execute, plan
from taskmerge.numbers.rounding import decode

STEPS = (9, 10, 100, 200)


def run_of(folder: Path, base: Tensors, dtype: str = "F32") -> dict[int, Tensors]:
    """A trainer's folder: checkpoints whose names sort wrongly as text, each with the trainer's own files."""
    made = {}
    for step in STEPS:
        made[step] = random_model(step, dtype, near=base)
        here = write_model(folder / f"checkpoint-{step}", made[step])
        torch.save({"state": {0: {"exp_avg": torch.ones(3)}}}, here / "optimizer.pt")
        torch.save({"step": step}, here / "scheduler.pt")
        torch.save({"cpu": torch.ones(2)}, here / "rng_state.pth")
        torch.save({"lr": 0.1}, here / "training_args.bin")
        (here / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return made


def recipe_for(folder: Path, row: dict[str, Any], **merge: Any) -> recipes.Recipe:
    said = {"base": "base", "specialists": {"one": row}, "merge": {"method": "task_arithmetic", **merge}}
    return recipes.from_dict(said, folder)


def mean(made: dict[int, Tensors], name: str, factors: dict[int, float]) -> torch.Tensor:
    rows = [factors[step] * made[step][name].double() for step in factors]
    return torch.stack(rows).sum(0)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("last", [None, 3])
@pytest.mark.parametrize("ema", [None, 0.8])
def test_a_soup_is_the_mean_of_its_checkpoints(tmp_path: Path, dtype: str, last: int | None, ema: float | None) -> None:
    base = random_model(0, dtype)
    write_model(tmp_path / "base", base)
    made = run_of(tmp_path / "run", base, dtype)
    steps = STEPS[-last:] if last else STEPS
    factors = dict.fromkeys(steps, 1 / len(steps))
    if ema is not None:  # step by step, as the definition says
        factors = {}
        for step in steps:
            factors = {one: ema * factor for one, factor in factors.items()} | {step: 1 - ema if factors else 1.0}
    row = {"model": "run/checkpoint-*", "weight": 0.7, "last": last, "ema": ema}
    recipe = recipe_for(tmp_path, {key: value for key, value in row.items() if value is not None})
    decided = plan(recipe)
    fused = FusedStateDict(decided)
    tolerance = {"F32": 1e-6, "F64": 1e-12, "BF16": 8e-3, "F16": 1e-3}[dtype]
    for name, value in base.items():
        expected = value.double() + 0.7 * (mean(made, name, factors) - value.double())
        exact = expected.to(value.dtype).double().numpy().reshape(-1)
        got = decode(fused.read(name), dtype)
        np.testing.assert_allclose(got, exact, rtol=tolerance, atol=1e-12, err_msg=name)
        if dtype != "F64":  # rounded once: an entry in a hundred lies so near a tie that the order of a sum decides
            assert np.count_nonzero(got != exact) <= 1 + got.size // 100, name
    kind = "moving average" if ema else "mean"
    named = ", ".join(f"checkpoint-{step}" for step in steps)
    assert any(f"one: the {kind} of {len(steps)} checkpoints: {named}" in said for said in decided.warnings)


def test_streamed_to_disk_it_is_the_same_and_recorded(tmp_path: Path) -> None:
    base = random_model(0, "BF16")
    write_model(tmp_path / "base", base)
    run_of(tmp_path / "run", base, "BF16")
    recipe = recipe_for(tmp_path, {"model": "run/checkpoint-*", "last": 2}, method="ties", density=0.4)
    decided = plan(recipe)
    execute(decided, recipe, tmp_path / "out")
    written, fused = read_model(tmp_path / "out"), FusedStateDict(decided)
    for name in base:
        bits = written[name].contiguous().view(torch.int16).numpy().reshape(-1).view("<u2")
        np.testing.assert_array_equal(bits, fused.read(name))
    record = json.loads((tmp_path / "out" / "taskmerge.json").read_text())
    assert set(record["inputs"]["one"]["files"]) == {"0/model.safetensors", "1/model.safetensors"}


def test_equal_checkpoints_have_no_delta_at_all(tmp_path: Path) -> None:
    base = random_model(0)
    write_model(tmp_path / "base", base)
    for step in (1, 2, 3):
        write_model(tmp_path / "run" / f"checkpoint-{step}", base)
    fused = FusedStateDict(plan(recipe_for(tmp_path, {"model": "run/*", "weight": 1e6})))
    for name, value in base.items():
        np.testing.assert_array_equal(fused.read(name), value.numpy().reshape(-1))


def test_what_only_the_run_has_is_written_in_its_own_format(tmp_path: Path) -> None:
    base = random_model(0, "BF16")
    write_model(tmp_path / "base", base)
    extra = "multi_modal_projector.linear_1.weight"
    values = {step: torch.full((2, 2), float(step)).bfloat16() for step in (1, 2)}
    for step, value in values.items():
        write_model(tmp_path / "run" / f"checkpoint-{step}", {**base, extra: value})
    decided = plan(recipe_for(tmp_path, {"model": "run/checkpoint-?"}))
    fused = FusedStateDict(decided)
    assert fused.tensors[extra].dtype == "BF16"
    np.testing.assert_array_equal(decode(fused.read(extra), "BF16"), np.full(4, 1.5))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing is named so": ({"model": "run/ckpt-*"}, "no folder or file matches 'run/ckpt-*'"),
    "too few": ({"model": "run/checkpoint-*", "last": 9}, "last: 9, but there are 4 checkpoints"),
    "last without a pattern": ({"model": "run/checkpoint-9", "last": 2}, "last: 2 needs a pattern of checkpoints"),
    "a decay of one": ({"model": "run/checkpoint-*", "ema": 1.0}, "ema"),
    "other models among them": ({"model": "*/checkpoint-*"}, "not from the same run as"),
    "files of a trainer": ({"model": "run/checkpoint-9/*.pt"}, "optimizer.pt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_soup_is_refused(tmp_path: Path, case: str) -> None:
    row, words = REFUSED[case]
    base = random_model(0)
    write_model(tmp_path / "base", base)
    run_of(tmp_path / "run", base)
    write_model(tmp_path / "other" / "checkpoint-1", {"model.layers.0.norm.weight": torch.ones(9)})
    with pytest.raises(TaskmergeError) as caught:
        plan(recipe_for(tmp_path, row))
    assert words in str(caught.value)


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    base = random_model(0)
    write_model(tmp_path / "base", base)
    one = random_model(1, near=base)
    write_model(tmp_path / "run[1]", one)
    fused = FusedStateDict(plan(recipe_for(tmp_path, {"model": "run[1]"})))
    name = "model.layers.2.proj.weight"
    np.testing.assert_array_equal(fused.read(name), one[name].numpy().reshape(-1))
