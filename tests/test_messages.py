"""No message grows with the model: at most 20 lines and 4 kB, and the names in it are few."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from safetensors.numpy import save_file
from typer.testing import CliRunner

from taskmerge import recipes
from taskmerge.cli.app import app
from taskmerge.errors import Problem, TaskmergeError, UsageError, clipped, did_you_mean, few
from taskmerge.merging import plan
from taskmerge.merging.algebra import Checkpoint, TaskVector

COUNT = 50_000
LINES, CHARACTERS = 20, 4096


def names(stem: str) -> list[str]:
    return [f"{stem}.layers.{number}.self_attn.some_longer_name_proj.weight" for number in range(COUNT)]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("large")
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    tables: dict[str, dict[str, np.ndarray]] = {
        "base": dict.fromkeys(names("model"), one),
        "other": dict.fromkeys(names("thing"), one),
        "shapes": dict.fromkeys(names("model"), two),
        "half": dict.fromkeys(names("model")[: COUNT // 2], one),
        "integers": dict.fromkeys(names("model"), np.ones(1, np.int32)),
    }
    for name, table in tables.items():
        (place / name).mkdir()
        save_file(table, place / name / "model.safetensors")
    (place / "stray").mkdir()
    for number in range(300):
        save_file({"a": one}, place / "stray" / f"part{number}.safetensors")
    (place / "indexed").mkdir()
    weight_map = {name: f"file{number}.safetensors" for number, name in enumerate(names("model"))}
    (place / "indexed" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (place / "holes").mkdir()
    save_file({"a": one}, place / "holes" / "model-00001-of-90000.safetensors")
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    factors = {
        f"base_model.model.x.layers.{number}.proj.{part}.weight": np.ones((1, 1), np.float32)
        for number in range(COUNT // 10)
        for part in ("lora_A", "lora_B")
    }
    save_file(factors, place / "adapter" / "adapter_model.safetensors")
    return place


def fused(room: Path, base: str, specialist: str, **more: Any) -> Any:
    said = {"base": base, "specialists": {"a": specialist}, **more}
    return plan(recipes.from_dict(said, folder=room))


def rules(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"merge": {"method": "ties", "rules": list(rows)}}


def vector(room: Path) -> TaskVector:
    return Checkpoint.open(room / "half") - Checkpoint.open(room / "half")


ATTEMPTS: dict[str, Callable[[Path], Any]] = {
    "other shapes": lambda room: fused(room, str(room / "base"), str(room / "shapes")),
    "other formats": lambda room: fused(room, str(room / "base"), str(room / "integers")),
    "a rule for nothing": lambda room: fused(
        room, str(room / "base"), str(room / "half"), **rules({"match": "modle.*", "keep": "base"})
    ),
    "a copy of nothing": lambda room: fused(room, str(room / "base"), str(room / "half"), copy={"a": ["nothing.*"]}),
    "a component of nothing": lambda room: fused(
        room, str(room / "base"), str(room / "half"), components={"mine": ["nothing.*"]}
    ),
    "many unknown keys": lambda room: fused(room, "x", "y", **{f"key{number}": 1 for number in range(900)}),
    "a long unknown key": lambda room: fused(room, "x", "y", **{"k" * 50_000: 1}),
    "many specialists that are not there": lambda room: plan(
        recipes.from_dict({"base": "no/where/x", "specialists": {f"a{i}": f"no/where/{i}" for i in range(900)}})
    ),
    "an unknown specialist among many": lambda room: recipes.from_dict(
        {"base": "b", "specialists": {f"a{i}": "x" for i in range(900)}, "merge": {"weight": {"zzz": 1}}}
    ),
    "only nothing": lambda room: vector(room).only("nothing"),
    "without nothing": lambda room: vector(room).without("model.layers.77.self_attn.some_longer_name_porj.weight"),
    "a difference of shapes": lambda room: Checkpoint.open(room / "shapes") - Checkpoint.open(room / "base"),
    "an unknown tensor": lambda room: Checkpoint.open(room / "base")["model.layers.7.self_attn.weight"],
    "many files": lambda room: Checkpoint.open(room / "stray"),
    "an index of files that are not there": lambda room: Checkpoint.open(room / "indexed"),
    "shards that are not there": lambda room: Checkpoint.open(room / "holes"),
    "an adapter for another model": lambda room: TaskVector.load(room / "adapter", Checkpoint.open(room / "base")),
    "a long path": lambda room: Checkpoint.open("x" * 100_000),
    "a long method": lambda room: fused(room, "x", "y", merge={"method": "x" * 100_000}),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_no_message_grows_with_the_model(room: Path, attempt: str) -> None:
    with pytest.raises(TaskmergeError) as told:
        ATTEMPTS[attempt](room)
    text = str(told.value)
    assert len(text.splitlines()) < LINES and len(text) < CHARACTERS - 100, f"{len(text)}: {text[:300]}"


def test_what_the_command_line_prints(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room)
    (room / "r.yaml").write_text("base: base\nspecialists: {a: shapes}\n" + "".join(f"k{i}: 1\n" for i in range(2000)))
    told = CliRunner().invoke(app, ["fuse", "r.yaml", "--out", "o"]).exception
    assert isinstance(told, TaskmergeError) and len(told.problems) == 2000
    assert str(told).splitlines()[-1] == f"and {2000 - 9:,} more problems; fix these first"


def test_the_nearest_of_many_is_found_soon() -> None:
    known = names("model")
    began = time.monotonic()
    assert did_you_mean("model.layers.777.self_attn.some_longer_name_porj.weight", known) == (
        f"did you mean {known[777]!r}?"
    )
    text = did_you_mean("zzz", known, "`taskmerge inspect MODEL --tensors` lists them")
    assert text.endswith(f"and {COUNT - 10:,} more; `taskmerge inspect MODEL --tensors` lists them")
    assert text.count(", ") == 9 and time.monotonic() - began < 10


def test_few_names() -> None:
    assert few([]) == "none" and few(["a"]) == "a" and few(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert few(range(11)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1 more"
    assert clipped("x" * 100, 10) == "xxxx … xxx" and clipped("abc", 3) == "abc"


def test_the_next_move_is_always_seen() -> None:
    error = UsageError("many\nlines\n" * 1000, "a place", "do this")
    assert str(error).splitlines()[-1] == "    do this" and len(str(error).splitlines()) < LINES
    error = UsageError([Problem("x" * 10_000, "p" * 10_000, "m" * 10_000) for _ in range(50)])
    assert len(str(error)) < CHARACTERS and "more problems" in str(error).splitlines()[-1]


ERRORS = {"UsageError", "CheckpointError", "RecipeError", "MergeError", "OutputError", "UnknownTensorError", "Problem"}
OF_ARRAYS = ("kernels", "metrics", "numbers", "measuring/drift/statistics.py")
"""What calls these passes arrays, not something that a user wrote: there is no other move than to pass others."""


def without_a_move(source: str) -> Iterator[ast.Call]:
    """Errors and problems that are made of a text and no next move."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in ERRORS:
            continue
        moved = len(node.args) > 2 or any(keyword.arg == "next_move" for keyword in node.keywords)
        text = ast.unparse(node.args[0]) if node.args else ""
        one = isinstance(node.args[0], ast.JoinedStr | ast.Constant) if node.args else False
        if not moved and (one or text == "what") and "{more} more" not in text:
            yield node


def test_every_error_gives_the_next_move() -> None:
    found = []
    for path in sorted((ROOT / "taskmerge").rglob("*.py")):
        name = path.relative_to(ROOT / "taskmerge").as_posix()
        if not name.startswith(OF_ARRAYS):
            found += [f"{name}:{call.lineno}: {ast.unparse(call)}" for call in without_a_move(path.read_text("utf-8"))]
    assert not found


def test_an_error_without_a_move_is_found() -> None:
    with_move = 'raise UsageError("a", "b", "c")\nraise UsageError("a", next_move="c")\nraise UsageError(problems)'
    assert not list(without_a_move(with_move))
    assert len(list(without_a_move('raise UsageError("a")\nfound.append(Problem(f"{x} is wrong", place))'))) == 2
