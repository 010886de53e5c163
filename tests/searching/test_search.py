"""`taskmerge search` from beginning to end on tiny models: what is found, kept, told and refused."""

from __future__ import annotations

import html
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from checkpoint_files import digests
from disturbed_runs import environment
from PIL import Image
from safetensors.torch import load_file
from search_projects import RECIPE, new_project, trials_of

from taskmerge import recipes
from taskmerge.errors import OutputError, RecipeError, UsageError
from taskmerge.measuring.evaluation import evaluate_retrieval
from taskmerge.merging import execute, plan
from taskmerge.searching.api import begin, contribute, search
from taskmerge.words import extras

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[str]]:
    """A finished search: its recipe, what it found, what it said."""
    recipe = new_project(tmp_path_factory.mktemp("searched"))
    said: list[str] = []
    return recipe, search(recipe, say=said.append), said


def test_every_point_is_there_and_the_best_is_the_highest(searched: tuple[Path, Any, list[str]]) -> None:
    _, found, _ = searched
    names = [point.name for point in found.points]
    assert {"only law", "only code", "own", "1/N", "metagpt"} <= set(names)
    around = [point for point in found.points if point.around]
    proposed = [point for point in found.points if point.name.startswith("trial ") and not point.around]
    assert len(proposed) == 4 and len(around) >= 2 * 2  # three points an axis, one of which may be the best's own
    merges = [point for point in found.points if not point.name.startswith("only ")]
    assert found.best.results == max(point.results for point in merges)


def test_scores_are_those_of_the_fused_folder(searched: tuple[Path, Any, list[str]], tmp_path: Path) -> None:
    """The best recipe, fused to disk and evaluated by itself, scores what its trial scored."""
    recipe, found, _ = searched
    best = recipes.load(found.folder / "best.yaml")
    assert best.search is None and best.specialists["law"].weight == found.recipe.specialists["law"].weight
    execute(plan(best), best, tmp_path / "best")
    sets = {name: recipe.parent / f"{name}.jsonl" for name in ("law", "code")}
    table = evaluate_retrieval({"best": tmp_path / "best"}, sets, directions=["to_text"])
    for name in sets:
        score = found.best.scores[f"retrieval.{name}.mrr"]
        assert score == pytest.approx(table.get("best", name, "mrr").estimate, abs=1e-6)
    mean = (found.best.scores["retrieval.law.mrr"] + found.best.scores["retrieval.code.mrr"]) / 2
    assert found.best.results == (pytest.approx(mean, abs=1e-12),)


def test_references_are_what_their_names_say(searched: tuple[Path, Any, list[str]], tmp_path: Path) -> None:
    recipe, found, _ = searched
    by_name = {point.name: point for point in found.points}
    sets = {"law": recipe.parent / "law.jsonl"}
    table = evaluate_retrieval({"law": recipe.parent / "law"}, sets, directions=["to_text"])
    assert by_name["only law"].scores["retrieval.law.mrr"] == pytest.approx(table.get("law", "law", "mrr").estimate)
    assert by_name["only law"].scores["agreement.law"] == 1.0
    assert by_name["1/N"].values == {"specialists.law.weight": 0.5, "specialists.code.weight": 0.5}
    squares = {}
    base = load_file(recipe.parent / "base" / "model.safetensors")
    for name in ("law", "code"):
        own = load_file(recipe.parent / name / "model.safetensors")
        squares[name] = sum(float((own[key].double() - base[key].double()).square().sum()) for key in base)
    share = squares["law"] / sum(squares.values())
    assert by_name["metagpt"].values["specialists.law.weight"] == pytest.approx(share, abs=1e-6)


def test_the_report_the_pictures_and_the_json(searched: tuple[Path, Any, list[str]]) -> None:
    recipe, found, _ = searched
    page = (found.folder / "report.html").read_text()
    for words in ("Pareto front", "only law", "Recipes to copy", "On new pairs", "specialists.law.weight"):
        assert words in page
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    table = json.loads((found.folder / "report.json").read_text())
    assert table["best"] == found.best.name and len(table["points"]) == len(found.points)
    for point in table["points"]:
        assert recipes.loads(point["recipe"]).search is None
    pictures = list(found.folder.glob("*.svg"))
    assert any(path.name == "pareto-front.svg" for path in pictures)
    for path in pictures:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        with Image.open(path.with_suffix(".png")) as picture:
            assert picture.format == "PNG" and len(set(picture.convert("L").tobytes())) > 10
    copied = {html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)}
    made_from = (recipe.parent / recipe.name).read_text()
    assert copied - {made_from} == {point["recipe"] for point in table["points"]}


def test_without_matplotlib_the_notes_say_that_pictures_are_svg_alone(
    searched: tuple[Path, Any, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found_spec = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "matplotlib" else found_spec(name))
    found = search(searched[0], trials=1, out=tmp_path / "plain")
    assert [line for line in found.notes if "without PNG files" in line and "taskmerge[plots]" in line]
    assert list(found.folder.glob("*.svg")) and not list(found.folder.glob("*.png"))


def test_the_same_command_again_tries_nothing_anew(searched: tuple[Path, Any, list[str]]) -> None:
    recipe, found, _ = searched
    said: list[str] = []
    again = search(recipe, say=said.append)
    assert trials_of(again) == trials_of(found) and not [line for line in said if line.startswith("trial ")]
    more = search(recipe, trials=6)
    old = trials_of(found)
    assert {name: row for name, row in trials_of(more).items() if name in old} == old
    assert len([point for point in more.points if point.name.startswith("trial ") and not point.around]) == 6


def test_another_search_in_the_same_folder_is_refused(searched: tuple[Path, Any, list[str]], command: Command) -> None:
    recipe, _, _ = searched
    other = recipe.with_name("other.yaml")
    other.write_text(RECIPE.replace("[0.1, 1.0]", "[0.2, 1.0]"))
    with pytest.raises(OutputError, match="contains a search of other models, ranges, objectives or pairs"):
        search(other)
    ran = command("search", other)
    assert ran.code == 1 and "--fresh" in ran.err and len(ran.err.splitlines()) < 20


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    recipe = new_project(tmp_path)
    (tmp_path / "out" / "fused-search").mkdir(parents=True)
    (tmp_path / "out" / "fused-search" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not made by taskmerge"):
        search(recipe)
    assert (tmp_path / "out" / "fused-search" / "mine.txt").read_text() == "mine"


SCRIPT = """
import os, sys
from taskmerge.searching import runner
from taskmerge.searching.api import begin, contribute, search
trial, left = runner.Runner._trial, [int(sys.argv[2])]
def counted(self, study, proposed):
    if left[0] == 0:
        os._exit(9)  # in the midst of a trial
    left[0] -= 1
    return trial(self, study, proposed)
runner.Runner._trial = counted
search(sys.argv[1], say=print)
"""


@pytest.mark.slow
def test_a_killed_search_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = search(new_project(tmp_path / "whole"))
    recipe = new_project(tmp_path / "killed")
    ran = subprocess.run([sys.executable, "-c", SCRIPT, str(recipe), "2"], capture_output=True, text=True)
    assert ran.returncode == 9, ran.stderr
    found = search(recipe)
    proposed = {name: row for name, row in trials_of(whole).items() if name.startswith("trial ")}
    again = [row for name, row in trials_of(found).items() if name.startswith("trial ")]
    kept = list(proposed.values())[:3]  # before the kill, and the one that was killed
    for row in kept:
        assert row in again
    tried = [point for point in found.points if point.name.startswith("trial ") and not point.around]
    assert len(tried) == 4


@pytest.mark.slow
def test_two_processes_share_one_study(tmp_path: Path) -> None:
    recipe = new_project(tmp_path, RECIPE.replace("trials: 4", "trials: 8"))
    command = [sys.executable, "-m", "taskmerge", "search", str(recipe), "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], [err for _, err in ended]
    tables = [json.loads(out) for out, _ in ended]
    tried = [[p for p in table["points"] if p["name"].startswith("trial ") and not p["around"]] for table in tables]
    assert [len(rows) for rows in tried] == [8, 8] and tried[0] == tried[1]
    said = [line for _, err in ended for line in err.splitlines() if line.startswith("trial ")]
    assert len(said) == 8 and len(set(said)) == 8


def test_trials_of_others_are_concluded_by_one(tmp_path: Path) -> None:
    recipe = new_project(tmp_path, RECIPE.replace("sensitivity: 3", "sensitivity: 0"))
    begun = begin(recipe, out=None, trials=None, fresh=False, memory=1 << 28)
    lines: list[str] = []
    contribute(recipe, out=begun, trials=None, device="cpu", memory=1 << 28, say=lines.append)
    assert not (begun / "best.yaml").exists()
    assert sum(line.startswith("trial ") for line in lines) == 4
    said: list[str] = []
    found = search(recipe, say=said.append)
    assert not any(line.startswith("trial ") for line in said), "the trials were there already"
    assert len([point for point in found.points if point.name.startswith("trial ")]) == 4
    assert (begun / "best.yaml").exists()


@pytest.mark.slow
def test_workers_on_ray_share_one_study(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    recipe = new_project(tmp_path, RECIPE.replace("trials: 4", "trials: 6").replace("sensitivity: 3", "sensitivity: 0"))
    paths = os.pathsep.join([*sys.path, environment()["PYTHONPATH"]])
    env = {**environment(), "PYTHONPATH": paths, "RAY_DISABLE_IMPORT_WARNING": "1"}
    command = [sys.executable, "-m", "taskmerge", "search", str(recipe), "--on", "ray", "--device", "cpu", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert len([point for point in table["points"] if point["name"].startswith("trial ")]) == 6
    said = [line for line in done.stderr.splitlines() if ": trial " in line]
    assert len(said) == 6, done.stderr
    assert "share one study" in done.stderr


def test_a_failing_trial_is_kept_and_does_not_stop_the_search(tmp_path: Path) -> None:
    recipe = new_project(tmp_path)
    calls: list[int] = []

    def score(model: Any) -> float:
        calls.append(1)
        return {6: math.nan, 7: "much"}.get(len(calls), 0.5 + 0.01 * len(calls))  # type: ignore[return-value]

    found = search(recipe, score, trials=5, sensitivity=0)
    failed = {point.why for point in found.points if point.state == "failed"}
    assert any("score is nan" in why for why in failed) and any("returned 'much'" in why for why in failed)
    scored = [p for p in found.points if p.name.startswith("trial ") and p.state == "scored"]
    assert len(scored) == 3 and "2 trials failed" in " ".join(found.notes)


def test_an_objective_that_never_works_stops_at_once(tmp_path: Path) -> None:
    def score(model: Any) -> float:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(UsageError, match="the objective raised ZeroDivisionError: division by zero"):
        search(new_project(tmp_path), score)


@pytest.mark.parametrize(
    ("line", "place", "what", "move"),
    [
        ("  vary: {specialists.*.wieght: [0.1, 1.0]}", 7, "cannot be varied", "did you mean"),
        ("  vary: {specialists.aduio.weight: [0.1, 1.0]}", 7, "'aduio' matches none of the specialists", "known"),
        ("  vary: {merge.scale: [1.0, 0.1]}", 7, "the range 1 to 0.1 is empty", "write [0.1, 1]"),
        ("  vary: {merge.method: [sum, tiess]}", 7, "unknown merge method 'tiess'", "did you mean 'ties'?"),
        ("  vary: {merge.method: [sum, ties], merge.density: [0.1, 1.5]}", 7, "not 1.5", None),
        ("  vary: {merge.density: [0.1, 0.5]}", 7, "task_arithmetic has no parameter 'density'", None),
        ("  vary: {specialists.*.weight: [0.1, 1.0]}\n  floor: {lwa: -0.1}", 6, "'lwa' is not a set of `on`", "'law'"),
        ("  vary: {specialists.*.weight: [0.1, 1.0]}\n  maximize: mean(retrieval.*.mmr)", 6, "matches no score", "mrr"),
        (
            "  vary: {specialists.*.weight: [0.1, 1.0]}\n  maximize: average(retrieval.*.mrr)",
            6,
            "unknown function",
            "mean",
        ),
        ("  vary: {specialists.*.weight: [0.1, 1.0]}\n  trails: 3", 8, "unknown key 'trails'", "'trials'"),
    ],
)
def test_mistakes_are_told_with_their_line(
    tmp_path: Path, command: Command, line: str, place: int, what: str, move: str | None
) -> None:
    text = RECIPE.replace("  vary: {specialists.*.weight: [0.1, 1.0]}", line)
    (tmp_path / "recipe.yaml").write_text(text)
    for name in ("law", "code", "law_confirm", "code_confirm"):
        (tmp_path / f"{name}.jsonl").write_text('{"query": "a", "text": "b"}\n{"query": "c", "text": "d"}\n')
    ran = command("search", tmp_path / "recipe.yaml")
    assert ran.code == 2 and f"recipe.yaml:{place}:" in ran.err and what in ran.err, ran.err
    assert move is None or move in ran.err
    assert len(ran.err.splitlines()) < 20 and not (tmp_path / "out").exists()


def test_a_floor_that_nobody_can_meet_is_told_before_the_first_trial(tmp_path: Path) -> None:
    recipe = new_project(tmp_path, RECIPE.replace("  trials: 4", "  trials: 4\n  floor: {law: 0.9}"))
    said: list[str] = []
    with pytest.raises(
        RecipeError, match=r"its specialist scores 0\.\d+, and \+0.9 is above 1, which is impossible to meet"
    ):
        search(recipe, say=said.append)
    assert not [line for line in said if line.startswith("trial ")]


def test_floors_that_no_point_meets_are_told_with_the_nearest(tmp_path: Path, command: Command) -> None:
    """Weights so large that nothing of the specialists is left."""
    text = RECIPE.replace("specialists.*.weight: [0.1, 1.0]", "merge.scale: [1.0, 1.5]").replace(
        "  trials: 4", "  trials: 2\n  floor: {law: 0.0, code: 0.0}"
    )
    text = text.replace("weight: 0.3", "weight: 40").replace("weight: 0.4", "weight: 45")
    recipe = new_project(tmp_path, text + "  prune: false\n")
    ran = command("search", recipe)
    folder = tmp_path / "out" / "fused-search"
    points = json.loads((folder / "report.json").read_text())["points"]
    meeting = [point["name"] for point in points if not point["short"] and not point["name"].startswith("only ")]
    assert not meeting and ran.code == 2, ran.err
    assert "meets the floors" in ran.err and "is nearest and misses" in ran.err and "lower them (floor: {" in ran.err
    assert (folder / "report.html").is_file() and not (folder / "best.yaml").exists()


def test_several_objectives_give_a_front(tmp_path: Path) -> None:
    text = RECIPE.replace("  trials: 4", "  maximize: [retrieval.law.mrr, retrieval.code.mrr]\n  trials: 6")
    found = search(new_project(tmp_path, text))
    merges = [point for point in found.points if not point.name.startswith("only ") and point.state == "scored"]
    for point in found.front:
        assert not [other for other in merges if all(b > a for a, b in zip(point.results, other.results, strict=True))]
        name = point.name.replace(" ", "-")
        if point.values:
            assert recipes.load(found.folder / "front" / f"{name}.yaml").search is None
    by_name = {point.name: point for point in found.points}
    axes = {curve.axis for curve in found.curves}
    assert {(curve.axis, curve.objective) for curve in found.curves} == set(itertools.product(axes, found.objectives))
    for curve in found.curves:
        at = found.objectives.index(curve.objective)
        assert curve.sentence().startswith(f"{curve.objective}, {curve.axis}: ")
        for shown in curve.points:
            same = [point for point in by_name.values() if point.values.get(curve.axis) == shown.value]
            assert shown.result in {point.results[at] for point in same}
            assert shown.interval.low <= shown.result <= shown.interval.high
            if shown.value == curve.through:
                assert (shown.difference.low, shown.difference.high) == (0.0, 0.0)
    page = (found.folder / "report.html").read_text()
    assert page.count('class="line c1"') == 2 * len(axes)  # a second line in the chart of every number, drawn twice
    weights = sorted(found.folder.glob("*by-two-weights.svg"))
    assert len(weights) == len(found.objectives)


def test_without_pairs_of_its_own_a_third_is_kept_back(tmp_path: Path) -> None:
    text = "\n".join(line for line in RECIPE.splitlines() if "confirm" not in line)
    said: list[str] = []
    found = search(new_project(tmp_path, text, count=60), say=said.append, trials=2)
    assert any("a third of each set is reserved to confirm the best: law 40 and 20" in line for line in said)
    assert found.best is not None
    assert found.confirmed and found.confirmed[0].point == found.best.name


def test_inputs_are_left_as_they_are(searched: tuple[Path, Any, list[str]], tmp_path: Path) -> None:
    recipe, _, _ = searched
    fresh = new_project(tmp_path)
    for name in ("base", "law", "code"):
        assert digests(recipe.parent / name) == digests(fresh.parent / name)
