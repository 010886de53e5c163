"""Inputs that agree in names and shapes and still differ: layers, settings, labels, heads. None without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign_models as foreign
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

from taskmerge import merging, recipes
from taskmerge.errors import TaskmergeError


def planned(base: Path, merge: dict[str, Any] | None = None, **specialists: Any) -> tuple[Any, merging.Plan]:
    said = {name: one if isinstance(one, dict) else {"model": str(one)} for name, one in specialists.items()}
    recipe = recipes.from_dict({"base": str(base), "specialists": said, **({"merge": merge} if merge else {})})
    return recipe, merging.plan(recipe)


def rewrite(folder: Path, **changes: Any) -> Path:
    """Changes keys of a folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        table = config
        *outer, last = key.split("__")
        for part in outer:
            table = table[part]
        table[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ------------------------------------------------------------------------------------------------------- settings

SAID = {
    "rope_parameters__rope_theta": 1e6,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
    "use_sliding_window": True,
    "layer_types": ["full_attention", "sliding_attention"],
}


@pytest.mark.parametrize("key", SAID)
def test_a_setting_that_changes_the_function_is_named(key: str, tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Qwen3"].build(), tmp_path / "base")
    other = rewrite(zoo.save(zoo.BY_NAME["Qwen3"].build(seed=1), tmp_path / "other"), **{key: SAID[key]})
    if key == "use_sliding_window":
        rewrite(base, use_sliding_window=False)
    said = planned(base, other=other)[1].warnings
    name = {"rms_norm_eps": "norm eps"}.get(key, key.rpartition("__")[2])
    assert any((name in line or "rope_type" in line) and "other" in line and "base" in line for line in said), said


SERIOUS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "hidden_act": "gelu",
}


@pytest.mark.parametrize("key", SERIOUS)
def test_heads_and_activations_must_agree(key: str, tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Qwen3"].build(), tmp_path / "base")
    other = rewrite(zoo.save(zoo.BY_NAME["Qwen3"].build(seed=1), tmp_path / "other"), **{key: SERIOUS[key]})
    with pytest.raises(TaskmergeError, match=rf"config.json: {key} is .* in other, .* in the base"):
        planned(base, other=other)
    kept = {"rules": [{"match": "*", "keep": "base"}]}
    assert not planned(base, kept, other=other)[1].warnings  # nothing of it is merged


def test_sections_of_a_multimodal_model_are_compared(tmp_path: Path) -> None:
    kind = zoo.BY_NAME["Qwen3-VL"]
    base = zoo.save(kind.build(), tmp_path / "base")
    other = zoo.save(kind.build(seed=1), tmp_path / "other")
    rewrite(other, text_config__rope_parameters__rope_theta=5e5, vision_config__spatial_merge_size=1)
    said = "\n".join(planned(base, other=other)[1].warnings)
    assert "rope_theta is 500000.0 in other, but 10000.0 in the base" in said
    assert "vision_config.spatial_merge_size is 1.0 in other" in said
    text = rewrite(zoo.save(zoo.BY_NAME["Qwen3"].build(seed=2), tmp_path / "text"), rms_norm_eps=1e-3)
    assert any("norm eps is 0.001 in text" in line for line in planned(base, text=text)[1].warnings)


def test_old_and_new_spellings_of_the_same_settings_agree(tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Qwen3"].build(), tmp_path / "base")
    other = zoo.save(zoo.BY_NAME["Qwen3"].build(seed=1), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (other / "config.json").write_text(json.dumps(config | {"rope_scaling": None, "torch_dtype": "float16"}))
    assert planned(base, other=other)[1].warnings == ()


def classifier(folder: Path, seed: int, labels: list[str]) -> Path:
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(**zoo.BERT, id2label=dict(enumerate(labels)))
    return zoo.save(transformers.BertForSequenceClassification(config), folder)


def test_swapped_labels_are_an_error_unless_no_head_is_merged(tmp_path: Path) -> None:
    base = classifier(tmp_path / "base", 0, ["good", "bad"])
    other = classifier(tmp_path / "other", 1, ["bad", "good"])
    with pytest.raises(TaskmergeError, match="id2label lists 'good' in the base, but 'bad' in other"):
        planned(base, other=other)
    planned(base, {"rules": [{"match": "head", "keep": "base"}]}, other=other)
    planned(base, same=classifier(tmp_path / "same", 2, ["good", "bad"]))


# --------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", ["Qwen3", "BERT", "Qwen3-VL"])
def test_more_layers_than_the_base(kind: str, tmp_path: Path) -> None:
    import dataclasses

    row = zoo.BY_NAME[kind]
    base = zoo.save(row.build(), tmp_path / "base")
    config = dict(row.config)
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], "num_hidden_layers": 4}
    else:
        config["num_hidden_layers"] = 4
    deep = zoo.save(dataclasses.replace(row, config=config).build(seed=1), tmp_path / "deep")
    with pytest.raises(
        TaskmergeError,
        match=r"deep has 4 layers in '.*', the base 2: the base has no tensors for the additional layers",
    ):
        planned(base, deep=deep)
    try:
        planned(base, deep=deep)
    except TaskmergeError as error:
        rule = error.problems[0].next_move
        assert rule is not None
        glob = rule.split("match: '")[1].split("'")[0]
    _, plan = planned(base, {"rules": [{"match": glob, "drop": True}]}, deep=deep)
    assert {step.action for step in plan.steps if ".2." in step.info.name} <= set()
    with pytest.raises(TaskmergeError, match="lacks the base's tensor"):
        planned(deep, shallow=base)


def test_tensors_inside_the_bases_layers_are_named(tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Qwen3"].build(), tmp_path / "base")
    other = zoo.save(zoo.BY_NAME["Qwen3"].build(seed=1), tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    _, plan = planned(base, other=other)
    assert any("1 tensor in 'model.layers' that the base's own layers lack" in line for line in plan.warnings)
    assert next(step for step in plan.steps if step.info.name.endswith("q_proj.bias")).action == "copy"


# ---------------------------------------------------------------------------------------------------------- heads


def test_a_head_that_the_class_cannot_hold_is_left_out_by_a_line_that_says_how_to_keep_it(tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["BERT"].build("BertModel"), tmp_path / "base")
    other = classifier(tmp_path / "other", 1, ["good", "bad"])
    recipe, plan = planned(base, other=other)
    line = next(line for line in plan.notes if "left out of other" in line)
    assert "classifier.*" in line and "BertModel, the result's class, has no classifier" in line
    assert "copy: {other: [" in line
    pattern = line.rpartition("copy: {other: [")[2].removesuffix("]}").strip("'")
    kept = recipes.from_dict({"base": str(base), "specialists": {"other": str(other)}, "copy": {"other": [pattern]}})
    plan = merging.plan(kept)
    assert not [drop for drop in plan.dropped if "classifier" in drop.source.name]
    merging.execute(plan, kept, tmp_path / "out")
    import transformers

    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and model.config.id2label == {0: "good", 1: "bad"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    assert recipe.copy is None


def test_a_projection_that_an_adapter_trained_is_copied(tmp_path: Path) -> None:
    """ColPali's layout: a projection of the text model's output that no class of the base's has."""
    base_model = zoo.BY_NAME["Qwen2-VL"].build()
    base = zoo.save(base_model, tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    layer = "model.language_model.layers.0.self_attn.q_proj"
    tensors = {
        f"base_model.model.{layer}.lora_A.weight": torch.randn(4, 32),
        f"base_model.model.{layer}.lora_B.weight": torch.randn(32, 4),
        "base_model.model.custom_text_proj.weight": torch.randn(8, 32),
        "base_model.model.custom_text_proj.bias": torch.randn(8),
    }
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "modules_to_save": ["custom_text_proj"],
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    recipe, plan = planned(base, docs=adapter)
    merging.execute(plan, recipe, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["custom_text_proj.weight"], tensors["base_model.model.custom_text_proj.weight"])
    said = "\n".join(plan.notes)
    assert "copied from docs: head (2 tensors, custom_text_proj.*)" in said
    assert "Qwen2VLForConditionalGeneration is not known to have such a head" in said


# ----------------------------------------------------------------------------------------------- several at once


def test_two_foreign_towers_at_once(tmp_path: Path) -> None:
    """Ears of one owner's class, eyes of another's: all copied, and what the class taken cannot load is said."""
    base_model = zoo.BY_NAME["Qwen3"].build()
    base = zoo.save(base_model, tmp_path / "base")
    state = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    folders: dict[str, Any] = {}
    for name, layout in {"ears": foreign.BY_NAME["nameless ears"], "eyes": foreign.BY_NAME["nameless eyes"]}.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        save_file(layout.tensors(state), folders[name] / "model.safetensors")
        own = {"architectures": [f"With{name.title()}"], "model_type": f"with_{name}", f"{name}_config": {"width": 16}}
        (folders[name] / "config.json").write_text(json.dumps({**config, **own}))
    recipe, plan = planned(base, **folders)
    merging.execute(plan, recipe, tmp_path / "out")
    components = {step.component for step in plan.steps if step.action == "copy"}
    assert components == {"audio_encoder", "audio_projector", "vision_encoder", "vision_projector"}
    result = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {"ears_config", "eyes_config"} <= set(result)
    taken = result["architectures"][0]
    other = {"WithEars": "eyes", "WithEyes": "ears"}[taken]
    assert any(f"{other} has another class" in line and f"{taken} does not load them" in line for line in plan.notes)


def test_components_said_in_the_recipe_win_over_what_shapes_tell(tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Qwen3"].build(), tmp_path / "base")
    layout = foreign.BY_NAME["nameless ears"]
    (tmp_path / "own").mkdir()
    state = layout.tensors(load_file(base / "model.safetensors"))
    save_file(state, tmp_path / "own" / "model.safetensors")
    (tmp_path / "own" / "config.json").write_text((base / "config.json").read_text())
    said = {"sonar_encoder": ["frontend.*"], "sonar_projector": ["link.*"]}
    recipe = recipes.from_dict(
        {"base": str(base), "specialists": {"own": str(tmp_path / "own")}, "components": said,
         "copy": {"own": ["sonar_encoder", "sonar_projector"]}}
    )  # fmt: skip
    plan = merging.plan(recipe)
    assert {step.component for step in plan.steps if step.action == "copy"} == set(said)


def test_what_two_specialists_bring_alike_is_one_problem(tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Qwen3"].build(), tmp_path / "base")
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        state = foreign.BY_NAME["issue"].tensors(load_file(base / "model.safetensors"), seed=number)
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(TaskmergeError) as caught:
        planned(base, first=tmp_path / "first", second=tmp_path / "second")
    assert len(str(caught.value).splitlines()) <= 4
    assert "copy: {first: [audio_encoder]}" in str(caught.value)
