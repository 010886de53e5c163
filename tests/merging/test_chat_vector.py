"""A text model's task vector into a vision-language model: the language layers move, the eyes do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.merging import execute, plan


def text_sides(folder: Path, kind: zoo.Kind, text_config: Any) -> tuple[Path, Path]:
    """The language model inside a vision-language model as a model of its own, and the same after training."""
    left = ("model_type", "architectures")
    config = {key: value for key, value in text_config.to_dict().items() if key not in left}
    text = dataclasses.replace(kind, config=config)
    start = text.build(seed=3)
    zoo.save(start, folder / "instruct-base")
    zoo.save(zoo.perturb(start, 5), folder / "instruct")
    return folder / "instruct-base", folder / "instruct"


@pytest.mark.parametrize(("vlm_kind", "text_kind"), [("LLaVA", "Llama"), ("Qwen2-VL", "Qwen2"), ("Qwen3-VL", "Qwen3")])
def test_only_the_language_model_moves(tmp_path: Path, vlm_kind: str, text_kind: str) -> None:
    vlm = zoo.BY_NAME[vlm_kind].build(seed=0)
    zoo.save(vlm, tmp_path / "vlm")
    before, after = text_sides(tmp_path, zoo.BY_NAME[text_kind], vlm.config.get_text_config())
    said = {
        "base": "vlm",
        "specialists": {"chat": {"model": after.name, "base": before.name, "weight": 0.6}},
        "merge": {"method": "task_arithmetic"},
    }
    recipe = recipes.from_dict(said, tmp_path)
    execute(plan(recipe), recipe, tmp_path / "out")
    out = type(vlm).from_pretrained(tmp_path / "out").state_dict()
    start = type(vlm).from_pretrained(tmp_path / "vlm").state_dict()
    one, two = open_stored(after), open_stored(before)
    moved = 0
    for name in one.tensors:
        inner = name.removeprefix("model.")
        own = [theirs for theirs in start if theirs.endswith(f"language_model.{inner}") or theirs == name]
        if not own:
            continue
        (theirs,) = own
        delta = one.read(name).astype(float) - two.read(name).astype(float)
        expected = start[theirs].double().numpy().reshape(-1) + 0.6 * delta
        np.testing.assert_allclose(out[theirs].numpy().reshape(-1), expected, rtol=2e-6, atol=1e-6, err_msg=name)
        moved += bool(delta.any())
        del start[theirs]
    assert moved >= 15
    for name, value in start.items():
        if "lm_head" not in name:
            assert torch.equal(out[name], value), name
