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
from taskmerge.recipes.mergekit.values import Condition, Setting, situations
from taskmerge.words.patterns import matches


def translated(text: str) -> dict[str, Any]:
    return recipes.loads(text, "merge.yml").to_dict()


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_read_and_survives_being_written(name: str) -> None:
    recipe = recipes.loads(CASES[name], "merge.yml")
    assert recipe.merge.edges == "first"
    besides = name in ("karcher, base besides", "linear, base has the common weight")  # `base` is the first model then
    assert recipe.output.tokenizer == ("base_2" if besides else "base")
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


def test_filters_become_rules_in_their_order() -> None:
    rules = translated(CASES["sum, filters"])["merge"]["rules"]
    assert [rule["match"] for rule in rules] == [["*self_attn*"], ["*mlp*"]]
    assert [rule["weight"]["m0"] for rule in rules] == [[0.0, 1.0], 0.25]
    assert all(rule["optional"] for rule in rules)


def test_filters_that_differ_between_models_are_combined() -> None:
    rules = translated(CASES["sum, filters differ"])["merge"]["rules"]
    both = next(rule for rule in rules if rule["match"] == ["*layers.2*"] and rule.get("also") == ["*q_proj*"])
    assert both["weight"] == {"m0": 0.1, "m1": 0.5}


SETTINGS = some.lists(
    some.tuples(some.lists(some.sampled_from(["a", "b", "ab", "ba", "abb", "c"]), max_size=4), some.booleans()),
    min_size=1,
    max_size=3,
)


@given(SETTINGS, some.text("abc", max_size=8))
def test_the_first_situation_that_a_name_is_in_has_every_settings_value(
    said: list[tuple[list[str], bool]], name: str
) -> None:
    settings = []
    for number, (filters, ends) in enumerate(said):
        conditions = [Condition(text, f"{number} {place}") for place, text in enumerate(filters)]
        rest = [Condition(None, f"{number} rest")] if ends else []
        settings.append(Setting((*conditions, *rest), f"{number} default"))
    found = next(one for one in situations(settings) if all(text in name for text in one))
    for one in settings:
        wanted = next((c.value for c in one.conditions if c.contains is None or c.contains in name), one.default)
        assert one.under(found) == wanted


def test_slices_become_a_stack_and_rules_for_their_layers() -> None:
    values = translated(CASES["two slices"])
    assert values["stack"] == [{"base": "0..1", "m0": "0..1"}, {"base": "2..3", "m0": "2..3"}]
    rules = values["merge"]["rules"]
    assert [rule["weight"]["m0"] for rule in rules] == [0.0, 1.0, 0.25, 0.0]
    for layers, rule in (((0,), rules[0]), ((1,), rules[1]), ((2, 3), rules[2])):
        for layer in layers:
            names = [f"backbone.{path}.{layer}.mlp.weight" for path in ("layers", "h", "encoder.layer", "x.blocks")]
            assert all(any(matches(name, pattern) for pattern in rule["match"]) for name in names)
        assert not any(matches(f"backbone.layers.1{layers[0]}.mlp.weight", pattern) for pattern in rule["match"])
        assert not any(matches(f"vision_encoder.layers.{layers[0]}.x", pattern) for pattern in rule["match"])


def test_a_stack_of_uneven_slices() -> None:
    assert translated(CASES["passthrough, stacked"])["stack"] == [{"m0": "0..2"}, {"m1": "1..3"}, {"m2": "0..0"}]
    assert translated(CASES["ties, stacked"])["stack"][0] == {"base": "0..2", "m0": "1..3", "m1": "0..2"}


def notes(text: str) -> tuple[str, ...]:
    return recipes.loads(text, "merge.yml").notes


def test_what_mergekit_ignores_is_said() -> None:
    found = notes(CASES["ties, stray keys"])
    keys = ["'stray' at the top", "'normalize' at the top", "'density' in models[0]", "'layer_range' in models[1]"]
    keys += ["'densty' in models[0].parameters", "'unknown' in parameters"]
    assert len(found) == len(keys)
    for key in keys:
        assert sum(key in note for note in found) == 1, key
    assert any(note.startswith("merge.yml:2: 'stray'") for note in found)
    assert any("did you mean 'density'?" in note for note in found)


def test_what_is_assumed_is_said() -> None:
    assert any("the key 'merge_method' is given twice" in note for note in notes(CASES["sum, keys twice"]))
    slerp = "merge_method: slerp\nparameters: {t: 50%}\nmodels: [{model: m}, {model: n}]\n"
    assert translated(slerp)["base"] == "m" and translated(slerp)["merge"]["fraction"] == 0.5
    assert ["slerp starts from m" in note for note in notes(slerp)].count(True) == 1
    assert any("t 50% is read as 0.5" in note for note in notes(slerp))
    assert any("is not one of the two" in note for note in notes(slerp + "base_model: other\n"))
    sliced = "slices: [{sources: [{model: m, layer_range: [0, 2], parameters: {weight: 1}}]}]\n"
    assert any(
        "provides the same layers as m" in note for note in notes("merge_method: ties\nbase_model: b\n" + sliced)
    )


def test_no_note_without_a_reason() -> None:
    assert not notes(CASES["ties"]) and not notes(CASES["slerp, stacked"])


def test_the_base_may_carry_an_adapter() -> None:
    text = (
        "merge_method: task_arithmetic\nbase_model: m+lora\nmodels: [{model: m+lora}, {model: m, %s}, {model: m+n, %s}]"
    )
    values = translated(text % (("parameters: {weight: 1}",) * 2))
    assert (values["base"], values["base_adapter"]) == ("m", "lora")
    assert values["specialists"] == {"m": {"model": "m"}, "n": {"model": "m", "adapter": "n"}}
    linear = "merge_method: linear\nmodels: [{model: m+lora, %s}, {model: n, %s}]" % (("parameters: {weight: 1}",) * 2)
    values = translated(linear)
    assert (values["base"], values["base_adapter"]) == ("m", "lora")
    assert values["specialists"] == {"lora": {"model": "m", "adapter": "lora"}, "n": {"model": "n"}}


def test_modules_become_rules_for_their_components() -> None:
    text = (
        "merge_method: linear\nmodules:\n"
        "  text_decoder: {slices: [{sources: [{model: m, layer_range: [0, 4]}, {model: n, layer_range: [0, 4]}]}]}\n"
        "  vision_tower: {parameters: {weight: [{filter: mlp, value: 3}, {value: 2}]}, models: [{model: m}]}\n"
        "  multi_modal_projector: {models: [{model: m}, {model: n, parameters: {weight: 9}}]}\n"
        "parameters: {weight: 1}\n"
    )
    values = translated(text)
    assert values["stack"] == [{"m": "0..3", "n": "0..3"}]
    rules = [(rule["match"], rule.get("also", []), rule.get("weight")) for rule in values["merge"]["rules"]]
    assert rules == [
        (["{backbone,embeddings,head}"], [], {"m": 1.0, "n": 1.0}),
        (["*mlp*"], ["vision_encoder"], {"m": 3.0, "n": 0.0}),
        (["vision_encoder"], [], {"m": 2.0, "n": 0.0}),
        (["{projector,*_projector}"], [], {"m": 1.0, "n": 9.0}),
        (["*"], [], None),
    ]


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


def test_tokens_and_templates() -> None:
    text = (
        "merge_method: slerp\nbase_model: org/m\nchat_template: auto\nmodels: [{model: org/m}, {model: org/n}]\n"
        "parameters: {t: 0.5}\ntokenizer:\n  source: union\n  pad_to_multiple_of: 8\n  tokens:\n"
        "    <a>: {source: org/n}\n    <b>: {source: {kind: zero}, force: true}\n"
        "    <c>: {source: {kind: model_token, model: org/m, token: x}}\n"
        "    <d>: {source: {kind: model_token, model: org/n, token_id: 7}}\n"
    )
    output = translated(text)["output"]
    assert output.pop("tokens") == {
        "<a>": {"source": "n"},
        "<b>": {"source": "zero", "force": True},
        "<c>": {"source": "m", "token": "x"},
        "<d>": {"source": "n", "row": 7},
    }
    assert output == {"new_tokens": "own", "pad_rows": 8, "chat_template": "auto"}


TWO = "base_model: b\nmodels: [{model: m, parameters: {weight: 1}}, {model: n, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "line", "what", "move"),
    [
        ("merge_method: tangent\n" + TWO, 1, "mergekit's merge method 'tangent' is not supported", None),
        (
            "merge_method: arcee_fusion\n" + TWO,
            3,
            "arcee_fusion takes 1 model in addition to base_model, not 2",
            "remove",
        ),
        (
            "merge_method: nuslerp\n" + TWO.replace("[{", "[{model: o}, {", 1),
            3,
            "takes 2 models in addition to",
            "remove",
        ),
        ("merge_method: passthrough\n" + TWO, 3, "passthrough needs one model for each slice", None),
        ("merge_method: tise\n" + TWO, 1, "mergekit's merge method 'tise' is not supported", "did you mean 'ties'?"),
        ("base_model: b\nmodels: [{model: m}]\n", None, "the configuration lacks 'merge_method'", None),
        ("merge_method: ties\nbase_model: b\nmodles: []\n", None, "must list models or slices", "give `models`"),
        (
            "merge_method: ties\n" + TWO + "tokenizer: {tokens: {a: {source: {kind: odd}}}}\n",
            4,
            "the kind 'odd' of a token's source is not supported",
            "zero, model_token",
        ),
        ("merge_method: ties\n" + TWO + "tokenizer: union\n", 4, "tokenizer must be a mapping", "source: union"),
        ("merge_method: ties\n" + TWO + "tokenizer_source: other\n", 4, "no model 'other'", "base, union"),
        ("merge_method: ties\n" + TWO + "parameters: 3\n", 4, "parameters must be a mapping", None),
        ("merge_method: ties\n" + TWO + "slices: []\n", 4, "has `models` or `slices`, not both", None),
        ("merge_method: ties\n" + TWO + "parameters: {density: {a: 1}}\n", 4, "must be a mapping with `value`", None),
        ("merge_method: ties\n" + TWO + "parameters: {density: x%}\n", None, "density.m must be", None),
        ("merge_method: ties\n" + TWO + "parameters: {density: 1.5}\n", None, "density.m must be", None),
        (
            "merge_method: ties\n" + TWO + "parameters: {density: [{filter: x}]}\n",
            4,
            "must be a mapping with `value`",
            None,
        ),
        ("merge_method: ties\nmodels: [{model: m, parameters: {weight: 1}}]\n", 1, "ties needs a base_model", "add"),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: m}]\n",
            1,
            "m lacks the parameter weight",
            "add parameters",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: m}, {model: m}]\n",
            3,
            "'m' is listed twice",
            "list it once",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: 3}]\n",
            3,
            "model must be the path or hub id of a model, not 3",
            "write its path",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{name: m}]\n",
            3,
            "models[0] must be a mapping with `model`",
            None,
        ),
        ("merge_method: ties\nbase_model: b\nmodels: m\n", 3, "models must be a list of models", None),
        ("merge_method: linear\n" + TWO, 1, "b lacks the parameter weight", "add parameters"),
        ("merge_method: slerp\n" + TWO, 1, "the merge lacks the parameter t", "add parameters"),
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
        ("merge_method: della\n" + TWO + "parameters: {density: 0.9}\n", 1, "is outside (0, 1)", "lower epsilon"),
        (
            "merge_method: linear\nslices:\n  - sources: [{model: m, layer_range: [0, 4]},"
            " {model: n, layer_range: [2, 5]}]\n",
            3,
            "the sources of a slice give different numbers of layers",
            "of the same length",
        ),
        (
            "merge_method: ties\nbase_model: b\nslices:\n  - sources: [{model: m, layer_range: [0, 4]},"
            " {model: n, layer_range: [1, 5]}]\n",
            4,
            "does not list the layers of base_model",
            "list the base_model",
        ),
        (
            "merge_method: linear\nparameters: {weight: [{filter: layers.2, value: 1}, {value: 0}]}\nslices:\n"
            "  - sources: [{model: m, layer_range: [0, 4]}]\n  - sources: [{model: n, layer_range: [2, 5]}]\n",
            5,
            "the filter 'layers.2' refers to layer numbers that the slices change",
            "put that layer into its own slice",
        ),
        (
            "merge_method: linear\nmodules: {eyes: {models: [{model: m}]}}\n",
            2,
            "the module 'eyes' is not supported",
            None,
        ),
        (
            "merge_method: linear\nparameters: {weight: 1}\nmodules:\n  vision_tower: {slices: ["
            "{sources: [{model: m, layer_range: [0, 2]}]}, {sources: [{model: m, layer_range: [1, 2]}]}]}\n",
            4,
            "the layers of vision_tower are rearranged",
            None,
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
            "layer_range must be [first, end), not None",
            None,
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
    with pytest.raises(RecipeError, match="only mergekit files may contain several"):
        recipes.load_all(path, tmp_path)


def test_a_document_that_is_neither_is_read_as_ours() -> None:
    with pytest.raises(RecipeError, match="the recipe lacks 'specialists'"):
        recipes.loads("base: b\n")


def test_the_tiny_models_are_checkpoints(tmp_path: Path) -> None:
    save_models(tmp_path)
    assert (tmp_path / "m2" / "model.safetensors").stat().st_size > 8_000
