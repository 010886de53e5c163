"""Every command that writes a folder, with everything that can stand in its way: what we did not write stays as it is.

Seen on the first commits: `--fresh` deleted the recipe's own folder, `.git` and an input's `1_Pooling`; a foreign
`.out.partial`, or a link so named, was emptied and published; `--out` on a mount point failed after all the work.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import random_model, read_model, write_model, write_recipe
from in_the_way import GIVES_WAY, NEVER, ours, picture, strangers

from taskmerge import Checkpoint
from taskmerge.checkpoints.output.record import read_record
from taskmerge.checkpoints.output.writing import OutputFolder
from taskmerge.errors import OutputError

Command = Callable[..., Any]
COMMANDS: dict[str, tuple[str, ...]] = {
    "fuse": ("fuse", "merge.yaml"),
    "extract": ("extract", "base", "one"),
    "extract --lora": ("extract", "base", "one", "--lora", "2"),
    "apply": ("apply", "base", "vector"),
    "soup": ("soup", "run/checkpoint-*"),
}
MADE = {"fuse": ("fused", "fuse"), "apply": ("model", "apply"), "soup": ("model", "soup"),
        "extract --lora": ("adapter", "extract")}  # fmt: skip


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, a task vector, checkpoints and a recipe, and an empty folder to write into."""
    base = random_model(0)
    for place, seed in (("base", 0), ("one", 1), ("run/checkpoint-1", 2), ("run/checkpoint-2", 3)):
        write_model(tmp_path / place, base if not seed else random_model(seed, near=base), {"model_type": "llama"})
    (Checkpoint.open(tmp_path / "one") - Checkpoint.open(tmp_path / "base")).save(tmp_path / "vector")
    write_recipe(tmp_path, base="base", specialists={"one": "one"})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("what", NEVER)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_not_ours_is_never_touched(room: Path, command: Command, name: str, what: str) -> None:
    NEVER[what](room / "here" / "out")
    before = picture(room)
    for fresh in ((), ("--fresh",)):
        ran = command(*COMMANDS[name], "--out", "here/out", *fresh)
        assert (ran.code, ran.out) == (1, ""), (fresh, ran)
        assert "out" in ran.err and "    " in ran.err and len(ran.err.splitlines()) <= 20, ran.err
        assert picture(room) == before, fresh


@pytest.mark.parametrize("what", GIVES_WAY)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_ours_gives_way_when_asked(room: Path, command: Command, name: str, what: str) -> None:
    out = room / "here" / "out"
    GIVES_WAY[what](out)
    if what == "ours":
        ran = command(*COMMANDS[name], "--out", out)
        assert ran.code == 1 and "--fresh replaces it" in ran.err and (out / "older.json").is_file()
    assert command(*COMMANDS[name], "--out", out, "--fresh").code == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not (out / "older.json").exists()
    record = read_record(out)
    assert (record["kind"], record["stage"]) == MADE.get(name, ("task vector", "extract"))
    assert record["outputs"].keys() == {key for key in picture(out) if key != "taskmerge.json"}
    assert record["inputs"] and all(row["files"] for row in record["inputs"].values())
    assert command("verify", out).code == 0


@pytest.mark.parametrize("out", [".", "..", "./", "here/..", "/", "one", "base/.", "../{name}"])
@pytest.mark.parametrize("name", COMMANDS)
def test_inputs_recipes_and_what_holds_them(room: Path, command: Command, name: str, out: str) -> None:
    """Also with records that say that all of it was made here."""
    for place in (room, room / "base", room / "one", room.parent):
        kept = {str(path.relative_to(place)): "0" * 64 for path in place.rglob("*") if path.is_file()}
        record = {"taskmerge": "0", "kind": "model", "stage": "save", "inputs": {}, "outputs": kept}
        (place / "taskmerge.json").write_text(json.dumps(record))
    before = picture(room)
    for fresh in ((), ("--fresh",)):
        ran = command(*COMMANDS[name], "--out", out.format(name=room.name), *fresh)
        assert ran.code in (1, 2) and "Traceback" not in ran.err, ran
        assert picture(room) == before
    (room.parent / "taskmerge.json").unlink()


@pytest.mark.parametrize("out", ["recipes", "recipes/.git", "base/1_Pooling", "base/1_Pooling/..", "one/statistics"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_belongs_to_a_recipe_or_an_input(room: Path, command: Command, name: str, out: str) -> None:
    """From another folder than the recipe's: its folder, a repository in it, parts of an input."""
    (room / "recipes" / ".git" / "objects").mkdir(parents=True)
    (room / "recipes" / ".git" / "HEAD").write_text("ref: refs/heads/main")
    for place in ("base/1_Pooling", "one/statistics"):
        (room / place).mkdir()
        (room / place / "config.json").write_text("{}")
    write_recipe(room / "recipes", base=str(room / "base"), specialists={"one": str(room / "one")})
    words = ["recipes/merge.yaml" if word == "merge.yaml" else word for word in COMMANDS[name]]
    before = picture(room)
    for fresh in ((), ("--fresh",)):
        ran = command(*words, "--out", out, *fresh)
        assert ran.code == 1 and "Traceback" not in ran.err, ran
        assert picture(room) == before


def test_the_folder_of_the_recipe_with_a_record_of_ours(room: Path, command: Command) -> None:
    """The record names every file in it, the recipe too: it stays all the same."""
    folder = ours(room / "recipes")
    path = write_recipe(folder, base=str(room / "base"), specialists={"one": str(room / "one")})
    record = json.loads((folder / "taskmerge.json").read_text())
    record["outputs"]["merge.yaml"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "taskmerge.json").write_text(json.dumps(record))
    before = picture(room)
    ran = command("fuse", path, "--out", folder, "--fresh")
    assert ran.code == 1 and "would replace an input" in ran.err and picture(room) == before


@pytest.mark.parametrize("out", ["s3://bucket/out", "s3:/bucket/out", "gs://b/o", "hf://owner/name"])
@pytest.mark.parametrize("name", [*COMMANDS, "graft"])
def test_places_that_are_none_of_this_disk(room: Path, command: Command, name: str, out: str) -> None:
    """`--out s3://bucket/out` made a folder `s3:` here."""
    if name in ("fuse", "extract") and not out.startswith("hf"):
        pytest.skip("these write there: tests/merging/test_stores.py")
    words = COMMANDS.get(name, ("graft", "base", "--modality", "audio", "--encoder", "log_mel"))
    ran = command(*words, "--out", out)
    assert ran.code == 2 and ("cannot be written to" in ran.err or "or to a store" in ran.err)
    assert not [path for path in room.iterdir() if ":" in path.name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mount_point_is_told_before_the_work(
    room: Path, command: Command, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told by a traceback after all the work: a mount point cannot be renamed over."""
    out = room / "here" / "out"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    ran = command(*COMMANDS[name], "--out", out)
    assert ran.code == 1 and "mount point" in ran.err and list(out.iterdir()) == []


def test_the_older_model_stays_until_the_new_one_stands(room: Path, command: Command) -> None:
    command("apply", "base", "vector", "--out", "out")
    before = picture(room / "out")
    (room / "one" / "model.safetensors").write_bytes(b"junk")
    assert command("fuse", "merge.yaml", "--out", "out", "--fresh").code == 2
    assert picture(room / "out") == before and not (room / ".out.partial").exists()


def test_two_generations_on_request(room: Path, command: Command) -> None:
    write_recipe(room, base="base", specialists={"one": "one"}, output={"keep_previous": True})
    generations = []
    for weight in (1.0, 0.5, 0.25):
        write_recipe(
            room, base="base", specialists={"one": {"model": "one", "weight": weight}}, output={"keep_previous": True}
        )
        assert command("fuse", "merge.yaml", "--out", "here/out", "--fresh").code == 0
        generations.append(read_model(room / "here" / "out"))
        if len(generations) > 1:
            kept = read_model(room / "here" / "out-previous")
            assert all((kept[name] == generations[-2][name]).all() for name in kept)
    assert sorted(path.name for path in (room / "here").iterdir()) == ["out", "out-previous"]
    (room / "here" / "out-previous" / "notes.txt").write_text("mine")
    before = picture(room / "here")
    ran = command("fuse", "merge.yaml", "--out", "here/out", "--fresh")
    assert ran.code == 1 and "notes.txt" in ran.err and picture(room / "here") == before


def test_what_turns_up_while_it_runs_stays_and_is_named(tmp_path: Path) -> None:
    ours(tmp_path / "out")
    with OutputFolder(tmp_path / "out", "", fresh=True) as output:
        output.add_text("config.json", "{}")
        (tmp_path / "out" / "late.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"late\.txt"):
            output.publish()
    assert (tmp_path / "out" / "late.txt").read_text() == "mine" and (tmp_path / "out" / "older.json").is_file()


def test_what_is_put_into_an_unfinished_output_is_not_published(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", "") as output:
        output.add_text("config.json", "{}")
        (output.staging / "model.bin").write_text("poison")
        with pytest.raises(OutputError, match=r"model\.bin"):
            output.publish()
        output.abandon()
    assert not (tmp_path / "out").exists()
    assert (output.staging / "model.bin").read_text() == "poison", "what is not ours is not removed"


@pytest.mark.parametrize("option", ["evaluate", "schema"])
def test_files_that_are_none_of_ours(room: Path, command: Command, option: str) -> None:
    """A page's twin for programs took the place of whatever was called so; `schema --out merge.yaml` of the recipe."""
    from taskmerge.reporting import write_report

    if option == "schema":
        before = picture(room)
        assert command("schema", "--out", "merge.yaml").code == 1 and picture(room) == before
        assert [command("schema", "--out", "schema.json").code for _ in range(2)] == [0, 0]
        return
    (room / "scores.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"scores\.json"):
        write_report(room / "scores.html", "Scores", [], {})
    assert (room / "scores.json").read_text() == '{"mine": 1}' and not (room / "scores.html").exists()
    for _ in range(2):
        write_report(room / "other.html", "Scores", [], {})


def test_strangers_is_what_it_says(tmp_path: Path) -> None:
    assert picture(strangers(tmp_path / "x").parent) == {"x": "folder", "x/thesis.tex": b"ten years of work"}
