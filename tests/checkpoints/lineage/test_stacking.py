"""Stacked models as views: which tensor stands where, what the config says, and that libraries load the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import write_model

from taskmerge import recipes
from taskmerge.checkpoints.lineage.stacked_config import Section, stacked_config
from taskmerge.errors import MergeError, RecipeError
from taskmerge.merging import execute, plan
from taskmerge.merging.fused import FusedStateDict


def llama(folder: Path, seed: int, layers: int = 4, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A tiny model that transformers itself has saved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    small = LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=16, **config,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(small)
    model.to(dtype).save_pretrained(folder)
    return folder


def fused(folder: Path, out: str, **said: Any) -> Path:
    recipe = recipes.from_dict(said, folder)
    execute(plan(recipe), recipe, folder / out)
    return folder / out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_runs_as_its_layers_put_together_by_hand(dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    models = {name: llama(tmp_path / name, seed, dtype=dtype) for seed, name in enumerate("ab")}
    runs = [("a", 0, 3), ("b", 1, 4), ("a", 3, 4)]
    stack = [{name: f"{first}..{end - 1}"} for name, first, end in runs]
    keep = {"rules": [{"match": "*", "keep": "base"}]}
    out = fused(tmp_path, "out", base="a", specialists={"a": "a", "b": "b"}, merge=keep, stack=stack)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 7
    made = AutoModelForCausalLM.from_pretrained(out, dtype=dtype)
    parts = {name: AutoModelForCausalLM.from_pretrained(path, dtype=dtype) for name, path in models.items()}
    hand = AutoModelForCausalLM.from_pretrained(models["a"], dtype=dtype)
    layers = [parts[name].model.layers[layer] for name, first, end in runs for layer in range(first, end)]
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place
    hand.model.layers = torch.nn.ModuleList(layers)
    hand.config.num_hidden_layers = 7
    if getattr(hand.config, "layer_types", None):
        hand.config.layer_types = ["full_attention"] * 7
    words = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(made(words, use_cache=False).logits, hand(words, use_cache=False).logits)


def test_a_layer_may_stand_several_times_and_be_merged_differently(tmp_path: Path) -> None:
    for seed, name in enumerate("ba"):
        llama(tmp_path / name, seed)
    said = {
        "base": "b",
        "specialists": {"a": "a"},
        "stack": [{"base": "1..2", "a": "1..2"}, {"base": "2..2", "a": "0..0"}],
        "merge": {"rules": [{"match": "*.layers.2.*", "also": ["*mlp*"], "weight": 0.5}]},
    }
    weights = FusedStateDict(plan(recipes.from_dict(said, tmp_path)))
    base, one = (
        FusedStateDict(plan(recipes.from_dict({"base": name, "specialists": {"x": name}}, tmp_path))) for name in "ba"
    )
    up, query = ("model.layers.{}.mlp.up_proj.weight", "model.layers.{}.self_attn.q_proj.weight")
    np.testing.assert_array_equal(weights.read(up.format(1)), one.read(up.format(2)))
    there, here = base.read(up.format(2)).astype(np.float64), one.read(up.format(0)).astype(np.float64)
    np.testing.assert_array_equal(weights.read(up.format(2)), (there + 0.5 * (here - there)).astype(np.float32))
    np.testing.assert_array_equal(weights.read(query.format(2)), one.read(query.format(0)))
    assert not any(".layers.3." in name for name in weights.tensors)


def test_a_stack_of_all_layers_in_order_changes_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate("ba"):
        llama(tmp_path / name, seed)
    said = {"base": "b", "specialists": {"a": "a"}}
    whole = plan(recipes.from_dict(said, tmp_path))
    stacked = plan(recipes.from_dict({**said, "stack": [{"base": "0..3", "a": "0..3"}]}, tmp_path))
    assert stacked.steps == whole.steps
    assert {name: type(one) for name, one in stacked.inputs.items()} == {k: type(v) for k, v in whole.inputs.items()}


def test_an_adapter_is_laid_over_the_model_before_it_is_stacked(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    llama(tmp_path / "b", 0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "b"), LoraConfig(target_modules=["q_proj"], r=2)
    )
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    model.save_pretrained(str(tmp_path / "lora"))
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "b"), tmp_path / "lora")
    wanted = merged.merge_and_unload().state_dict()
    said: dict[str, Any] = {
        "base": "b",
        "base_adapter": "lora",
        "specialists": {"plain": "b"},
        "stack": [{"base": "3..3"}, {"base": "0..1"}],
    }
    said["stack"] = [{**entry, "plain": entry["base"]} for entry in said["stack"]]
    said["merge"] = {"weight": 0.0}
    weights = FusedStateDict(plan(recipes.from_dict(said, tmp_path)))
    for here, there in ((0, 3), (1, 0), (2, 1)):
        name = "model.layers.{}.self_attn.q_proj.weight"
        found = weights.read(name.format(here)).reshape(8, 8)
        np.testing.assert_allclose(found, wanted[name.format(there)].numpy(), atol=1e-6)
    # with weight 1 the task vector takes the base's adapter away again
    plain = FusedStateDict(plan(recipes.from_dict({**said, "merge": {"weight": 1.0}}, tmp_path)))
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "b").state_dict()
    found = plain.read(name.format(0)).reshape(8, 8)
    np.testing.assert_allclose(found, stored[name.format(3)].numpy(), atol=1e-6)


def test_layers_of_other_shapes_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "a", {f"model.layers.{n}.mlp.weight": torch.zeros(2, 3) for n in range(2)})
    write_model(tmp_path / "b", {f"model.layers.{n}.mlp.weight": torch.zeros(2, 4) for n in range(2)})
    said = {"base": "a", "specialists": {"a": "a", "b": "b"}, "stack": [{"a": "0..1"}, {"b": "0..1"}]}
    with pytest.raises(MergeError, match=r"is \[2, 3\] in a and \[2, 4\] in b"):
        plan(recipes.from_dict(said, tmp_path))


@pytest.mark.parametrize(
    ("stack", "what"),
    [
        ([{"base": "0..3", "a": "1..3"}], "has different numbers of layers"),
        ([{"base": "3..0", "a": "0..3"}], "base must be layers such as 0..15, not '3..0'"),
        ([{"base": "0-3", "a": "0..3"}], "must be layers such as 0..15"),
        ([{"base": "0..3"}], "stack uses no layers of a"),
        ([{}], "lists no layers"),
        ([{"base": "0..3", "x": "0..3"}], "'x'"),
    ],
)
def test_a_stack_that_makes_no_sense_is_told(stack: list[dict[str, str]], what: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.from_dict({"base": "b", "specialists": {"a": "m"}, "stack": stack}, tmp_path)
    assert what in str(caught.value)


def test_the_config_follows_the_layers() -> None:
    kinds = ["sliding", "full", "sliding", "full"]
    config = {
        "text_config": {"num_hidden_layers": 4, "layer_types": kinds, "mlp_only_layers": [1, 2], "rope": [1, 2, 3, 4]},
        "vision_config": {"num_hidden_layers": 4},
    }
    sections = [Section(config, range(1, 3), 4), Section(config, range(1, 4), 4)]
    made, notes = stacked_config(config, 4, sections, 5)
    assert made["text_config"] == {
        "num_hidden_layers": 5,
        "layer_types": ["full", "sliding", "full", "sliding", "full"],
        "mlp_only_layers": [0, 1, 2, 3],
        "rope": [1, 2, 3, 4],
    }
    assert made["vision_config"] == {"num_hidden_layers": 4} and not notes
    by_place = {"num_hidden_layers": 4, "sliding_window_pattern": 2}
    said = stacked_config(by_place, 4, [Section(by_place, range(1, 3), 4)], 2)[1][0]
    assert "refers to layers by number" in said
