"""Somebody's merge is judged: what peft and mergekit wrote themselves, merges torn by hand, other weights, no merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read_model, write_model, write_recipe
from mergekit_cases import CONFIG
from mergekit_merges import CASES, configuration, save_models
from places import TESTS
from safetensors.torch import load_file

from taskmerge import recipes
from taskmerge.errors import UsageError
from taskmerge.merging import execute, plan
from taskmerge.merging.judging.said import as_said
from taskmerge.merging.judging.verdict import Judgement, judge

Tensors = dict[str, torch.Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def statuses(found: Judgement) -> set[str]:
    return {one.status for one in found.findings}


# --- an adapter, merged by peft itself --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DTYPES)
def merged_by_peft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model: Any = LlamaForCausalLM(config)
    model.to(DTYPES[request.param])
    model.save_pretrained(folder / "base")
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted: Any = get_peft_model(model, lora)
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    return folder


def of_adapter(folder: Path, weight: float = 1.0) -> recipes.Recipe:
    return as_said(str(folder / "base"), None, [str(folder / "adapter")], weights=[weight])


def test_what_peft_merged(merged_by_peft: Path, command: Callable[..., Any]) -> None:
    found = judge(merged_by_peft / "merged", of_adapter(merged_by_peft))
    assert found.verdict in ("exact", "within rounding") and found.fits
    assert found.text_path.startswith("changed: 4 of 21 tensors")
    ran = command(
        "verify", merged_by_peft / "merged", "--base", merged_by_peft / "base", "--adapter", merged_by_peft / "adapter"
    )
    assert ran.code == 0 and ran.out.splitlines()[-1].startswith(found.verdict)


def test_an_adapter_that_was_not_applied(merged_by_peft: Path, command: Callable[..., Any]) -> None:
    ran = command(
        "verify", merged_by_peft / "base", "--base", merged_by_peft / "base", "--adapter", merged_by_peft / "adapter",
        "--json",
    )  # fmt: skip
    said = json.loads(ran.out)
    assert (ran.code, said["verdict"], said["fits"]) == (1, "not applied", False)
    assert said["text_path"] == "unchanged: proved, 21 tensors of backbone, embeddings, head are bit for bit the base's"
    assert {row["status"] for row in said["tensors"].values()} == {"exact", "base"}


def test_an_adapter_applied_with_another_weight(merged_by_peft: Path) -> None:
    found = judge(merged_by_peft / "merged", of_adapter(merged_by_peft, 0.5))
    assert found.verdict == "other weights"
    assert found.weights["adapter"] == pytest.approx(1.0, abs=1e-3)
    assert "adapter had the weight" in found.sentence and "(the recipe has 0.5)" in found.sentence


# --- merges by mergekit's own program ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "method"), CASES)
def test_what_mergekit_merged(tmp_path: Path, dtype: str, method: str, command: Callable[..., Any]) -> None:
    save_models(tmp_path, dtype)
    (tmp_path / "merge.yaml").write_text(configuration(dtype, method))
    kept = load_file(TESTS / "oracles" / "mergekit_merges.safetensors")
    start = f"{dtype} {method} "
    theirs = {name.removeprefix(start): tensor for name, tensor in kept.items() if name.startswith(start)}
    assert theirs
    write_model(tmp_path / "theirs", theirs, CONFIG)
    ran = command("verify", tmp_path / "theirs", "--recipe", tmp_path / "merge.yaml", "--json")
    said = json.loads(ran.out)
    if method == "task_arithmetic":
        assert (ran.code, said["verdict"]) == (0, "within rounding"), said["sentence"]
    else:
        assert (ran.code, said["verdict"]) == (1, "torn"), said["sentence"]
    write_model(tmp_path / "not", read_model(tmp_path / "base"), CONFIG)
    ran = command("verify", tmp_path / "not", "--recipe", tmp_path / "merge.yaml", "--json")
    assert json.loads(ran.out)["verdict"] == "not applied"


# --- torn, wrong, incomplete ------------------------------------------------------------------------------------------

Q, V = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"
TABLE = "model.embed_tokens.weight"


@pytest.fixture(params=["bfloat16", "float32"])
def merged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Models, a recipe and our own merge."""
    save_models(tmp_path, request.param)
    path = write_recipe(
        tmp_path,
        base="base",
        specialists={"a": {"model": "a", "weight": 0.3}, "b": {"model": "b", "weight": 0.5}},
        merge={"rules": [{"match": "model.embed_tokens.weight", "keep": "base"}]},
    )
    recipe = recipes.load(path)
    execute(plan(recipe), recipe, tmp_path / "merged")
    return tmp_path


def judged(folder: Path, change: Callable[[Tensors, Tensors], object] = lambda tensors, base: None) -> Judgement:
    """What is said of our merge after a change."""
    tensors = read_model(folder / "merged")
    change(tensors, read_model(folder / "base"))
    write_model(folder / "changed", tensors, CONFIG)
    return judge(folder / "changed", recipes.load(folder / "merge.yaml"))


def test_our_own_merge_is_exact(merged: Path) -> None:
    found = judged(merged)
    assert (found.verdict, statuses(found)) == ("exact", {"exact"})
    assert any("1 of" in line and "do not show whether" in line for line in found.notes)


def half_base(tensors: Tensors, base: Tensors) -> None:
    tensors[Q][4:] = base[Q][4:]


def zeros_at_the_end(tensors: Tensors, base: Tensors) -> None:
    tensors[V][6:] = 0


def whole_base(tensors: Tensors, base: Tensors) -> None:
    tensors[Q] = base[Q]


def one_entry(tensors: Tensors, base: Tensors) -> None:
    tensors[Q][2, 3] = -tensors[Q][2, 3]


def shuffled(tensors: Tensors, base: Tensors) -> None:
    tensors[Q] = tensors[Q].flip(0)


TORN: dict[str, tuple[Callable[[Tensors, Tensors], object], str]] = {
    "half of a tensor": (half_base, f"{Q}: rows 0 to 3 fit; rows 4 to 7 equal the base's"),
    "zeros": (zeros_at_the_end, f"{V}: rows 0 to 5 fit; rows 6 to 7 are zero"),
    "a whole tensor": (whole_base, f"{Q}: equals the base's"),
    "one entry": (one_entry, f"{Q}: rows 0 to 1 fit; row 2 fits no weights; rows 3 to 7 fit"),
    "rows in another order": (shuffled, f"{Q}: fits no weights"),
}


@pytest.mark.parametrize("what", TORN)
def test_a_torn_merge(merged: Path, what: str) -> None:
    change, said = TORN[what]
    found = judged(merged, change)
    assert found.verdict == "torn" and not found.fits
    assert f"torn: 1 of {len(found.findings)} tensors do not match (" in found.sentence
    assert f"and the others do. These do not: {said}" in found.sentence


def test_a_tensor_more_or_less(merged: Path) -> None:
    def change(tensors: Tensors, base: Tensors) -> None:
        tensors["model.layers.9.self_attn.q_proj.weight"] = tensors.pop(Q)

    found = judged(merged, change)
    assert not found.fits
    assert {one.name: one.status for one in found.findings if one.status != "exact"} == {
        Q: "missing", "model.layers.9.self_attn.q_proj.weight": "extra",
    }  # fmt: skip


@pytest.mark.parametrize("weights", [(0.5, 0.3), (1.0, 1.0), (0.3, 0.0), (0.31, 0.5)])
def test_other_weights_are_found(merged: Path, weights: tuple[float, float]) -> None:
    """The oracle: the formula in float64, rounded once by torch."""

    def change(tensors: Tensors, base: Tensors) -> None:
        sources = [read_model(merged / label) for label in ("a", "b")]
        for name in sorted(tensors.keys() - {TABLE}):
            deltas = [w * (one[name].double() - base[name].double()) for w, one in zip(weights, sources, strict=True)]
            tensors[name] = (base[name].double() + sum(deltas)).to(base[name].dtype)

    found = judged(merged, change)
    assert found.verdict == "other weights"
    assert [found.weights["a"], found.weights["b"]] == pytest.approx(weights, abs=0.01)


def test_a_merge_of_other_models(merged: Path) -> None:
    def change(tensors: Tensors, base: Tensors) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in sorted(tensors.keys() - {TABLE}):
            moved = base[name].float() + 0.05 * torch.randn(base[name].shape, generator=generator)
            tensors[name] = moved.to(base[name].dtype)

    found = judged(merged, change)
    assert found.verdict == "another model" and not found.weights


def test_a_change_as_small_as_the_rounding(tmp_path: Path) -> None:
    """Half of it is within rounding of the whole, entry by entry; together the entries say that it is half."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(256, 256, generator=generator).bfloat16().float()
    moved = (base + 0.003 * torch.randn(256, 256, generator=generator)).bfloat16().float()
    name = "model.layers.0.self_attn.q_proj.weight"
    for label, tensor in (("base", base), ("a", moved), ("half", base + 0.5 * (moved - base))):
        write_model(tmp_path / label, {name: tensor.bfloat16()})
    said = as_said(str(tmp_path / "base"), None, specialists=[str(tmp_path / "a")])
    found = judge(tmp_path / "half", said)
    assert found.verdict == "other weights" and found.weights["a"] == pytest.approx(0.5, abs=0.05)
    assert judge(tmp_path / "a", said).verdict == "exact"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_merge_stored_in_another_format(merged: Path, dtype: Any) -> None:
    recipe = recipes.load(merged / "merge.yaml")
    from dataclasses import replace

    own = replace(recipe, output=replace(recipe.output, dtype=dtype))
    execute(plan(own), own, merged / "other")
    found = judge(merged / "other", recipe)
    assert found.verdict == "exact"
    before = read_model(merged / "base")[Q].dtype
    if before != getattr(torch, dtype):
        assert found.text_path.startswith("changed")
        assert any("number format" in line for line in found.notes)


def test_the_text_path_is_proved_where_only_the_projector_moves(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "language_model.model.embed_tokens.weight": (16, 8),
        "language_model.model.layers.0.self_attn.q_proj.weight": (8, 8),
        "language_model.model.norm.weight": (8,),
        "language_model.lm_head.weight": (16, 8),
        "audio_tower.layers.0.self_attn.q_proj.weight": (8, 8),
        "multi_modal_projector.linear.weight": (8, 8),
    }
    base = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    config = {"model_type": "qwen2_audio"}
    projector = "multi_modal_projector.linear.weight"
    write_model(tmp_path / "base", base, config)
    write_model(tmp_path / "audio", base | {projector: base[projector] + 0.5}, config)
    said = as_said(str(tmp_path / "base"), None, specialists=[str(tmp_path / "audio")])
    proved = "unchanged: proved, 4 tensors of backbone, embeddings, head are bit for bit the base's"
    assert judge(tmp_path / "audio", said).text_path == proved
    bits = base["language_model.model.embed_tokens.weight"].clone().view(torch.int16)
    bits[3, 3] ^= 1
    touched = {"language_model.model.embed_tokens.weight": bits.view(torch.bfloat16), projector: base[projector] + 0.5}
    write_model(tmp_path / "touched", base | touched, config)
    assert judge(tmp_path / "touched", said).text_path.startswith("changed: 1 of 4 tensors")
    less = {name: tensor for name, tensor in base.items() if "lm_head" not in name}
    write_model(tmp_path / "less", less, config)
    assert judge(tmp_path / "less", said).text_path == "not proved: language_model.lm_head.weight not stored"


def test_names_of_another_wrapping_are_the_same_tensors(merged: Path) -> None:
    tensors = {name.removeprefix("model."): tensor for name, tensor in read_model(merged / "merged").items()}
    write_model(merged / "bare", tensors, CONFIG)
    assert judge(merged / "bare", recipes.load(merged / "merge.yaml")).verdict == "exact"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base": None, "adapters": ["x"]}, "the base is missing"),
        ({"base": "b"}, "the adapters and specialists are missing"),
        ({"base": "b", "adapters": ["x", "y"], "weights": [1, 2, 3]}, "3 weights for 2"),
        ({"base": "b", "recipe": Path("r"), "adapters": ["x"]}, "--recipe already lists"),
    ],
)
def test_what_makes_no_merge(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        as_said(**{"recipe": None, **arguments})


def test_a_record_and_a_judgement_are_two_questions(merged: Path, command: Callable[..., Any]) -> None:
    ran = command("verify", merged / "merged", "--hashes-only", "--recipe", merged / "merge.yaml")
    assert ran.code == 2 and "--hashes-only applies to a model's own record" in ran.err
    ran = command("verify", merged / "base")
    assert ran.code == 1 and "`verify MODEL --base BASE` with --recipe" in ran.err
