"""Packed modules and LoRA factors inside the weights: copied where all agree, refused where a delta touches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import Tensors, read_model, same_bits, write_model

from taskmerge import Checkpoint, recipes
from taskmerge.errors import TaskmergeError
from taskmerge.merging import FusedStateDict, execute, plan

LAYER = "model.layers.0.self_attn.q_proj"
FREE = "model.visual.merger.linear.weight"


def packed(way: str, seed: int = 0) -> Tensors:
    """One linear layer as a quantising library stores it."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-(2**31), 2**31 - 1, (4, 8), generator=generator, dtype=torch.int64).to(torch.int32)
    scales = torch.randn(2, 8, generator=generator).half()
    return {
        "gptq": {
            "qweight": whole, "qzeros": whole[:1].clone(), "scales": scales, "g_idx": torch.arange(8).int(),
        },
        "awq": {"qweight": whole, "qzeros": whole[:1].clone(), "scales": scales},
        "compressed-tensors": {
            "weight_packed": whole, "weight_scale": scales.bfloat16(), "weight_shape": torch.tensor([8, 32]),
        },
        "bitsandbytes": {
            "weight": whole.view(torch.uint8).reshape(-1, 1), "weight.absmax": scales.float().reshape(-1),
            "weight.quant_map": torch.linspace(-1, 1, 16),
            "weight.quant_state.bitsandbytes__nf4": torch.arange(9).byte(),
        },
    }[way]  # fmt: skip


def model(way: str, seed: int = 0, free: float = 1.0) -> Tensors:
    own = {f"{LAYER}.{leaf}": value for leaf, value in packed(way, seed).items()}
    return {**own, f"{LAYER}.bias": torch.full((8,), free), FREE: torch.full((3, 2), free),
            "model.layers.0.input_layernorm.weight": torch.full((8,), 2 * free)}  # fmt: skip


WAYS = ("gptq", "awq", "compressed-tensors", "bitsandbytes")


def write(folder: Path, tensors: Tensors, way: str | None) -> Path:
    config: dict[str, Any] = {"model_type": "llama"}
    return write_model(folder, tensors, config | ({"quantization_config": {"quant_method": way}} if way else {}))


def recipe_of(folder: Path, **more: Any) -> recipes.Recipe:
    said = {"base": "base", "specialists": {"one": {"model": "one", "weight": 0.5}}, **more}
    return recipes.from_dict(said, folder)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole specialist", "its projector alone"])
@pytest.mark.parametrize("way", WAYS)
def test_what_nobody_touches_is_copied_bit_for_bit(tmp_path: Path, way: str, whole: bool, dtype: str | None) -> None:
    base, one = model(way), model(way, free=3.0)
    if not whole:
        one = {FREE: one[FREE]}
    write(tmp_path / "base", base, way)
    write(tmp_path / "one", one, way)
    recipe = recipe_of(tmp_path, **({"output": {"dtype": dtype}} if dtype else {}))
    execute(plan(recipe), recipe, tmp_path / "out")
    out = read_model(tmp_path / "out")
    assert set(out) == set(base)
    for name in base:
        if name.startswith(LAYER) and not name.endswith("bias"):
            assert same_bits(out[name], base[name]), name
    np.testing.assert_array_equal(out[FREE].float(), np.full((3, 2), 2.0))
    assert '"quant_method"' in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("way", WAYS)
def test_what_a_specialist_changed_is_refused_by_name(tmp_path: Path, way: str) -> None:
    write(tmp_path / "base", model(way), way)
    write(tmp_path / "one", model(way, seed=1), way)
    recipe = recipe_of(tmp_path)
    with pytest.raises(TaskmergeError, match="differs between the base and one"):
        execute(plan(recipe), recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", ["base", "one"])
@pytest.mark.parametrize("way", WAYS)
def test_packed_on_one_side_alone_is_refused(tmp_path: Path, way: str, side: str) -> None:
    plain = {name: value for name, value in model(way).items() if not name.startswith(LAYER) or "bias" in name}
    plain[f"{LAYER}.weight"] = torch.ones(8, 32)
    for name in ("base", "one"):
        write(tmp_path / name, model(way) if name == side else plain, way if name == side else None)
    with pytest.raises(TaskmergeError) as caught:
        plan(recipe_of(tmp_path))
    assert "packed" in str(caught.value) and "dequantize" in str(caught.value)


def test_the_algebra_takes_no_task_vector_of_packed_numbers(tmp_path: Path) -> None:
    for name in ("base", "one"):
        write(tmp_path / name, model("gptq"), "gptq")
    with pytest.raises(TaskmergeError, match="quantised by gptq"):
        Checkpoint.open(tmp_path / "one") - Checkpoint.open(tmp_path / "base")


# ------------------------------------------------------------------------------------------------ factors inside


def with_factors(seed: int, adapters: tuple[str, ...], factors: int = 0, prefix: str = "") -> Tensors:
    """As Phi-4-multimodal stores a layer: the weight itself, and factors for each modality."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(100 + factors)
    own = {f"{prefix}{LAYER}.base_layer.weight": torch.randn(6, 5, generator=generator),
           f"{prefix}model.norm.weight": torch.randn(5, generator=generator)}  # fmt: skip
    for adapter in adapters:
        own[f"{prefix}{LAYER}.lora_A.{adapter}.weight"] = torch.randn(2, 5, generator=other)
        own[f"{prefix}{LAYER}.lora_B.{adapter}.weight"] = torch.randn(6, 2, generator=other)
    return own


BOTH = ("speech", "vision")


def test_equal_factors_are_kept_and_the_weights_merged(tmp_path: Path) -> None:
    base, one = with_factors(0, BOTH), with_factors(1, BOTH)
    write(tmp_path / "base", base, None)
    write(tmp_path / "one", one, None)
    recipe = recipe_of(tmp_path)
    execute(plan(recipe), recipe, tmp_path / "out")
    out = read_model(tmp_path / "out")
    for name, value in base.items():
        expected = value if "lora_" in name else (value.double() + 0.5 * (one[name].double() - value.double())).float()
        torch.testing.assert_close(out[name], expected, rtol=2e-7, atol=1e-9)


def test_other_factors_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "base", with_factors(0, BOTH), None)
    write(tmp_path / "one", with_factors(1, BOTH, factors=1), None)
    recipe = recipe_of(tmp_path)
    with pytest.raises(TaskmergeError, match=r"differs between the base and one \(a LoRA factor inside the weights"):
        execute(plan(recipe), recipe, tmp_path / "out")
    one = recipe_of(tmp_path, merge={"rules": [{"match": "*.lora_*", "keep": "one"}]})
    fused = FusedStateDict(plan(one))  # the way on that the message names
    name = f"{LAYER}.lora_A.speech.weight"
    np.testing.assert_array_equal(fused.read(name), with_factors(1, BOTH, factors=1)[name].numpy().reshape(-1))


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("where", ["config", "adapter_config"])
def test_factors_over_a_plain_base_are_folded(tmp_path: Path, where: str, prefix: str) -> None:
    one = with_factors(1, ("speech",), prefix=prefix)
    plain = {name.replace(".base_layer", ""): value for name, value in with_factors(0, ()).items()}
    write(tmp_path / "base", plain, None)
    settings = {"r": 2, "lora_alpha": 5}
    write_model(
        tmp_path / "one", one, {"model_type": "llama"} | ({"speech_lora": settings} if where == "config" else {})
    )
    if where == "adapter_config":
        (tmp_path / "one" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 5}')
    fused = FusedStateDict(plan(recipe_of(tmp_path)))
    own = one[f"{prefix}{LAYER}.base_layer.weight"].double()
    down, up = (one[f"{prefix}{LAYER}.lora_{part}.speech.weight"].double() for part in "AB")
    start = plain[f"{LAYER}.weight"].double()
    expected = start + 0.5 * (own + 2.5 * up @ down - start)
    np.testing.assert_allclose(fused.read(f"{LAYER}.weight"), expected.reshape(-1), rtol=1e-6, atol=1e-7)
    assert set(fused.tensors) == set(plain)


@pytest.mark.parametrize(
    ("adapters", "words"), [(BOTH, "several adapters"), (("speech",), "does not state the factor")]
)
def test_factors_that_cannot_be_folded_are_refused(tmp_path: Path, adapters: tuple[str, ...], words: str) -> None:
    write(tmp_path / "base", {f"{LAYER}.weight": torch.ones(6, 5), "model.norm.weight": torch.ones(5)}, None)
    write(tmp_path / "one", with_factors(1, adapters), None)
    with pytest.raises(TaskmergeError, match=words):
        plan(recipe_of(tmp_path))


@pytest.mark.parametrize("way", WAYS)
def test_parts_of_a_packed_module_are_kept_together(way: str, tmp_path: Path) -> None:
    """Codes of one model and scales of another are numbers that neither has."""
    write(tmp_path / "base", model(way, 0), way)
    write(tmp_path / "one", model(way, 1), way)
    first, *others = sorted(packed(way))
    rest = [f"{LAYER}.{name}" for name in others]
    torn = [{"match": f"{LAYER}.{first}", "keep": "one"}, {"match": rest, "keep": "base"}]
    with pytest.raises(TaskmergeError, match=r"its parts would come from several models: base, one") as told:
        plan(recipe_of(tmp_path, merge={"rules": torn}))
    assert f"rules: - {{match: '{LAYER}.*', keep: one}}" in str(told.value)
    recipe = recipe_of(tmp_path, merge={"rules": [{"match": f"{LAYER}.*", "keep": "one"}]})
    execute(plan(recipe), recipe, tmp_path / "out")
    out, one = read_model(tmp_path / "out"), read_model(tmp_path / "one")
    assert all(same_bits(out[f"{LAYER}.{name}"], one[f"{LAYER}.{name}"]) for name in packed(way))
