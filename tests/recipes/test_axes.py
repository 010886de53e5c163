"""What a search turns: targets become axes, values on them become the recipe that anybody would have written."""

from __future__ import annotations

from typing import Any

import pytest

from taskmerge.errors import RecipeError, UsageError
from taskmerge.recipes import Range, from_dict, loads
from taskmerge.recipes.axes import axes_of
from taskmerge.recipes.scores import parse_objective, score_names
from taskmerge.recipes.searching import parse_grid
from taskmerge.recipes.varied import checked_axes, current, with_values

RECIPE: dict[str, Any] = {
    "base": "b",
    "specialists": {"image": {"model": "i", "weight": 0.3}, "audio": "a"},
    "merge": {
        "method": "ties",
        "density": 0.3,
        "rules": [
            {"match": ["*.embed*"], "keep": "base"},
            {"match": ["*.norm.*"], "density": 0.5},
            {"match": ["layers.*"], "method": "dare_ties", "density": 0.7},
        ],
    },
}


def axes(vary: dict[str, Any], recipe: Any = None) -> dict[str, Any]:
    found = recipe or from_dict(RECIPE)
    return {axis.name: axis for axis in axes_of(found, {name: _range(said) for name, said in vary.items()})}


def _range(said: Any) -> Range:
    return said if isinstance(said, Range) else Range(values=tuple(said))


def test_wildcards_and_depth_give_an_axis_each() -> None:
    found = axes({"specialists.*.weight": [0.1, 1.0], "merge.scale": Range(low=0.1, high=1.0, depth=2)})
    assert list(found) == ["specialists.image.weight", "specialists.audio.weight", "merge.scale[0]", "merge.scale[1]"]
    recipe = from_dict(RECIPE)
    assert [current(recipe, axis) for axis in found.values()] == [0.3, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("vary", "values", "expected"),
    [
        ({"specialists.*.weight": [0.1, 1.0]}, {"specialists.audio.weight": 0.7},
         {"specialists": {"image": {"model": "i", "weight": 0.3}, "audio": {"model": "a", "weight": 0.7}}}),
        ({"merge.density": [0.1, 0.9]}, {"merge.density": 0.6}, {"merge": {**RECIPE["merge"], "density": 0.6}}),
        ({"merge.method": ["ties", "task_arithmetic"]}, {"merge.method": "task_arithmetic"},
         {"merge": {"method": "task_arithmetic", "rules": [RECIPE["merge"]["rules"][0], RECIPE["merge"]["rules"][2]]}}),
        ({"merge.scale": Range(low=0.1, high=1.0, depth=2)}, {"merge.scale[0]": 0.2, "merge.scale[1]": 0.9},
         {"merge": {**RECIPE["merge"], "scale": [0.2, 0.9]}}),
        ({"rules.*.norm.*.weight": [0.1, 1.0]}, {"rules.*.norm.*.audio.weight": 0.4},
         {"merge": {**RECIPE["merge"], "rules": [RECIPE["merge"]["rules"][0],
          {"match": ["*.norm.*"], "density": 0.5, "weight": {"audio": 0.4}}, RECIPE["merge"]["rules"][2]]}}),
        ({"rules.layers.{0..3}.*.audio.weight": [0.1, 1.0]}, {"rules.layers.{0..3}.*.audio.weight": 0.4},
         {"merge": {**RECIPE["merge"], "rules": [RECIPE["merge"]["rules"][0],
          {"match": ["layers.{0..3}.*"], "weight": {"audio": 0.4}}, *RECIPE["merge"]["rules"][1:]]}}),
    ],
)  # fmt: skip
def test_values_make_the_recipe_one_would_write(
    vary: dict[str, Any], values: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = with_values(from_dict(RECIPE), list(axes(vary).values()), values)
    assert found == from_dict({**RECIPE, **expected})


def test_parameters_apply_to_the_methods_that_have_them() -> None:
    recipe = from_dict(RECIPE)
    found = axes({"merge.method": ["task_arithmetic", "ties"], "merge.density": [0.1, 0.9]})
    density = found["merge.density"]
    assert density.methods == ("ties",)
    assert density.applies({"merge.method": "ties"}, recipe)
    assert not density.applies({"merge.method": "task_arithmetic"}, recipe)
    left = with_values(recipe, list(found.values()), {"merge.method": "task_arithmetic", "merge.density": 0.5})
    assert "density" not in left.merge.options


def test_what_the_recipe_says_on_an_axis_comes_back() -> None:
    """Values read from a recipe and put into it again change nothing that is merged."""
    recipe = from_dict(RECIPE)
    found = axes({"specialists.*.weight": [0.1, 1.0], "merge.density": [0.1, 0.9], "merge.method": ["ties", "sum"]})
    values = {name: current(recipe, axis) for name, axis in found.items()}
    again = with_values(recipe, list(found.values()), values)
    assert again.specialists["audio"].weight == 1.0 and again.merge == recipe.merge


@pytest.mark.parametrize(
    ("said", "count", "values"),
    [
        (Range(low=0.0, high=1.0), 3, [0.0, 0.5, 1.0]),
        (Range(low=0.01, high=1.0, log=True), 3, [0.01, 0.1, 1.0]),
        (Range(low=0.0, high=1.0, step=0.5), 9, [0.0, 0.5, 1.0]),
        (Range(low=0.0, high=1.0, step=0.1), 3, [0.0, 0.5, 1.0]),
    ],
)
def test_a_grid_over_a_range(said: Range, count: int, values: list[float]) -> None:
    assert axes({"merge.scale": said})["merge.scale"].grid(count) == pytest.approx(values)


@pytest.mark.parametrize(
    ("vary", "what"),
    [
        ("{merge.densiti: [0.1, 0.9]}", "ties has no parameter 'densiti'"),
        ("{merge.density: [0.1, 1.2]}", "density must be a number from 0 to 1, not 1.2"),
        ("{merge.elect: [mass, cuont]}", "cuont"),
        ("{merge.method: [0.1, 0.2]}", "unknown merge method"),
        ("{merge.scale: {low: 0, high: 1, log: true}}", "log needs numbers above 0"),
        ("{merge.scale: {low: 0}}", "a range needs both low and high"),
        ("{merge.scale: {values: [1, 2], low: 0, high: 1}}", "both a list of values and low or high"),
        ("{merge.scale: [0.5, 0.5]}", "a value is listed twice"),
        ("{merge.scale: 0.5}", "is a single value: nothing varies"),
        ("{merge.scale: '0:1:0.000001'}", "are too many steps"),
        ("{merge.elect: {values: [mass, count], step: 0.1}}", "step is for a range"),
        ("{'rules.[.weight': [0, 1]}", "["),
    ],
)
def test_mistakes_have_their_line(vary: str, what: str) -> None:
    text = "base: b\nspecialists: {a: a}\nmerge: {method: ties}\nsearch:\n  vary: " + vary + "\n  on: {a: x}\n"
    with pytest.raises(RecipeError) as told:
        checked_axes(loads(text, "merge.yaml"))
    assert what in str(told.value) and told.value.problems[0].place == "merge.yaml:5", told.value


def test_weights_that_are_overruled_cannot_be_varied() -> None:
    recipe = from_dict({**RECIPE, "merge": {"weight": 0.5}})
    with pytest.raises(RecipeError, match=r"merge.weight replaces the specialists' own"):
        axes({"specialists.*.weight": [0.1, 1.0]}, recipe)


@pytest.mark.parametrize(("text", "scores", "value"), [
    ("mean(retrieval.*.mrr)", {"retrieval.a.mrr": 0.2, "retrieval.b.mrr": 0.6, "retrieval.a.recall_at_1": 0.9}, 0.4),
    ("min(retrieval.*.mrr)", {"retrieval.a.mrr": 0.2, "retrieval.b.mrr": 0.6}, 0.2),
    ("max(retrieval.{a,b}.mrr)", {"retrieval.a.mrr": 0.2, "retrieval.b.mrr": 0.6, "retrieval.c.mrr": 0.9}, 0.6),
    ("geometric_mean(retrieval.*.mrr)", {"retrieval.a.mrr": 0.2, "retrieval.b.mrr": 0.8}, 0.4),
    ("retrieval.a.mrr", {"retrieval.a.mrr": 0.2, "retrieval.b.mrr": 0.6}, 0.2),
    ("mean(agreement.*)", {"agreement.a": 0.25, "retrieval.a.mrr": 0.1}, 0.25),
])  # fmt: skip
def test_objectives(text: str, scores: dict[str, float], value: float) -> None:
    assert float(parse_objective(text).of(scores)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("meen(retrieval.*.mrr)", "unknown function 'meen'"),
        ("mean(retreival.*.mrr)", "there are no scores called 'retreival'"),
        ("mean()", "cannot be read"),
        ("mean(min(retrieval.a.mrr))", "cannot be read"),
        ("mean(retrieval.{a.mrr)", "mean(retrieval.{a.mrr)"),
    ],
)
def test_objectives_that_cannot_be_read(text: str, what: str) -> None:
    with pytest.raises(UsageError) as told:
        parse_objective(text)
    assert what in str(told.value)


def test_objectives_that_name_nothing_or_too_much() -> None:
    known = score_names(["a", "b"], ["a"])
    with pytest.raises(UsageError, match=r"matches no score"):
        parse_objective("mean(retrieval.*.mmr)").check(known)
    with pytest.raises(UsageError, match=r"matches 2 scores"):
        parse_objective("retrieval.*.mrr").check(known)
    parse_objective("mean(agreement.*)").check(known)


@pytest.mark.parametrize("text", ["1:0:0.1", "0:1:0", "0:1", "a:b:c", "0:1:-1", "0:inf:1"])
def test_grids_that_have_no_steps(text: str) -> None:
    with pytest.raises(UsageError, match=r"low:high:step|0.1:1.0:0.1"):
        parse_grid(text)
