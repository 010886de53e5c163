"""`taskmerge.search` from Python: any network, any score, models in memory, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_projects import new_project, pairs

from taskmerge import recipes, search
from taskmerge.errors import UsageError
from taskmerge.metrics.bootstrap import Interval
from taskmerge.metrics.correlation import spearman
from taskmerge.recipes.scores import parse_objective
from taskmerge.searching.findings import Confirmed, Curve, CurvePoint, best_of
from taskmerge.searching.points import Point, front
from taskmerge.searching.scored import Scored


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


@pytest.fixture
def models() -> dict[str, torch.nn.Module]:
    base = network(0)
    found = {"base": base}
    for seed, name in enumerate(("law", "code"), start=1):
        found[name] = copy.deepcopy(base)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in found[name].parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def test_a_network_of_ones_own_goes_where_its_score_is_highest(models: dict[str, torch.nn.Module]) -> None:
    """The optimum is known: the score is how near the merge is to one with the weights 0.3 and 0.8."""
    base = dict(models["base"].named_parameters())
    wanted = {
        name: (own + 0.3 * (dict(models["law"].named_parameters())[name] - own)
               + 0.8 * (dict(models["code"].named_parameters())[name] - own)).detach()
        for name, own in base.items()
    }  # fmt: skip
    kept = {name: value.clone() for name, value in models["base"].state_dict().items()}

    def near(model: torch.nn.Module) -> float:
        return -sum(float((value - wanted[name]).square().sum()) for name, value in model.named_parameters())

    found = search(models, near, model=copy.deepcopy(models["base"]), vary={"specialists.*.weight": [0.0, 1.0]},
                   trials=25, sensitivity=0)  # fmt: skip
    assert found.best is not None and found.recipe is not None
    assert found.best.values["specialists.law.weight"] == pytest.approx(0.3, abs=0.06)
    assert found.best.values["specialists.code.weight"] == pytest.approx(0.8, abs=0.06)
    assert all(torch.equal(value, kept[name]) for name, value in models["base"].state_dict().items())
    assert found.recipe.specialists["law"].weight == found.best.values["specialists.law.weight"]


def test_numbers_by_name_and_a_second_objective_to_confirm(models: dict[str, torch.nn.Module]) -> None:
    def scores(model: torch.nn.Module) -> dict[str, float]:
        total = sum(float(value.sum()) for value in model.parameters())
        return {"accuracy": total, "size": -sum(float(value.square().sum()) for value in model.parameters())}

    found = search(models, scores, model=copy.deepcopy(models["base"]), vary={"specialists.*.weight": [0.0, 1.0]},
                   maximize=["accuracy", "size"], confirm=scores, trials=4)  # fmt: skip
    assert found.objectives == ("accuracy", "size") and all(len(point.results) == 2 for point in found.front)
    assert found.best is not None
    assert found.confirmed[0].scores["accuracy"] == pytest.approx(found.best.scores["accuracy"])


def test_the_model_written_over_must_not_be_an_input(models: dict[str, torch.nn.Module]) -> None:
    with pytest.raises(UsageError, match=r"is base itself"):
        search(models, lambda model: 1.0, model=models["base"], vary={"merge.scale": [0.1, 1.0]})


def test_a_model_of_another_shape_is_refused(models: dict[str, torch.nn.Module]) -> None:
    other = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    with pytest.raises(UsageError, match=r"shapes of the model differ from those of the merge"):
        search(models, lambda model: 1.0, model=other, vary={"merge.scale": [0.1, 1.0]})


def test_without_pairs_agreement_is_maximised_and_its_rank_correlation_told(tmp_path: Path) -> None:
    found = search(new_project(tmp_path), maximize="mean(agreement.*)", trials=4, sensitivity=0)
    means = [np.mean([point.scores["agreement.law"], point.scores["agreement.code"]]) for point in found.points]
    assert [point.results[0] for point in found.points] == pytest.approx(means)
    told = {one.agreement: one for one in found.correlations}
    rows = [(point.scores["agreement.law"], point.scores["retrieval.law.mrr"]) for point in found.points]
    expected = spearman(*map(np.array, zip(*rows, strict=True)))
    assert told["agreement.law"].value == pytest.approx(expected) and told["agreement.law"].count == len(rows)


def test_which_text_stands_beside_which_item_plays_no_role_for_agreement(tmp_path: Path) -> None:
    recipe = new_project(tmp_path)
    rows = pairs(tmp_path / "rows.jsonl", 40)
    shuffled = [{**row, "text": other["text"]} for row, other in zip(rows, rows[7:] + rows[:7], strict=True)]
    results = []
    for number, on in enumerate((rows, shuffled)):
        found = search(recipe, maximize="agreement.law", on={"law": on}, confirm={"law": on}, trials=1, sensitivity=0,
                       sampler="random", out=tmp_path / str(number))  # fmt: skip
        results.append([point.results[0] for point in found.points])
    # the gallery is the same set of texts in another order
    assert results[0] == pytest.approx(results[1])


def test_trials_that_are_worse_are_stopped_early(tmp_path: Path) -> None:
    """Weights far beyond the specialists wreck a model: with enough pairs such trials are not looked at whole."""
    recipe = new_project(tmp_path, count=150)
    said: list[str] = []
    found = search(recipe, vary={"specialists.*.weight": [0.0, 30.0]}, trials=6, sensitivity=0, sampler="random",
                   say=said.append)  # fmt: skip
    stopped = [point for point in found.points if point.state == "stopped early"]
    assert stopped and "stopped early: worse" in " ".join(found.notes)
    again = search(recipe, vary={"specialists.*.weight": [0.0, 30.0]}, trials=6, sensitivity=0, sampler="random",
                   prune=False, out=tmp_path / "whole")  # fmt: skip
    assert again.best is not None
    whole = {tuple(point.values.items()): point for point in again.points}
    for point in stopped:
        assert whole[tuple(point.values.items())].results < again.best.results


# What is said of results that are made by hand


def interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(estimate, low, high, 200)


def test_a_flat_optimum_is_named_with_its_range() -> None:
    rows = [(0.1, -0.2, -0.1), (0.2, -0.05, 0.01), (0.35, 0.0, 0.0), (0.5, -0.04, 0.02), (0.6, -0.3, -0.1),
            (0.7, -0.02, 0.01)]  # fmt: skip
    points = tuple(CurvePoint(value, 0.8, interval(0.8, 0.7, 0.9), interval((low + high) / 2, low, high))
                   for value, low, high in rows)  # fmt: skip
    curve = Curve("specialists.audio.weight", 0.35, points, 200)
    assert curve.flat == (0.2, 0.5)  # 0.7 is alike, but beyond a value that is not
    assert curve.sentence() == "specialists.audio.weight: 0.2 to 0.5 cannot be distinguished with 200 pairs"


@pytest.mark.parametrize(("gain", "words"), [
    (interval(0.05, 0.02, 0.08), "the gain is confirmed"),
    (interval(-0.05, -0.08, -0.02), "it is worse than your own weights"),
    (interval(0.01, -0.02, 0.04), "83% of the gain exists only on the pairs used for the search: this"),
    (interval(-0.01, -0.03, 0.01), "all of the gain exists only on the pairs used for the search: this"),
])  # fmt: skip
def test_what_the_best_is_worth_is_said(gain: Interval, words: str) -> None:
    said = Confirmed("trial 3", interval(0.8, 0.7, 0.9), gain, interval(0.06, 0.04, 0.08), {})
    assert words in said.sentence()


def test_searching_noise_is_shown_to_overfit() -> None:
    """Forty models without any difference: the best of them gains on its own queries, and nothing on others."""
    rng = np.random.default_rng(0)
    objective = parse_objective("score", ())
    dev = [Scored({"score": rng.random(60)}) for _ in range(41)]
    other = [Scored({"score": rng.random(60)}) for _ in range(41)]
    best = max(range(1, 41), key=lambda at: dev[at].value(objective))
    said = Confirmed("trial", other[best].interval(objective), other[best].minus(other[0], objective),
                     dev[best].minus(dev[0], objective), {})  # fmt: skip
    assert said.dev_gain.estimate > 0.09 and not said.gain.low > 0
    assert "this part is overfitting" in said.sentence()


def test_the_front_and_the_best() -> None:
    points = [Point("a", results=(0.1, 0.9)), Point("b", results=(0.5, 0.5)), Point("c", results=(0.4, 0.5)),
              Point("d", results=(0.9, 0.1)), Point("e", results=(0.95, 0.9), short={"floor": 0.1})]  # fmt: skip
    assert [point.name for point in front(points[:4])] == ["d", "b", "a"]
    best = best_of(points)
    assert best is not None and best.name == "a"


def test_recipes_of_other_folders_name_the_same_models(tmp_path: Path) -> None:
    from taskmerge.recipes.moving import moved

    for name in ("base", "law", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.py").write_text("")
    said: dict[str, Any] = {
        "base": "base", "specialists": {"law": "law", "hub": "someone/model", "soup": "run/checkpoint-*"},
        "output": {"path": "out/fused"}, "evaluate": {"retrieval": {"law": "law"}},
    }  # fmt: skip
    found = moved(recipes.from_dict(said, tmp_path), tmp_path / "out" / "search")
    assert found.base == "../../base" and found.specialists["law"].model == "../../law"
    assert found.specialists["hub"].model == "someone/model"
    assert found.specialists["soup"].model == "../../run/checkpoint-*"
    assert found.output.path == "../fused"
