"""Experts in gpt-oss' MXFP4: read and written as transformers reads them, merged, and left alone byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import write_recipe
from few_bits import check_nearest_in_mxfp4, gpt_oss, read_gpt_oss
from safetensors.torch import load_file, save_file

from taskmerge import recipes
from taskmerge.errors import CheckpointError
from taskmerge.merging import execute, plan
from taskmerge.merging.verify import verify

UP, DOWN = (f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
SIZES = {UP: (3, 64, 96), DOWN: (3, 64, 64)}
SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def experts(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) * 0.02 for name, size in SIZES.items()}


def save(folder: Path, held: dict[str, torch.Tensor], settings: dict[str, Any] | None = SETTINGS) -> None:
    folder.mkdir()
    plain = {"model.embed_tokens.weight": torch.ones(16, 64).bfloat16(), "model.norm.weight": torch.ones(64).bfloat16(),
             f"{UP}_bias": torch.ones(3, 96).bfloat16()}  # fmt: skip
    save_file({**plain, **held}, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "gpt_oss", "dtype": "bfloat16"} | ({"quantization_config": settings} if settings else {})
    (folder / "config.json").write_text(json.dumps(config))


def packed(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for name, one in values.items() for key, value in gpt_oss(name, one).items()}


def fused(tmp_path: Path) -> dict[str, torch.Tensor]:
    write_recipe(tmp_path, base="base", specialists={"tuned": {"model": "tuned", "weight": 0.5}},
                 merge={"method": "task_arithmetic"}, output={"path": "out", "quantized": True})  # fmt: skip
    recipe = recipes.load(tmp_path / "merge.yaml")
    decided = plan(recipe)
    assert any("2 weights are stored as in the base: MXFP4" in note for note in decided.notes)
    execute(decided, recipe, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    return load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("plain", [False, True], ids=["specialist packed", "specialist in bf16"])
def test_one_expert_moves(plain: bool, tmp_path: Path) -> None:
    base, other = experts(0), experts(1)
    save(tmp_path / "base", packed(base))
    before = load_file(tmp_path / "base" / "model.safetensors")
    tuned = {name: read_gpt_oss(before, name) for name in SIZES}
    tuned[DOWN][1] += other[DOWN][1] * 0.3
    if plain:
        tuned = {name: value.bfloat16().contiguous() for name, value in tuned.items()}
        save(tmp_path / "tuned", tuned, None)
    else:
        save(tmp_path / "tuned", packed(tuned))
        tuned = {name: read_gpt_oss(load_file(tmp_path / "tuned" / "model.safetensors"), name) for name in SIZES}
    found = fused(tmp_path)
    assert found.keys() == before.keys()
    for name in before:
        if not name.startswith(DOWN):
            assert torch.equal(found[name], before[name]), name
    for expert in (0, 2):
        assert torch.equal(found[f"{DOWN}_blocks"][expert], before[f"{DOWN}_blocks"][expert])
        assert torch.equal(found[f"{DOWN}_scales"][expert], before[f"{DOWN}_scales"][expert])
    exact = read_gpt_oss(before, DOWN) + 0.5 * (tuned[DOWN].double() - read_gpt_oss(before, DOWN))
    turned = (read_gpt_oss(found, DOWN).transpose(1, 2)[1], exact.transpose(1, 2)[1])
    check_nearest_in_mxfp4(found[f"{DOWN}_scales"][1], *turned)


def test_as_transformers_reads_it() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored = packed(experts(3))
    theirs = convert_moe_packed_tensors(stored[f"{DOWN}_blocks"], stored[f"{DOWN}_scales"], dtype=torch.float32)
    assert torch.equal(theirs.double(), read_gpt_oss(stored, DOWN))


def test_blocks_without_their_scales_are_named(tmp_path: Path) -> None:
    held = packed(experts(0))
    del held[f"{DOWN}_scales"]
    save(tmp_path / "base", held)
    save(tmp_path / "tuned", held)
    with pytest.raises(Exception, match="down_proj_scales, which is missing") as told:
        fused(tmp_path)
    assert isinstance(told.value, CheckpointError) or "down_proj_blocks" in str(told.value)


@pytest.mark.slow
def test_loaded_and_run_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    model = GptOssForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    said = {**json.loads((tmp_path / "plain" / "config.json").read_text()), "quantization_config": SETTINGS}
    for label in ("base", "tuned"):
        held: dict[str, torch.Tensor] = {}
        for name, value in plain.items():
            noise = torch.randn(value.shape) * 0.02 if label == "tuned" and "layers.1.mlp.experts" in name else 0
            experts_ = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
            held |= gpt_oss(name, value.float() + noise) if experts_ else {name: value}
        (tmp_path / label).mkdir()
        save_file(held, tmp_path / label / "model.safetensors", {"format": "pt"})
        (tmp_path / label / "config.json").write_text(json.dumps(said))
    write_recipe(tmp_path, base="base", specialists={"tuned": {"model": "tuned", "weight": 0.5}},
                 merge={"method": "task_arithmetic"}, output={"path": "out", "quantized": True})  # fmt: skip
    recipe = recipes.load(tmp_path / "merge.yaml")
    execute(plan(recipe), recipe, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("layers.1.mlp.experts" in name for name in changed)
    logits = {}
    for name in ("base", "out"):
        opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        loaded, told = opened
        assert not any(told.values()), told
        with torch.no_grad():
            logits[name] = loaded(torch.arange(12)[None]).logits
    assert torch.isfinite(logits["out"]).all() and not torch.equal(logits["base"], logits["out"])
