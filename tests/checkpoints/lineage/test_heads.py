"""Output heads, tied and untied: what the result's logits are is the merge of what each model's logits are."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import zoo
from safetensors.torch import load_file, save_file

from taskmerge import Checkpoint, merging, recipes

WEIGHT = 0.5
KIND = zoo.BY_NAME["Qwen3"]


def head_and_table(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a live model computes logits with, and what it reads tokens with."""
    return model.get_output_embeddings().weight.detach().double(), model.get_input_embeddings().weight.detach().double()


def fuse(tmp_path: Path, base: Path, **specialists: Any) -> tuple[merging.Plan, Path]:
    recipe = recipes.from_dict(
        {
            "base": str(base),
            "specialists": {name: {"weight": WEIGHT, **_said(one)} for name, one in specialists.items()},
        }
    )
    plan = merging.plan(recipe)
    merging.execute(plan, recipe, tmp_path / "out")
    return plan, tmp_path / "out"


def _said(one: Any) -> dict[str, Any]:
    return one if isinstance(one, dict) else {"model": str(one)}


def load(folder: Path, name: str = "Qwen3ForCausalLM") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def expect(
    out: Path, base: Any, *specialists: tuple[torch.Tensor, torch.Tensor], name: str = "Qwen3ForCausalLM"
) -> None:
    """The result's head and table, as transformers loads them, are each the formula on the inputs' own."""
    found = head_and_table(load(out, name))
    for at, (start, got) in enumerate(zip(head_and_table(base), found, strict=True)):
        wanted = start + sum(WEIGHT * (one[at] - start) for one in specialists)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.fixture
def tied(tmp_path: Path) -> tuple[Any, Path]:
    model = KIND.build(variant="tied")
    return model, zoo.save(copy.deepcopy(model), tmp_path / "base")


@pytest.mark.parametrize("says", [True, False, None], ids=["says tied", "says untied", "says nothing"])
def test_a_head_of_its_own_whatever_the_config_says(says: bool | None, tied: tuple[Any, Path], tmp_path: Path) -> None:
    base, folder = tied
    own = KIND.build(seed=1)
    zoo.save(own, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config.pop("tie_word_embeddings")
    config |= {} if says is None else {"tie_word_embeddings": says}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    other = KIND.build(seed=2, variant="tied")
    zoo.save(copy.deepcopy(other), tmp_path / "other")
    plan, out = fuse(tmp_path, folder, own=tmp_path / "own", other=tmp_path / "other")
    expect(out, base, head_and_table(own), head_and_table(other))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("own has a separate output head" in line for line in plan.notes)


def test_a_table_stored_twice_stays_tied(tied: tuple[Any, Path], tmp_path: Path) -> None:
    base, folder = tied
    other = KIND.build(seed=2, variant="tied")
    zoo.save(copy.deepcopy(other), tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    plan, out = fuse(tmp_path, folder, other=tmp_path / "other")
    expect(out, base, head_and_table(other))
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert any("left out of other: (1 tensor, lm_head.weight): equal to its token table" in line for line in plan.notes)


@pytest.mark.parametrize(
    "trained",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=["both saved", "table saved", "head saved"],
)
def test_adapters_over_a_tied_base(trained: dict[str, Any], tied: tuple[Any, Path], tmp_path: Path) -> None:
    base, folder = tied
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, **trained)
        model = peft.get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for seed, (name, parameter) in enumerate(model.named_parameters()):
                if "modules_to_save" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
        model.save_pretrained(str(tmp_path / "adapter"))
        merged = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").merge_and_unload().eval()
    assert merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight
    _, out = fuse(tmp_path, folder, own={"model": "base", "adapter": str(tmp_path / "adapter")})
    expect(out, base, head_and_table(merged))
    # at weight 1 the result is the adapted model, logits included
    recipe = recipes.from_dict({"base": str(folder), "specialists": {"own": str(tmp_path / "adapter")}})
    merging.execute(merging.plan(recipe), recipe, tmp_path / "whole")
    with torch.no_grad():
        expected = merged(**zoo.text()).logits
        torch.testing.assert_close(load(tmp_path / "whole")(**zoo.text()).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_tied_multimodal_model_onto_an_untied_text_model(tmp_path: Path) -> None:
    """The class is the specialist's, which ties; the base's own head is not lost to it."""
    plain, kind = zoo.BY_NAME["Qwen2"], zoo.BY_NAME["Qwen2-VL"]
    base = plain.build()
    folder = zoo.save(copy.deepcopy(base), tmp_path / "base")
    text = {**kind.config["text_config"], "tie_word_embeddings": True}
    seeing = replace(kind, config={**kind.config, "text_config": text, "tie_word_embeddings": True}).build(seed=1)
    assert seeing.get_output_embeddings().weight is seeing.get_input_embeddings().weight
    zoo.save(copy.deepcopy(seeing), tmp_path / "seeing")
    assert not any("lm_head" in name for name in load_file(tmp_path / "seeing" / "model.safetensors"))
    _, out = fuse(tmp_path, folder, seeing=tmp_path / "seeing")
    expect(out, base, head_and_table(seeing), name="Qwen2VLForConditionalGeneration")


def test_the_algebra_says_the_same(tied: tuple[Any, Path], tmp_path: Path) -> None:
    base, folder = tied
    own = KIND.build(seed=1)
    zoo.save(own, tmp_path / "own")
    start, other = Checkpoint.open(folder), Checkpoint.open(tmp_path / "own")
    moved = start + WEIGHT * (other - start)
    moved.save(tmp_path / "moved")
    expect(tmp_path / "moved", base, head_and_table(own))
    (other - start).save(tmp_path / "vector")
    _, out = fuse(tmp_path, folder, own=tmp_path / "vector")
    expect(out, base, head_and_table(own))


def test_a_rule_keeps_the_tie(tied: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = tied
    zoo.save(KIND.build(seed=1), tmp_path / "own")
    recipe = recipes.from_dict({"base": str(folder), "specialists": {"own": str(tmp_path / "own")},
                                "merge": {"rules": [{"match": "lm_head.*", "drop": True}]}})  # fmt: skip
    merging.execute(merging.plan(recipe), recipe, tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.lm_head.weight is model.get_input_embeddings().weight
