"""mergekit configurations read as recipes: what they become, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from mergekit_cases import CASES, save_models

from taskmerge import recipes
from taskmerge.errors import RecipeError
from taskmerge.recipes.mergekit.values import patterns
from taskmerge.words.patterns import matches


def translated(text: str) -> dict[str, Any]:
    return recipes.loads(text, "merge.yml").to_dict()


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_read_and_survives_being_written(name: str) -> None:
    recipe = recipes.loads(CASES[name], "merge.yml")
    assert recipe.merge.edges == "first"
    assert recipe.output.tokenizer == "base"
    assert recipes.from_dict(recipe.to_dict()) == recipe


def test_task_vectors_start_from_the_base_model() -> None:
    values = translated(CASES["ties, densities differ"])
    assert values["base"] == "base"
    assert values["specialists"] == {"m0": {"model": "m0"}, "m1": {"model": "m1"}}
    merge = {"method": "ties", "edges": "first", "average": "weight", "scale": 1.0}
    assert values["merge"] == merge | {"weight": {"m0": 0.3, "m1": 0.9}, "density": {"m0": 0.2, "m1": 0.7}}


def test_methods_of_whole_models_start_from_the_first() -> None:
    values = translated(CASES["karcher, base besides"])
    assert values["base"] == "m0"
    # `model: base` would mean the recipe's own base, which is m0 here.
    assert {name: entry["model"] for name, entry in values["specialists"].items()} == {
        "m0": "m0",
        "m1": "m1",
        "base_2": "./base",
    }
    assert values["merge"]["space"] == "model"


def test_filters_become_rules_for_every_combination() -> None:
    rules = translated(CASES["sum, filters"])["merge"]["rules"]
    assert [rule["match"] for rule in rules] == [["*mlp*self_attn*", "*self_attn*mlp*"], ["*mlp*"], ["*self_attn*"]]
    assert [rule["weight"]["m0"] for rule in rules] == [[0.0, 1.0], 0.25, [0.0, 1.0]]
    assert all(rule["optional"] for rule in rules)


def test_slices_become_rules_for_their_layers() -> None:
    values = translated(CASES["two slices"])
    assert values["layers"] == 4
    rules = values["merge"]["rules"]
    assert [rule["weight"]["m0"] for rule in rules] == [0.0, 1.0, 0.25, 0.25, 0.0]
    for layer, rule in enumerate(rules[:4]):
        # "backbone.": a rule reads a name with its component before it, too
        names = [f"model.layers.{layer}.mlp.weight", f"backbone.h.{layer}.attn.weight", f"encoder.layer.{layer}.x"]
        assert all(any(matches(name, pattern) for pattern in rule["match"]) for name in names)
        assert not any(matches(f"model.layers.1{layer}.mlp.weight", pattern) for pattern in rule["match"])


def test_adapters_revisions_and_names() -> None:
    text = (
        "merge_method: task_arithmetic\nbase_model: org/model@v1\ntokenizer_source: union\ndtype: bfloat16\nmodels:\n"
        "  - {model: org/model@v1+org/lora, parameters: {weight: 1}}\n"
        "  - {model: {model: {path: org/model, revision: abc}, lora: other/lora}, parameters: {weight: 1}}\n"
    )
    values = translated(text)
    assert values["specialists"] == {
        "lora": {"model": "org/model@v1", "adapter": "org/lora"},
        "lora_2": {"model": "org/model@abc", "adapter": "other/lora"},
    }
    assert "tokenizer" not in values["output"] and values["output"]["dtype"] == "bfloat16"  # union is the default


@given(some.sets(some.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3), some.text("ab.", max_size=12))
def test_patterns_for_filters_match_names_that_contain_them_all(filters: set[str], name: str) -> None:
    found = any(matches(name, pattern) for pattern in patterns(frozenset(filters)))
    if found:
        assert all(text in name for text in filters)
    elif len(filters) <= 2:
        assert not all(text in name for text in filters)


TWO = "base_model: b\nmodels: [{model: m, parameters: {weight: 1}}, {model: n, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "line", "what", "move"),
    [
        ("merge_method: arcee_fusion\n" + TWO, 1, "mergekit's merge method 'arcee_fusion' is not done here", None),
        ("merge_method: tise\n" + TWO, 1, "mergekit's merge method 'tise' is not done here", "did you mean 'ties'?"),
        ("base_model: b\nmodels: [{model: m}]\n", None, "the configuration lacks 'merge_method'", None),
        (
            "merge_method: ties\n" + TWO + "chat_template: auto\n",
            4,
            "'chat_template' in the recipe is not read",
            "remove",
        ),
        ("merge_method: ties\n" + TWO + "modles: []\n", 4, "'modles' in the recipe is not read", "remove it"),
        (
            "merge_method: ties\n" + TWO + "tokenizer: {source: union, tokens: {a: {}}}\n",
            4,
            "'tokens' in tokenizer",
            None,
        ),
        ("merge_method: ties\n" + TWO + "tokenizer_source: other\n", 4, "no model is called 'other'", "base, union"),
        ("merge_method: ties\n" + TWO + "parameters: {densty: 1}\n", 4, "unknown parameter 'densty'", "'density'"),
        ("merge_method: ties\n" + TWO + "parameters: 3\n", 4, "parameters must be a mapping", None),
        ("merge_method: ties\n" + TWO + "slices: []\n", 4, "has `models` or `slices`, not both", None),
        ("merge_method: ties\n" + TWO + "parameters: {density: {a: 1}}\n", 4, "density must be a number, true", None),
        ("merge_method: ties\n" + TWO + "parameters: {density: 1.5}\n", None, "density.m must be", None),
        (
            "merge_method: ties\n" + TWO + "parameters: {density: [{filter: x}]}\n",
            4,
            "must be a mapping with `value`",
            None,
        ),
        ("merge_method: ties\n" + TWO.replace("weight: 1", "weight: -1", 1), 1, "negative weights elect signs", None),
        ("merge_method: ties\nmodels: [{model: m, parameters: {weight: 1}}]\n", 1, "ties needs a base_model", "add"),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: m}]\n", 1, "m has no weight", "give it parameters"),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: m}, {model: m}]\n",
            3,
            "'m' is named twice",
            "give it once",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: 3}]\n",
            3,
            "model must name a model, not 3",
            "write its path",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{name: m}]\n",
            3,
            "models[0] must be a mapping with `model`",
            None,
        ),
        ("merge_method: ties\nbase_model: b\nmodels: m\n", 3, "models must be a list of models", None),
        ("merge_method: linear\n" + TWO, 1, "base_model has no weight", "list it among the models"),
        ("merge_method: slerp\nmodels: [{model: m}, {model: n}]\n", 1, "slerp needs a base_model", "add base_model"),
        ("merge_method: slerp\n" + TWO, 1, "the merge has no t", "give it parameters"),
        (
            "merge_method: nuslerp\n" + TWO + "parameters: {nuslerp_flatten: false}\n",
            4,
            "nuslerp_flatten: False",
            "only",
        ),
        (
            "merge_method: model_stock\n" + TWO + "parameters: {filter_wise: true}\n",
            4,
            "filter_wise: True is not",
            "only",
        ),
        ("merge_method: della\n" + TWO + "parameters: {density: 0.9}\n", 1, "leaves (0, 1)", "lower epsilon"),
        (
            "merge_method: breadcrumbs\n" + TWO + "parameters: {density: 0.999}\n",
            1,
            "add up to more than 1",
            "mergekit",
        ),
        (
            "merge_method: passthrough\nslices:\n  - sources: [{model: m, layer_range: [0, 4]}]\n"
            "  - sources: [{model: n, layer_range: [2, 6]}]\n",
            4,
            "these slices rearrange layers",
            "slices must follow one another",
        ),
        (
            "merge_method: ties\nbase_model: b\nslices: [{sources: [{model: m, layer_range: [0, x]}]}]\n",
            3,
            "layer_range must be [first, end), not [0, 'x']",
            None,
        ),
        (
            "merge_method: ties\nbase_model: b\nslices: [{sources: [{model: m, layer_rang: [0, 2]}]}]\n",
            3,
            "'layer_rang' in slices[0].sources[0] is not read",
            "remove it",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(text: str, line: int | None, what: str, move: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.loads(text, "merge.yml")
    found = [problem for problem in caught.value.problems if what in problem.what]
    assert found, str(caught.value)
    assert line is None or found[0].place == f"merge.yml:{line}"
    assert move is None or move in (found[0].next_move or "")


def test_several_documents_use_one_anothers_results(tmp_path: Path) -> None:
    path = tmp_path / "multi.yml"
    path.write_text(
        "name: first\n" + CASES["ties"] + "---\nname: second\nmerge_method: task_arithmetic\nbase_model: first\n"
        "models: [{model: m2, parameters: {weight: 1}}]\n---\nmerge_method: slerp\nbase_model: first\n"
        "models: [{model: first}, {model: second}]\nparameters: {t: 0.5}\n"
    )
    first, second, last = recipes.load_all(path, tmp_path / "made")
    made = str(tmp_path / "made")
    assert [first.output.path, second.output.path, last.output.path] == [f"{made}/first", f"{made}/second", None]
    assert first.base == "base" and second.base == f"{made}/first"
    assert [one.model for one in last.specialists.values()] == [f"{made}/first", f"{made}/second"]
    with pytest.raises(RecipeError, match="a recipe is one YAML document"):
        recipes.load(path)


def test_one_document_is_one_recipe(tmp_path: Path) -> None:
    path = tmp_path / "one.yml"
    path.write_text(CASES["ties"])
    assert recipes.load_all(path, tmp_path) == [recipes.load(path)]
    path.write_text("base: b\nspecialists: {a: m}\n---\nbase: b\nspecialists: {a: m}\n")
    with pytest.raises(RecipeError, match="only mergekit files may hold several"):
        recipes.load_all(path, tmp_path)


def test_a_document_that_is_neither_is_read_as_ours() -> None:
    with pytest.raises(RecipeError, match="the recipe lacks 'specialists'"):
        recipes.loads("base: b\n")


def test_the_tiny_models_are_checkpoints(tmp_path: Path) -> None:
    save_models(tmp_path)
    assert (tmp_path / "m2" / "model.safetensors").stat().st_size > 8_000
