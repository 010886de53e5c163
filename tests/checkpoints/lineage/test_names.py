"""Names across the same lineage: whatever way a model was saved, its tensors are found by their values."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.lineage.names import align, match_names
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import MergeError

Saved = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """kind, way -> folder. One set of random weights, saved in each way users save it."""
    root = tmp_path_factory.mktemp("saved")

    @cache
    def make(kind_name: str, way: str) -> Path:
        import transformers

        kind = zoo.BY_NAME[kind_name]
        folder = root / kind_name.replace(" ", "_") / way
        full = root / kind_name.replace(" ", "_") / kind.classes[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if way == kind.classes[0]:
                return zoo.save(zoo.perturb(kind.build(), seed=3), folder)
            make(kind_name, kind.classes[0])
            if way == "in_memory_names":
                model = getattr(transformers, kind.classes[0]).from_pretrained(full)
                model.save_pretrained(folder, save_original_format=False)
                return folder
            return zoo.save(transformers.AutoModel.from_pretrained(full), folder)

    return make


def pairs_of_ways(kind: zoo.Kind) -> list[tuple[str, str]]:
    full = kind.classes[0]
    others = ["AutoModel", "in_memory_names"] if kind.auto else ["in_memory_names"]
    return [pair for other in others for pair in ((full, other), (other, full))]


def by_value(weights: StateDict) -> dict[bytes, list[str]]:
    found: dict[bytes, list[str]] = {}
    for name, info in weights.tensors.items():
        if info.count > 1 and info.dtype == "F32":
            values = weights.read(name)
            if len(set(values.tolist())) > 1:
                found.setdefault(str(info.shape).encode() + values.tobytes(), []).append(name)
    return found


CASES = [(kind.name, base, other) for kind in zoo.KINDS for base, other in pairs_of_ways(kind)]


@pytest.mark.parametrize(("kind", "base", "other"), CASES)
def test_every_tensor_finds_itself(saved: Saved, kind: str, base: str, other: str) -> None:
    ours, theirs = open_stored(saved(kind, base)), open_stored(saved(kind, other))
    aligned = align(ours, theirs)
    for name in ours.tensors:
        if name in aligned.state_dict.tensors and name not in aligned.names.base_only:
            info = aligned.state_dict.tensors[name]
            assert (info.name, info.shape) == (name, ours.tensors[name].shape)
            np.testing.assert_array_equal(aligned.state_dict.read(name), ours.read(name), err_msg=name)
    missed = [
        n for v, n in by_value(ours).items() if v in by_value(aligned.state_dict) and n[0] in aligned.names.base_only
    ]
    assert missed == []


# What structure alone cannot tell, for want of transformers: names that differ inside the layers.
NEEDS_TRANSFORMERS = {"ViT", "DINOv2"}


def test_without_transformers_a_match_is_right_or_refused(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskmerge.checkpoints.lineage.conversion.canonical_names", lambda *_: None)
    refused = set()
    for kind, base, other in CASES:
        ours, theirs = open_stored(saved(kind, base)), open_stored(saved(kind, other))
        try:
            aligned = align(ours, theirs)
        except MergeError as error:
            assert "cannot be matched" in str(error)
            refused.add(kind)
            continue
        for name in aligned.names.pairs:
            np.testing.assert_array_equal(aligned.state_dict.read(name), ours.read(name), err_msg=name)
    assert refused == NEEDS_TRANSFORMERS


def memory(label: str, shapes: dict[str, tuple[int, ...]], **config: object) -> MemoryStateDict:
    generator = np.random.default_rng(len(label))
    values = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return MemoryStateDict(values, label, config)


def test_other_families_are_refused_with_examples_of_both_sides(saved: Saved) -> None:
    bert, llama = open_stored(saved("BERT", "BertForMaskedLM")), open_stored(saved("Llama", "LlamaForCausalLM"))
    with pytest.raises(MergeError) as caught:
        match_names(bert, llama)
    text = str(caught.value)
    assert "cannot be matched" in text and "trained from the same model" in text
    assert "bert.embeddings.LayerNorm" in text and "model.layers.0" in text


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(MergeError, match="cannot be matched"):
        match_names(memory("one", {"a.weight": (2,)}), memory("two", {"b.c.weight": (3,)}))


def test_a_partly_renamed_backbone_is_refused_rather_than_merged_in_part() -> None:
    """The towers match, the backbone does not: merging the names in common would merge only the towers."""
    base = memory(
        "base",
        {"visual.blocks.0.weight": (2,), "model.layers.0.mlp.up.weight": (2,), "model.layers.0.mlp.down.weight": (2,)},
    )
    other = memory(
        "other",
        {"visual.blocks.0.weight": (2,), "trunk.layers.0.ffn.w1.weight": (2,), "trunk.layers.0.mlp.down.weight": (2,)},
    )
    with pytest.raises(MergeError, match="backbone: the names in other cannot be matched"):
        match_names(base, other)


def test_a_graft_finds_its_backbone_and_keeps_its_own(saved: Saved) -> None:
    base = open_stored(saved("Qwen2", "Qwen2ForCausalLM"))
    audio = open_stored(saved("Qwen2-Audio", "Qwen2AudioForConditionalGeneration"))
    aligned = align(base, audio)
    assert aligned.names.base_only == ()
    assert aligned.names.pairs["model.layers.1.mlp.up_proj.weight"] == (
        "language_model.model.layers.1.mlp.up_proj.weight"
    )
    assert {name.split(".")[0] for name in aligned.extra} == {"audio_tower", "multi_modal_projector"}
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(aligned.state_dict.read(name, 3, 17), audio.read("language_model." + name, 3, 17))


def test_buffers_that_a_class_keeps_in_another_module_are_found(tmp_path: Path) -> None:
    """ERNIE 4.5's routers: `mlp.moe_statics` in files, `mlp.gate.moe_statics` in memory."""
    import torch
    from live_models import moved
    from safetensors.torch import load_file, save_file
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    config = Ernie4_5_MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, moe_intermediate_size=8, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1,
        moe_layer_start_index=0, tie_word_embeddings=False,
    )  # fmt: skip
    base = Ernie4_5_MoeForCausalLM(config)
    other = moved(base, 1)
    base.save_pretrained(tmp_path / "base")
    other.save_pretrained(tmp_path / "other")
    tensors = {name: value.clone() for name, value in other.state_dict().items()}
    save_file(tensors, tmp_path / "other/model.safetensors", metadata={"format": "pt"})
    paths = {"base": str(tmp_path / "base"), "specialists": {"a": {"model": str(tmp_path / "other"), "weight": 0.5}}}
    recipe = recipes.from_dict(paths)
    plan = fusion.plan(recipe)
    assert not plan.warnings and not plan.dropped
    fusion.execute(plan, recipe, tmp_path / "out")
    found = Ernie4_5_MoeForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, start in base.state_dict().items():
        exact = start.double() + 0.5 * (other.state_dict()[name].double() - start)
        torch.testing.assert_close(found[name].double(), exact, rtol=2e-7, atol=1e-9, msg=name)
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(load_file(tmp_path / "base/model.safetensors"))


@pytest.mark.parametrize("one_more", [False, True], ids=["one of each", "two of one"])
def test_a_moved_buffer_is_paired_only_where_it_is_the_only_one(one_more: bool) -> None:
    layer = {"model.layers.0.mlp.up.weight": (2,), "model.layers.1.mlp.up.weight": (2,)}
    base = memory("base", {**layer, "model.layers.1.mlp.statics.e_score_correction_bias": (4,)})
    moved = {"model.layers.1.mlp.gate.e_score_correction_bias": (4,)}
    more = {"model.layers.1.other.e_score_correction_bias": (4,)} if one_more else {}
    pairs = match_names(base, memory("other", {**layer, **moved, **more})).pairs
    assert (pairs.get("model.layers.1.mlp.statics.e_score_correction_bias") in moved) is not one_more


def test_what_is_left_out_is_not_told_as_copied(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    weights = {f"model.layers.{number}.mlp.up.weight": np.ones((2, 2), "f4") for number in range(2)}
    save_file(weights, tmp_path / "base.safetensors")
    save_file({**weights, "model.layers.0.mlp.up.input_max": np.ones(2, "f4")}, tmp_path / "a.safetensors")
    save_file({**weights, "model.layers.0.mlp.gain": np.ones(2, "f4")}, tmp_path / "b.safetensors")

    def told(name: str) -> str:
        rows = {"base": str(tmp_path / "base.safetensors"), "specialists": {"it": str(tmp_path / name)}}
        plan = fusion.plan(recipes.from_dict(rows))
        return "\n".join((*plan.warnings, *plan.notes))

    assert "left out of it" in told("a.safetensors") and "copied" not in told("a.safetensors")
    assert "left out" not in told("b.safetensors") and "copied, not merged" in told("b.safetensors")


def test_tied_heads_and_poolers_may_be_absent(saved: Saved) -> None:
    full = open_stored(saved("Qwen3", "Qwen3ForCausalLM"))
    bare = open_stored(saved("Qwen3", "AutoModel"))
    names = match_names(full, bare)
    assert names.base_only == ("lm_head.weight",) and names.other_only == ()
    back = match_names(bare, full)
    assert back.other_only == ("lm_head.weight",) and back.base_only == ()


def test_layer_norms_of_old_files() -> None:
    stem = "encoder.layer.0.attention.output.LayerNorm"
    names = match_names(
        memory("new", {f"bert.{stem}.weight": (4,), f"bert.{stem}.bias": (4,)}),
        memory("old", {f"{stem}.gamma": (4,), f"{stem}.beta": (4,)}),
    )
    assert names.pairs == {f"bert.{stem}.weight": f"{stem}.gamma", f"bert.{stem}.bias": f"{stem}.beta"}


LEAVES = {"Qwen's names": ("gate_proj", "up_proj", "down_proj"), "Mixtral's names": ("w1", "w3", "w2")}


def experts(
    packed: bool, experts_in_all: int = 3, transposed: bool = False, leaves: tuple[str, ...] = LEAVES["Qwen's names"]
) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    stem, values = "model.layers.0.mlp.experts", {}
    gates, ups, downs = (generator.standard_normal((experts_in_all, *s)).astype("f4") for s in ((4, 6), (4, 6), (6, 4)))
    if packed:
        both = np.concatenate([gates, ups], axis=1)
        values[f"{stem}.gate_up_proj"] = both.transpose(0, 2, 1).copy() if transposed else both
        values[f"{stem}.down_proj"] = downs
    else:
        for expert in range(experts_in_all):
            for leaf, table in zip(leaves, (gates, ups, downs), strict=True):
                values[f"{stem}.{expert}.{leaf}.weight"] = table[expert]
    return values


@pytest.mark.parametrize("leaves", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("base_packed", [True, False])
def test_experts_are_read_in_the_layout_of_the_base(base_packed: bool, leaves: tuple[str, ...]) -> None:
    base, other = (
        MemoryStateDict(experts(packed, leaves=leaves), label)
        for packed, label in ((base_packed, "base"), (not base_packed, "other"))
    )
    aligned = align(base, other)
    assert aligned.extra == () and aligned.names.base_only == ()
    for name, info in base.tensors.items():
        assert aligned.state_dict.tensors[name].shape == info.shape
        np.testing.assert_array_equal(aligned.state_dict.read(name), base.read(name))
        np.testing.assert_array_equal(aligned.state_dict.read(name, 5, 19), base.read(name, 5, 19))


def test_transposed_experts_are_refused_by_name() -> None:
    base = MemoryStateDict(experts(packed=False), "base")
    other = MemoryStateDict(experts(packed=True, transposed=True), "other")
    with pytest.raises(MergeError, match=r"experts\.gate_up_proj: packed experts of shape \[3, 6, 8\]"):
        align(base, other)


def test_identical_names_import_no_transformers(saved: Saved) -> None:
    folder = saved("Qwen3-VL", "Qwen3VLForConditionalGeneration")
    code = (
        "import sys; from taskmerge.checkpoints.lineage.names import align;"
        "from taskmerge.checkpoints.formats.reading import open_stored;"
        f"a = open_stored({str(folder)!r}); align(a, a);"
        "print({'torch', 'transformers', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@settings(max_examples=60, deadline=None)
@given(
    ours=st.sampled_from(["", "model.", "bert.", "model.language_model."]),
    theirs=st.sampled_from(["", "model.", "language_model.", "thinker.model."]),
    layers=st.integers(1, 4),
    drop=st.integers(0, 3),
)
def test_any_change_of_prefix_is_seen_through(ours: str, theirs: str, layers: int, drop: int) -> None:
    leaves = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
    inner = [f"layers.{layer}.{leaf}" for layer in range(layers) for leaf in leaves] + ["norm.weight"]
    kept = inner[: len(inner) - drop]
    base = memory("base", {ours + name: (3, 2) for name in inner})
    other = memory("other", {theirs + name: (3, 2) for name in kept})
    assert match_names(base, other).pairs == {ours + name: theirs + name for name in kept}
