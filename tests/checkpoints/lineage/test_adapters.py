"""Adapters as specialists, against peft's own merge of the same adapter."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from adapter_cases import BY_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.lineage.adapters import adapted
from taskmerge.checkpoints.lineage.names import align
from taskmerge.errors import CheckpointError, MergeError, TaskmergeError
from taskmerge.numbers.rounding import decode

# name -> (kind of model, class, arguments of LoraConfig)
LINEAR = ["q_proj", "v_proj", "up_proj"]
ADAPTERS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "lora": ("Qwen3", None, {"target_modules": LINEAR}),
    "all linear layers": ("Llama", None, {"target_modules": "all-linear"}),
    "rank pattern": (
        "Qwen3",
        None,
        {"target_modules": LINEAR, "rank_pattern": {"v_proj": 2, r"layers\.0.+up_proj": 5}},
    ),
    "alpha pattern": ("Qwen3", None, {"target_modules": LINEAR, "alpha_pattern": {"layers.1.self_attn.v_proj": 32}}),
    "rslora": ("Qwen3", None, {"target_modules": LINEAR, "use_rslora": True, "lora_alpha": 3}),
    "trained biases": ("Qwen2", None, {"target_modules": LINEAR, "bias": "all"}),
    "biases of adapted modules": ("Qwen2", None, {"target_modules": LINEAR, "bias": "lora_only"}),
    "bias of B": ("Qwen2", None, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "modules to save": ("Qwen3", None, {"target_modules": LINEAR, "modules_to_save": ["lm_head", "norm"]}),
    "dora": ("Qwen3", None, {"target_modules": LINEAR, "use_dora": True}),
    "dora rslora": ("Llama", None, {"target_modules": LINEAR, "use_dora": True, "use_rslora": True}),
    "embedding": ("Qwen3", None, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding dora": ("Qwen3", None, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "head": ("Qwen3", None, {"target_modules": ["lm_head", "q_proj"]}),
    "encoder": ("BERT", None, {"target_modules": ["query", "value", "dense"]}),
    "convolution": ("Whisper", None, {"target_modules": ["conv1", "conv2", "q_proj"]}),
    "convolution dora": ("Whisper", None, {"target_modules": ["conv1", "conv2"], "use_dora": True}),
    "vision patches": ("LLaVA", None, {"target_modules": ["patch_embedding", "q_proj", "linear_1"]}),
    "video patches": ("Qwen2-VL", None, {"target_modules": ["qkv", "q_proj", "proj"]}),
    "renamed on disk": ("Qwen3-VL", None, {"target_modules": ["q_proj", "qkv", "linear_fc1"]}),
    "renamed inside layers": ("ViT", None, {"target_modules": "all-linear"}),
    "audio model": ("Qwen2-Audio", None, {"target_modules": ["q_proj", "linear", "fc1"]}),
    "input by output": ("GPT-2", None, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "trained tokens": ("Qwen3", None, {"target_modules": LINEAR, "trainable_token_indices": [1, 5, 63]}),
    "trained tokens of a module": (
        "Qwen3",
        None,
        {"target_modules": LINEAR, "trainable_token_indices": {"embed_tokens": [0, 7]}},
    ),
    "all experts of a layer": (
        "Qwen3-MoE",
        None,
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "experts under Mixtral's names": (
        "Mixtral",
        None,
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "one parameter of the experts": (
        "Qwen3-MoE",
        None,
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"], "use_rslora": True},
    ),
    "input by output dora": ("GPT-2", None, {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
}


def make(root: Path, name: str, dtype: torch.dtype = torch.float32) -> tuple[Path, Path, Path]:
    """Saves a base and an adapter with random factors; returns both folders and that of peft's merge."""
    import peft

    kind_name, class_name, arguments = ADAPTERS[name]
    kind = BY_NAME[kind_name]
    base, folder, merged = root / "base", root / "adapter", root / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zoo.save(kind.build(class_name), base, dtype)
        model: Any = peft.get_peft_model(
            kind.build(class_name).to(dtype), peft.LoraConfig(**{"r": 4, "lora_alpha": 16, **arguments})
        )
        generator = torch.Generator().manual_seed(11)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.data = parameter.data * (1 + noise) + noise
        model.save_pretrained(folder)
        model.merge_and_unload().save_pretrained(merged)
    return base, folder, merged


@pytest.mark.parametrize("name", ADAPTERS)
def test_equals_pefts_own_merge(tmp_path: Path, name: str) -> None:
    base_folder, adapter, merged_folder = make(tmp_path, name)
    base, merged = open_stored(base_folder), open_stored(merged_folder)
    ours = align(base, adapted(base, adapter)).state_dict  # an adapter of all experts of a layer packs them
    changed = 0
    for tensor, info in merged.tensors.items():
        expected = merged.read(tensor)
        got = ours.read(tensor)
        assert ours.tensors[tensor].shape == info.shape
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6, err_msg=tensor)
        changed += not np.array_equal(expected, base.read(tensor))
    assert changed >= 2
    assert set(ours.tensors) == set(merged.tensors)
    recipe = recipes.from_dict(
        {
            "base": "base",
            "specialists": {"one": {"model": "base", "adapter": "a"}},
            "merge": {"method": "task_arithmetic"},
        }
    )
    fused = fusion.FusedStateDict(fusion.plan(recipe, {"base": base, "one": ours}))
    for tensor in merged.tensors:  # at weight 1 the result is the adapted model
        np.testing.assert_array_equal(fused.read(tensor), ours.read(tensor), err_msg=tensor)


@pytest.mark.parametrize("name", ["lora", "dora", "embedding dora", "convolution dora", "input by output dora"])
def test_any_range_of_entries_is_the_range_of_the_whole(tmp_path: Path, name: str) -> None:
    base, adapter, _ = make(tmp_path, name)
    ours = adapted(open_stored(base), adapter)
    generator = np.random.default_rng(0)
    for tensor, info in ours.tensors.items():
        whole = ours.read(tensor)
        start, stop = sorted(generator.integers(0, info.count + 1, size=2).tolist())
        np.testing.assert_array_equal(ours.read(tensor, start, stop), whole[start:stop])


def test_over_a_bfloat16_base_nothing_is_rounded_before_the_merge(tmp_path: Path) -> None:
    base_folder, adapter, _ = make(tmp_path, "lora", torch.bfloat16)
    base = open_stored(base_folder)
    ours = adapted(base, adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert base.tensors[name].dtype == "BF16" and ours.tensors[name].dtype == "F32"
    stored = open_stored(adapter / "adapter_model.safetensors")
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    down, up = (
        decode(stored.read(f"{prefix}.{part}.weight"), stored.tensors[f"{prefix}.{part}.weight"].dtype).reshape(
            stored.tensors[f"{prefix}.{part}.weight"].shape
        )
        for part in ("lora_A", "lora_B")
    )
    expected = decode(base.read(name), "BF16") + (4.0 * up @ down).reshape(-1)
    np.testing.assert_array_equal(ours.read(name), expected.astype(np.float32))


# ----------------------------------------------------------------------------------------------------- refusals

BAD_FIELDS = {
    "another tuner": ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
    "changes the base": ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' changes the base"),
    "unknown field": ({"use_qalora": True}, "use_qalora: True is not supported"),
    "later field": ({"use_quantum_lora": True}, "use_quantum_lora: True is not supported"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "packed experts": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    "rank of another adapter": ({"r": 8}, "its rank should be 8"),
    "rank that is no number": ({"r": "8"}, "r: '8' is not a positive number"),
    "rank zero": ({"r": 0}, "r: 0 is not a positive number"),
    "alpha beyond measure": ({"lora_alpha": 1e30}, "lora_alpha: 1e+30"),
    "alpha true": ({"lora_alpha": True}, "lora_alpha: True"),
    "flag that is none": ({"use_rslora": "yes"}, "use_rslora: 'yes' is neither true nor false"),
    "pattern that is no table": ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    "broken pattern": ({"alpha_pattern": {"q_proj(": 3}}, "unterminated subpattern"),
    "dora without magnitudes": ({"use_dora": True}, "has no lora_magnitude_vector"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base, adapter, _ = make(tmp_path_factory.mktemp("plain"), "lora")
    return base, adapter


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_what_is_not_known_is_refused_by_name(plain: tuple[Path, Path], tmp_path: Path, case: str) -> None:
    fields, words = BAD_FIELDS[case]
    base, adapter = plain
    copy = tmp_path / "adapter"
    copy.mkdir()
    (copy / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | fields))
    with pytest.raises(CheckpointError) as caught:
        adapted(open_stored(base), copy)
    assert words in str(caught.value)
    assert "adapter" in str(caught.value.problems[0].place)


def test_an_adapter_for_another_model_is_refused(plain: tuple[Path, Path], tmp_path: Path) -> None:
    other = zoo.save(zoo.BY_NAME["BERT"].build(), tmp_path / "bert")
    with pytest.raises(MergeError):
        adapted(open_stored(other), plain[1])


def test_an_adapter_for_another_size_is_refused(plain: tuple[Path, Path], tmp_path: Path) -> None:
    import dataclasses

    kind = zoo.BY_NAME["Qwen3"]
    wider = dataclasses.replace(kind, config={**kind.config, "hidden_size": 64})
    other = zoo.save(wider.build(), tmp_path / "wider")
    with pytest.raises(MergeError, match=r"q_proj|up_proj|v_proj"):
        adapted(open_stored(other), plain[1])


def test_a_folder_without_an_adapter_is_refused(plain: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing: not a PEFT adapter folder"):
        adapted(open_stored(plain[0]), plain[0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_config_ends_in_a_traceback(
    plain: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    base, adapter = plain
    config = json.loads((adapter / "adapter_config.json").read_text())
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=3),
        st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5)), max_size=2),
    )  # fmt: skip
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=4)):
        config[key] = data.draw(values)
    copy = tmp_path_factory.mktemp("fuzzed")
    (copy / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    (copy / "adapter_config.json").write_text(json.dumps(config))
    try:
        adapted(open_stored(base), copy)
    except TaskmergeError as error:
        assert str(error)


def test_an_adapter_saved_by_pytorch(plain: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = plain
    copy = tmp_path / "adapter"
    copy.mkdir()
    (copy / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    torch.save(load_file(adapter / "adapter_model.safetensors"), copy / "adapter_model.bin")
    ours, theirs = (adapted(open_stored(base), folder) for folder in (copy, adapter))
    for name in theirs.tensors:
        np.testing.assert_array_equal(ours.read(name), theirs.read(name))


def test_a_base_that_is_an_adapter_is_laid_over_its_own_base(tmp_path: Path) -> None:
    """`base:` names an adapter's folder: the model it names is its base, and that is said."""
    base, adapter, merged = make(tmp_path, "lora")
    settings_file = adapter / "adapter_config.json"
    table = json.loads(settings_file.read_text())
    zoo.save(zoo.perturb(zoo.BY_NAME["Qwen3"].build(), 4), tmp_path / "one")
    recipe = recipes.from_dict({"base": "adapter", "specialists": {"one": {"model": "one", "weight": 0.5}}}, tmp_path)
    settings_file.write_text(json.dumps(table | {"base_model_name_or_path": None}))
    with pytest.raises(TaskmergeError, match="is an adapter, and its configuration does not name its model"):
        fusion.plan(recipe)
    settings_file.write_text(json.dumps(table | {"base_model_name_or_path": str(base)}))
    decided = fusion.plan(recipe)
    assert f"adapter is an adapter: applied to {base}" in " ".join(decided.warnings)
    fused, start, one = fusion.FusedStateDict(decided), open_stored(merged), open_stored(tmp_path / "one")
    for name in start.tensors:
        expected = start.read(name) + 0.5 * (one.read(name).astype(float) - start.read(name))
        np.testing.assert_allclose(fused.read(name), expected, rtol=2e-5, atol=2e-6, err_msg=name)
