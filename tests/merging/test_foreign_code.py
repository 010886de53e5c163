"""Code runs when the user names it, and never because a folder that came from somebody else does.

`taskmerge verify DOWNLOADED`, with `--hashes-only` too, ran the `.py` that the folder's own record named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import random_model, write_model, write_recipe

from taskmerge import recipes
from taskmerge.errors import UsageError
from taskmerge.merging import execute, plan
from taskmerge.merging.verify import verify

METHOD = """
from pathlib import Path
from taskmerge import merge_method
Path({canary!r}).touch()
@merge_method
def mine(deltas, weights):
    \"\"\"Half of the sum. Source: this test.\"\"\"
    return deltas.sum(dim=0) * 0.5
"""
Command = Callable[..., Any]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A project with a method of its own, fused by its user; the canary is gone again."""
    base = random_model(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "one", random_model(1, near=base))
    (tmp_path / "mine.py").write_text(METHOD.format(canary=str(tmp_path / "ran")))
    recipe = recipes.load(
        write_recipe(tmp_path, base="base", specialists={"one": "one"}, merge={"method": "mine.py:mine"})
    )
    execute(plan(recipe), recipe, tmp_path / "out")
    (tmp_path / "ran").unlink()
    return tmp_path


@pytest.fixture
def downloaded(own: Path) -> Path:
    """The same model with its code in its own folder, as somebody might send it."""
    record = json.loads((own / "out" / "taskmerge.json").read_text())
    for label in ("base", "one"):
        shutil.copytree(own / label, own / "out" / "inside" / label)
    record["recipe"] = record["recipe"].replace("base: base", "base: inside/base").replace(": one", ": inside/one")
    shutil.copy(own / "mine.py", own / "out" / "mine.py")
    (own / "out" / "taskmerge.json").write_text(json.dumps({**record, "recipe_folder": "."}))
    (own / "out" / "recipe.yaml").write_text(record["recipe"] + "\nembedder: mine.py:load\n")
    return own


@pytest.mark.parametrize("options", [(), ("--hashes-only",), ("--recipe-folder", "out"), ("--json",)])
def test_verify_runs_nothing_of_a_downloaded_folder(
    downloaded: Path, command: Command, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(downloaded)
    ran = command("verify", "out", *options)
    assert ran.code == 2 and "it was not run" in ran.err and "--method" in ran.err
    assert not (downloaded / "ran").exists()


NAMED = (
    "merge: {method: mine.py:mine}",
    "merge: {rules: [{match: '*', method: mine.py:mine}]}",
    "embedder: mine.py:load",
    "embedder: mine:load",
)


@pytest.mark.parametrize("where", NAMED)
@pytest.mark.parametrize("words", [("fuse",), ("run",), ("fuse", "--dry-run"), ("recover",), ("diagnose-drift",)])
def test_a_recipe_found_inside_a_model_runs_nothing(
    downloaded: Path, command: Command, where: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(downloaded)
    (downloaded / "out" / "recipe.yaml").write_text(f"base: inside/base\nspecialists: {{one: inside/one}}\n{where}\n")
    ran = command(words[0], "out/recipe.yaml", *words[1:], *(("--out", "made") if words[0] != "diagnose-drift" else ()))
    assert ran.code == 2 and "came with a model" in ran.err, ran
    assert not (downloaded / "ran").exists() and not (downloaded / "made").exists()


def test_in_the_hubs_cache_too(own: Path) -> None:
    place = own / "models--owner--name" / "snapshots" / "abc"
    place.mkdir(parents=True)
    (place.parent.parent / "blobs").mkdir()
    shutil.copy(own / "mine.py", place / "mine.py")
    shutil.copy(own / "merge.yaml", place / "merge.yaml")
    with pytest.raises(UsageError, match="came with a model"):
        recipes.load(place / "merge.yaml")
    assert not (own / "ran").exists()


def test_what_the_user_names_himself_is_run(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """His file, not the one that the record leads to."""
    assert recipes.load(own / "merge.yaml").merge.method == "mine.py:mine"
    (own / "elsewhere").mkdir()
    shutil.move(own / "mine.py", own / "elsewhere" / "mine.py")
    (own / "mine.py").write_text("raise RuntimeError('somebody put this here')")
    monkeypatch.chdir(own)
    assert verify(own / "out", methods=["elsewhere/mine.py:mine"]) == []
    with pytest.raises(UsageError, match="it was not run"):
        verify(own / "out", methods=["elsewhere/mine.py:other"])


def test_a_project_that_lies_beside_weights_keeps_its_own_methods(own: Path) -> None:
    """Single weight files in the recipe's folder make it no model's folder."""
    shutil.copy(own / "base" / "model.safetensors", own / "base.safetensors")
    assert recipes.load(own / "merge.yaml").merge.method == "mine.py:mine"
