"""--json: one documented object on stdout and nothing else, results and errors alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_model, write_model
from json_shapes import SEEN, check_documented, problems_of
from places import ROOT
from typer.main import get_command

from taskmerge.cli import funnel as funnel_module
from taskmerge.cli.app import app
from taskmerge.cli.json_docs import page
from taskmerge.cli.output import print_json
from taskmerge.cli.results import RESULTS, Compared, Failed, Fused

COMMANDS = sorted(getattr(get_command(app), "commands", {}))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = random_model(0)
    for name, tensors in (("base", base), ("one", random_model(1, near=base)), ("two", random_model(2, near=base))):
        write_model(tmp_path / name, tensors)
    (tmp_path / "m.yaml").write_text("base: base\nspecialists: {one: one, two: two}\noutput: {path: out}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_json_and_says_what_it_prints() -> None:
    for name, command in getattr(get_command(app), "commands", {}).items():
        assert any("--json" in parameter.opts for parameter in command.params), name
    assert sorted(RESULTS) == COMMANDS


def test_the_page_is_made_from_the_declarations() -> None:
    assert (ROOT / "docs" / "json.md").read_text("utf-8") == page(), "python -m taskmerge.cli.json_docs > docs/json.md"


WORDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("init", "base", "one", "--out", "r.yaml")),
    (0, ("fuse", "m.yaml", "--dry-run")),
    (0, ("fuse", "m.yaml", "--out", "p", "--part", "1/2")),
    (0, ("fuse", "m.yaml", "-q")),
    (0, ("fuse", "m.yaml", "--sweep", "scale=0.5,1.0")),
    (0, ("verify", "out", "-v")),
    (0, ("verify", "out", "--base", "base", "--recipe", "m.yaml")),
    (0, ("push", "out", "owner/name", "--dry-run")),
    (0, ("inspect", "base")),
    (0, ("compare", "base", "one", "two")),
    (1, ("diff", "base", "one")),
    (0, ("diff", "base", "base")),
    (0, ("extract", "base", "one", "--out", "vector")),
    (0, ("extract", "base", "one", "--out", "signs", "--form", "sign")),
    (0, ("apply", "base", "vector", "--out", "applied")),
    (0, ("soup", "o*e", "--out", "mean")),
    (0, ("methods", "ties")),
    (0, ("methods",)),
    (0, ("schema", "--out", "schema.json")),
)


def test_results_are_one_documented_object(models: Path, command: Callable[..., Any]) -> None:
    """`command` itself holds the output against the declarations."""
    for code, words in WORDS:
        ran = command(*words, "--json")
        assert ran.code == code, (words, ran.err)
        assert "error" not in json.loads(ran.out), words
    plan = json.loads(command("fuse", "m.yaml", "--dry-run", "--json").out)
    assert sum(way["tensors"] for way in plan["ways"]) == len(plan["tensors"])
    assert {way["action"] for way in plan["ways"]} <= {"merge", "keep", "copy"}
    assert json.loads(command("schema", "--json").out)["$schema"]
    for shape in (Fused, Compared):
        assert {key for name, key in SEEN if name == shape.__name__} == set(shape.__annotations__)


@pytest.mark.parametrize("words", [("doctor",), ("fuse", "several.yaml")])
def test_lists_are_inside_an_object(models: Path, command: Callable[..., Any], words: tuple[str, ...]) -> None:
    text = (models / "m.yaml").read_text()
    (models / "several.yaml").write_text(f"{text}---\n{text.replace('path: out', 'path: second')}")
    assert isinstance(json.loads(command(*words, "--json").out), dict)


ERRORS: dict[str, tuple[tuple[str, ...], int, str, str]] = {
    "no such option": (("fuse", "m.yaml", "--nothing"), 2, "UsageError", "No such option"),
    "missing argument": (("compare",), 2, "UsageError", "Missing argument"),
    "no such command": (("fuze", "m.yaml"), 2, "UsageError", "fuze"),
    "not a number": (("extract", "base", "one", "--out", "x", "--rank", "many"), 2, "UsageError", "many"),
    "no such model": (("inspect", "nowhere"), 1, "CheckpointError", "nowhere"),
    "a recipe's mistakes": (("fuse", "bad.yaml"), 2, "RecipeError", "bad.yaml:2"),
    "in the way": (("extract", "base", "one", "--out", "base"), 1, "OutputError", "base"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_same_as_json(models: Path, command: Callable[..., Any], name: str) -> None:
    words, code, kind, text = ERRORS[name]
    (models / "bad.yaml").write_text("base: base\nspecialist: {}\nspecialists: {one: one}\noutpt: 3\n")
    plain, ran = command(*words), command(*words, "--json")
    assert (plain.code, ran.code) == (code, code) and plain.out == "" and plain.err == ran.err
    error = json.loads(ran.out)["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert text in json.dumps(error["problems"]) and all(line.strip() in ran.err for line in error["text"].splitlines())


def test_what_nobody_foresaw_is_an_object_too(
    models: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr("taskmerge.merging.algebra.Checkpoint.open", fail)
    monkeypatch.setattr(funnel_module, "_keep_trace", lambda _: None)
    ran = command("inspect", "base", "--json", "-v")
    assert ran.code == 70 and json.loads(ran.out)["error"]["kind"] == "Fault" and "Traceback" in ran.err
    monkeypatch.setattr(
        "taskmerge.merging.algebra.Checkpoint.open", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    ran = command("inspect", "base", "--json")
    assert ran.code == 130 and json.loads(ran.out)["error"]["exit_code"] == 130


def test_what_libraries_print_is_not_on_stdout(
    models: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskmerge.merging.algebra import Checkpoint

    before = Checkpoint.open

    def loud(*words: Any) -> Any:
        print("a library's own words")
        return before(*words)

    monkeypatch.setattr(Checkpoint, "open", loud)
    ran = command("inspect", "base", "--json")
    assert "a library's own words" in ran.err and json.loads(ran.out)["model"] == "base"
    assert "a library's own words" in command("inspect", "base").out


def test_an_error_after_the_result_adds_nothing(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import taskmerge.cli

    def late() -> None:
        print_json({"a": float("nan"), "b": [float("inf")]})
        raise ValueError("too late")

    monkeypatch.setattr(taskmerge.cli, "_run", late)
    monkeypatch.setattr(funnel_module, "_keep_trace", lambda _: None)
    monkeypatch.setattr("json_shapes.RESULTS", {"x": (dict[str, Any],)})
    ran = command("x", "--json")
    assert ran.code == 70 and json.loads(ran.out) == {"a": None, "b": [None]}


def test_help_is_help_with_json_too(command: Callable[..., Any]) -> None:
    ran = command("fuse", "--help", "--json")
    assert ran.code == 0 and "Fuse the specialists" in ran.out


def test_a_merge_of_what_is_no_number_is_valid_json(models: Path, command: Callable[..., Any]) -> None:
    same = random_model(0)
    write_model(models / "same", {name: tensor.clone() for name, tensor in same.items()})
    ran = command("compare", "base", "same", "--json")
    assert ran.code == 0 and json.loads(ran.out)["cosine"]["same"]["same"] in (None, 0, 1)
    tensors = {"a": torch.full((2, 2), torch.nan), "b": torch.zeros(2, 2)}
    write_model(models / "n1", tensors)
    write_model(models / "n2", {**tensors, "a": torch.full((2, 2), torch.inf)})
    ran = command("diff", "n1", "n2", "--json")
    assert ran.code == 1 and json.loads(ran.out)["differences"][0]["entries"] == 4


def test_the_shape_of_errors_and_of_a_process_of_its_own(models: Path) -> None:
    words = [sys.executable, "-m", "taskmerge", "inspect", "nowhere", "--json"]
    ended = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    check_documented("inspect", ended.stdout)
    assert not problems_of(json.loads(ended.stdout), Failed) and ended.returncode == 1
    assert problems_of({"error": {}}, Failed) and problems_of({"more": 1}, Failed), "the check itself can fail"
