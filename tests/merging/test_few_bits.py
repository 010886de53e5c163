"""Models in few bits, merged and stored as they were: what does not move keeps its bytes, the rest is the nearest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import write_recipe
from few_bits import (
    BLOCK,
    FP8,
    GROUP,
    INT4,
    MXFP4,
    check_nearest_in_mxfp4,
    fp8,
    int4,
    mxfp4,
    read_fp8,
    read_int4,
    read_mxfp4,
)
from safetensors.torch import load_file, save_file

from taskmerge import recipes
from taskmerge.errors import RecipeError
from taskmerge.merging import execute, plan
from taskmerge.merging.parts import Job, execute_part
from taskmerge.merging.verify import verify
from taskmerge.words.parts import Part

ATTENTION = "model.layers.0.self_attn.o_proj"
EXPERTS = [f"model.layers.0.mlp.experts.{i}.up_proj" for i in range(3)]
SIZES = {ATTENTION: (192, 256), **dict.fromkeys(EXPERTS, (160, 256))}


def numbers(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) * 0.02 for name, size in SIZES.items()}


KINDS: list[Any] = [
    pytest.param(fp8, read_fp8, FP8, id="fp8"),
    pytest.param(int4, read_int4, INT4, id="int4"),
    pytest.param(mxfp4, read_mxfp4, MXFP4, id="mxfp4"),
]


def save(folder: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    plain = {
        "model.embed_tokens.weight": torch.ones(16, 256).bfloat16(),
        "model.norm.weight": torch.ones(256).bfloat16(),
    }
    save_file({**plain, **tensors}, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "deepseek_v3", "dtype": "bfloat16", "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))


def adapter(folder: Path) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(9)
    rows, columns = SIZES[ATTENTION]
    start = f"base_model.model.{ATTENTION}"
    held = {f"{start}.lora_A.weight": torch.randn(4, columns, generator=generator),
            f"{start}.lora_B.weight": torch.randn(rows, 4, generator=generator) * 1e-3}  # fmt: skip
    save_file(held, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(said))


def merged(tmp_path: Path, **specialists: Any) -> dict[str, torch.Tensor]:
    write_recipe(
        tmp_path, base="base", specialists=specialists, merge={"method": "task_arithmetic"},
        output={"path": "out", "quantized": True, "shard_size": 60_000},
    )  # fmt: skip
    recipe = recipes.load(tmp_path / "merge.yaml")
    decided = plan(recipe)
    assert any("weights are stored as in the base" in note for note in decided.notes)
    execute(decided, recipe, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    for number in range(1, 4):
        execute_part(Job(plan(recipe), recipe, tmp_path / "parts"), Part(number, 3))
    execute(plan(recipe), recipe, tmp_path / "parts", finish=True)
    found: dict[str, torch.Tensor] = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
        found |= load_file(path)
    return found


@pytest.mark.parametrize(("store", "read", "settings"), KINDS)
def test_an_adapter_of_attention_leaves_the_experts_their_bytes(
    store: Any, read: Any, settings: Any, tmp_path: Path
) -> None:
    held = {key: value for name, one in numbers(0).items() for key, value in store(name, one).items()}
    save(tmp_path / "base", held, settings)
    adapter(tmp_path / "lora")
    found = merged(tmp_path, lora={"model": "base", "adapter": "lora", "weight": 0.5})
    before = load_file(tmp_path / "base" / "model.safetensors")
    assert found.keys() == before.keys()
    moved = {name for name in before if not torch.equal(found[name].view(torch.uint8), before[name].view(torch.uint8))}
    assert moved and all(name.startswith(ATTENTION) for name in moved)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == settings
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{ATTENTION}.lora_{x}.weight"].double() for x in "AB")
    exact = read(before, ATTENTION) + 0.5 * 2 * (b @ a)
    check_nearest(read, found, ATTENTION, exact)


@pytest.mark.parametrize(("store", "read", "settings"), KINDS)
def test_experts_that_move_are_within_half_a_step(store: Any, read: Any, settings: Any, tmp_path: Path) -> None:
    first, other = numbers(0), numbers(1)
    moved = EXPERTS[1]
    save(tmp_path / "base", {k: v for n, one in first.items() for k, v in store(n, one).items()}, settings)
    changed = {**first, moved: first[moved] + other[moved]}
    changed[moved][:BLOCK] = first[moved][:BLOCK]  # some blocks of a tensor do not move
    save(tmp_path / "tuned", {k: v for n, one in changed.items() for k, v in store(n, one).items()}, settings)
    found = merged(tmp_path, tuned={"model": "tuned", "weight": 0.25})
    before, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned"))
    for name in before:
        if not name.startswith(moved):
            assert torch.equal(found[name].view(torch.uint8), before[name].view(torch.uint8)), name
    exact = read(before, moved) + 0.25 * (read(tuned, moved) - read(before, moved))
    check_nearest(read, found, moved, exact)
    assert torch.equal(read(found, moved)[:BLOCK], read(before, moved)[:BLOCK])


def check_nearest(read: Any, found: dict[str, torch.Tensor], name: str, exact: torch.Tensor) -> None:
    """Every number within half a step of what it should be, as its stored scale has it."""
    error = (read(found, name) - exact).abs()
    if read is read_int4:
        step = found[f"{name}.weight_scale"].double().repeat_interleave(GROUP, 1)
        assert (error <= step * (0.5 + 1e-6)).all()
        assert error.max() > 0
        return
    if read is read_mxfp4:
        check_nearest_in_mxfp4(found[f"{name}.weight_scale"], read(found, name), exact)
        return
    stored = found[f"{name}.weight"]
    rows, columns = stored.shape
    scale = found[f"{name}.weight_scale_inv"].double().repeat_interleave(BLOCK, 0)[:rows]
    scale = scale.repeat_interleave(BLOCK, 1)[:, :columns]
    nearest = (exact / scale).clamp(-448, 448).float().to(torch.float8_e4m3fn).double() * scale
    assert ((read(found, name) - exact).abs() <= (nearest - exact).abs() * (1 + 1e-6) + 1e-12).all()
    assert (error <= exact.abs() / 16 + scale * 2.0**-10 + 1e-12).all()


def test_eight_bits_as_torch_rounds_them() -> None:
    from taskmerge.checkpoints.formats.packed import nearest_eight_bits

    values = np.concatenate([np.random.default_rng(0).standard_normal(100_000) * 10.0 ** np.arange(-5, 3).repeat(12500),
                             np.arange(-448, 448, 0.5), np.arange(-64, 64) * 2.0**-10, [0.0, -0.0]])  # fmt: skip
    values = values.astype(np.float32)
    for dtype, name, top in ((torch.float8_e4m3fn, "F8_E4M3", 448), (torch.float8_e5m2, "F8_E5M2", 57344)):
        expected = torch.from_numpy(values).clamp(-top, top).to(dtype).view(torch.uint8).numpy()
        assert np.array_equal(nearest_eight_bits(values.astype(np.float64), name), expected)


def test_a_base_without_few_bits_is_told(tmp_path: Path) -> None:
    save(tmp_path / "base", {f"{ATTENTION}.weight": torch.ones(64, 64)}, {})
    (tmp_path / "base" / "config.json").write_text("{}")
    write_recipe(tmp_path, base="base", specialists={"a": "base"}, output={"path": "out", "quantized": True})
    with pytest.raises(RecipeError, match="no quantised weights"):
        plan(recipes.load(tmp_path / "merge.yaml"))
