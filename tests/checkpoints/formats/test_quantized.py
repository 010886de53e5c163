"""Scaled 8-bit floats are the numbers torch says they are; every other quantised format is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo
from safetensors.torch import load_file, save_file

from taskmerge import Checkpoint, fuse, recipes
from taskmerge import merging as fusion
from taskmerge.checkpoints.formats.quantized import dequantized, eight_bit_values
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.errors import CheckpointError, TaskmergeError


@pytest.mark.parametrize(("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_bit_pattern(name: str, dtype: torch.dtype) -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).double().numpy()
    np.testing.assert_array_equal(eight_bit_values(name), expected)


def quantise(folder: Path, out: Path, how: str) -> dict[str, torch.Tensor]:
    """Stores every projection as 8-bit floats; returns the numbers they stand for."""
    tensors, meant = {}, {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            tensors[name] = meant[name] = value
            continue
        rows, columns = value.shape
        if how == "blocks":
            scale = torch.rand(-(-rows // 16), -(-columns // 16)) * 0.01 + 0.001
            spread = scale.repeat_interleave(16, 0)[:rows].repeat_interleave(16, 1)[:, :columns]
            key = name + "_scale_inv"
        else:
            scale = torch.rand(rows, 1) * 0.01 + 0.001 if how == "rows" else torch.tensor(0.004)
            spread, key = scale.expand(rows, columns), name + "_scale"
            tensors[name.removesuffix("weight") + "input_scale"] = torch.tensor(1.0)
        tensors[name] = (value / spread).to(torch.float8_e4m3fn)
        tensors[key] = scale
        meant[name] = tensors[name].double() * spread.double()
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16] if how == "blocks" else None}
    config["dtype"] = "bfloat16"
    (out / "config.json").write_text(json.dumps(config))
    return meant


@pytest.mark.parametrize("how", ["blocks", "rows", "one scale"])
def test_scaled_floats_are_merged_as_numbers(tmp_path: Path, how: str) -> None:
    kind = zoo.BY_NAME["Qwen3"]
    plain = zoo.save(kind.build(), tmp_path / "plain")
    other = zoo.save(zoo.perturb(kind.build(), 1), tmp_path / "other")
    meant = quantise(plain, tmp_path / "small", how)
    weights = dequantized(open_stored(tmp_path / "small"))
    assert set(weights.tensors) == set(meant)
    for name, value in meant.items():
        np.testing.assert_array_equal(weights.read(name), value.float().numpy().reshape(-1))
        np.testing.assert_array_equal(weights.read(name, 5, 29), value.float().numpy().reshape(-1)[5:29])
    recipe = recipes.from_dict(
        {"base": str(tmp_path / "small"), "specialists": {"one": {"model": str(other), "weight": 0.5}},
         "merge": {"method": "task_arithmetic"}}
    )  # fmt: skip
    fusion.execute(fusion.plan(recipe), recipe, tmp_path / "out")
    opened: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, info = opened
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == torch.bfloat16
    theirs = load_file(other / "model.safetensors")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        expected = meant[name].double() + 0.5 * (theirs[name].double() - meant[name].double())
        torch.testing.assert_close(value.double(), expected, rtol=2**-8, atol=1e-9)


def test_python_programs_see_numbers_too(tmp_path: Path) -> None:
    """Task vectors and `fuse` of scaled 8-bit floats, as specialist and as base."""
    kind = zoo.BY_NAME["Qwen3"]
    plain = zoo.save(kind.build(), tmp_path / "plain")
    meant = quantise(plain, tmp_path / "small", "blocks")
    small, large = (
        Checkpoint.open(tmp_path / "small"),
        Checkpoint.open(zoo.save(zoo.perturb(kind.build(), 1), tmp_path / "one")),
    )
    vector = large - small
    assert set(vector) == set(meant) and not vector.own
    moved, fused = small + 0.5 * vector, fuse(small, {"one": large}, "sum", weights=0.5)
    back = small - large
    for name, value in meant.items():
        other = large[name].double()
        torch.testing.assert_close(vector[name].double(), other - value, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(back[name].double(), value - other, rtol=1e-6, atol=1e-7)
        for model in (moved, fused):
            torch.testing.assert_close(model[name].double(), (value + other) / 2, rtol=1e-2, atol=1e-6)
    assert small["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float8_e4m3fn  # opened as it is stored


@pytest.mark.parametrize(
    ("tensors", "method"),
    [
        ({"a.qweight": np.zeros((4, 4), "i4"), "a.qzeros": np.zeros((1, 4), "i4")}, "gptq"),
        ({"a.weight": np.zeros((8, 1), "u1"), "a.weight.absmax": np.zeros(1, "f4")}, "bitsandbytes"),
        ({"a.weight": np.zeros((8, 4), "i1"), "a.SCB": np.zeros(8, "f4")}, "bitsandbytes"),
        ({"a.down_proj_blocks": np.zeros((8, 4), "u1"), "a.down_proj_scales": np.zeros(8, "u1")}, "mxfp4"),
        ({"a.weight_packed": np.zeros((8, 4), "i4")}, "compressed-tensors"),
    ],
)
def test_other_formats_are_refused_by_name(tensors: dict[str, np.ndarray], method: str) -> None:
    weights = MemoryStateDict(tensors, "small model", {"quantization_config": {"quant_method": method}})
    with pytest.raises(CheckpointError, match=f"quantised by {method}") as caught:
        dequantized(weights)
    assert "small model: a." in str(caught.value)


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    kind = zoo.BY_NAME["Qwen3"]
    quantise(zoo.save(kind.build(), tmp_path / "plain"), tmp_path / "small", "blocks")
    path = tmp_path / "small" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("_scale_inv"))
    save_file(tensors | {name: torch.ones(5, 7)}, path, {"format": "pt"})
    with pytest.raises(TaskmergeError, match=r"scales of shape \[5, 7\]"):
        dequantized(open_stored(tmp_path / "small"))
    save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    weights = dequantized(open_stored(tmp_path / "small"))
    assert weights.tensors[name.removesuffix("_scale_inv")].dtype == "F8_E4M3"  # left to a rule
