"""Merged models in few bits, opened and run by the libraries that write such models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import write_recipe
from few_bits import FP8, INT4, fp8, int4, read_int4
from safetensors.torch import load_file, save_file

from taskmerge import recipes
from taskmerge.merging import execute, plan

pytestmark = pytest.mark.slow
Store = Callable[[str, torch.Tensor], dict[str, torch.Tensor]]


def quantised(
    plain: dict[str, torch.Tensor], folder: Path, config: dict[str, Any], store: Store, within: str = ""
) -> None:
    held: dict[str, torch.Tensor] = {}
    for name, value in plain.items():
        if value.ndim == 2 and name.endswith("_proj.weight") and within in name:
            held |= store(name.removesuffix(".weight"), value.float())
        else:
            held[name] = value
    folder.mkdir()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def merged_and_run(
    folder: Path, model: Any, settings: dict[str, Any], store: Store, moved: str, within: str = ""
) -> torch.Tensor:
    """The model with noise on the weights whose names hold `moved`, merged at half strength, loaded and run: logits.

    within: of which weights, by a part of their names, few bits are stored.
    """
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder / "plain")
    plain = load_file(folder / "plain" / "model.safetensors")
    config = {**json.loads((folder / "plain" / "config.json").read_text()), "quantization_config": settings}
    generator = torch.Generator().manual_seed(1)
    tuned = {
        name: (one + torch.randn(one.shape, generator=generator) * 0.02).to(one.dtype) if moved in name else one
        for name, one in plain.items()
    }
    quantised(plain, folder / "base", config, store, within)
    quantised(tuned, folder / "tuned", config, store, within)
    write_recipe(folder, base="base", specialists={"t": {"model": "tuned", "weight": 0.5}},
                 merge={"method": "task_arithmetic"}, output={"path": "out", "quantized": True})  # fmt: skip
    recipe = recipes.load(folder / "merge.yaml")
    execute(plan(recipe), recipe, folder / "out")
    before, after = (load_file(folder / name / "model.safetensors") for name in ("base", "out"))
    changed = {
        name for name in before if not torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
    }
    assert changed and all(moved in name for name in changed)
    logits = {}
    for name in ("base", "out"):
        with torch.no_grad():
            opened: Any = AutoModelForCausalLM.from_pretrained(folder / name, output_loading_info=True)
            loaded, told = opened
            assert not any(told.values()), told
            logits[name] = loaded(torch.arange(12)[None]).logits
    assert torch.isfinite(logits["out"]).all() and not torch.equal(logits["base"], logits["out"])
    return logits["out"]


def mixture() -> Any:
    """A DeepSeek-V3, which Kimi-K2 is too, of two layers."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=128, hidden_size=128, intermediate_size=128, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16,
        qk_nope_head_dim=16, v_head_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config).bfloat16()


def test_a_mixture_of_experts_in_fp8(tmp_path: Path) -> None:
    settings = {**FP8, "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"], "dequantize": True}
    merged_and_run(tmp_path, mixture(), settings, fp8, ".experts.")


@pytest.mark.parametrize("moved", [".mlp.experts.", "o_proj"])
def test_a_mixture_of_experts_in_four_bits(moved: str, tmp_path: Path) -> None:
    """As Kimi-K2-Thinking is stored: routed experts in 4 bits, all else in bf16 and named under `ignore`.

    What `ignore` does not name transformers takes for packed, whatever the file holds: that was the trouble with a base
    whose kv_a_proj_with_mqa was plain.
    """
    from transformers import AutoModelForCausalLM

    pytest.importorskip("compressed_tensors")
    ignored = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
    settings = {**INT4, "ignore": ignored, "quantization_status": "compressed"}
    found = merged_and_run(tmp_path, mixture(), settings, int4, moved, ".mlp.experts.")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    plain = {name: value for name, value in stored.items() if ".weight_" not in name}
    for name in stored:
        if name.endswith(".weight_packed"):
            module = name.removesuffix(".weight_packed")
            plain[f"{module}.weight"] = read_int4(stored, module).bfloat16()
    (tmp_path / "read").mkdir()
    save_file(plain, tmp_path / "read" / "model.safetensors", {"format": "pt"})
    (tmp_path / "read" / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "read")(torch.arange(12)[None]).logits
    assert torch.equal(found, expected)


def test_a_dense_model_of_compressed_tensors(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors import unpack_from_int32
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    value = torch.randn(48, 128)
    stored = int4("m", value)
    theirs = unpack_from_int32(stored["m.weight_packed"], 4, value.shape).double()
    assert torch.equal(theirs * stored["m.weight_scale"].double().repeat_interleave(32, 1), read_int4(stored, "m"))
    config = LlamaConfig(vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4)  # fmt: skip
    settings = {**INT4, "ignore": ["lm_head"], "quantization_status": "compressed"}
    merged_and_run(tmp_path, LlamaForCausalLM(config).bfloat16(), settings, int4, "o_proj")
