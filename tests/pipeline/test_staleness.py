"""A stage runs again exactly when something that it opened has changed; nothing that it did not make is removed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pipeline_projects import RECIPE, new_project, run_quietly, running

from taskmerge.errors import OutputError

METHOD = '''
from taskmerge import merge_method
@merge_method
def mine(deltas, weights):
    """Half of the sum. Source: this test."""
    return deltas.sum(dim=0) * 0.5
'''
FUSE = RECIPE.partition("drift:")[0]
FUSE = "\n".join(
    line for line in FUSE.splitlines() if not line.startswith(("specialize", "  audio: {data", "  text: {data"))
)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A project whose specialists are trained."""
    project = new_project(tmp_path / "project")
    run_quietly(project, RECIPE.partition("drift:")[0], until="specialize")
    return project


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def rewritten(path: Path) -> None:
    """The same bytes but the last, at another time."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


CHANGES: dict[str, Any] = {
    "a specialist's tensors": lambda folder: rewritten(folder / "specialist-text" / "model.safetensors"),
    "a specialist's tokenizer": lambda folder: append(folder / "specialist-text" / "tokenizer.json", " "),
    "the base's processor": lambda folder: (folder / "base" / "preprocessor_config.json").write_text("{}"),
    "code beside the base": lambda folder: (folder / "base" / "modeling_own.py").write_text("x = 1"),
    "the method's own file": lambda folder: append(folder / "mine.py", "# edited\n"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fuse_runs_again_when_what_it_opened_changed(trained: Path, what: str) -> None:
    text = FUSE.rstrip() + "\nmerge: {method: mine.py:mine}\n"
    (trained / "mine.py").write_text(METHOD)
    _, said = run_quietly(trained, text, start="fuse", until="fuse")
    assert running(said) == ["fuse"]
    _, said = run_quietly(trained, text, start="fuse", until="fuse")
    assert running(said) == []
    CHANGES[what](trained)
    _, said = run_quietly(trained, text, start="fuse", until="fuse")
    assert running(said) == ["fuse"], what


def test_cards_and_pictures_decide_nothing(trained: Path) -> None:
    run_quietly(trained, FUSE, start="fuse", until="fuse")
    (trained / "base" / "README.md").write_text("# a card")
    (trained / "base" / ".gitattributes").write_text("x")
    _, said = run_quietly(trained, FUSE, start="fuse", until="fuse")
    assert running(said) == []


def test_a_deleted_model_is_made_again(trained: Path) -> None:
    import shutil

    run_quietly(trained, FUSE, start="fuse", until="fuse")
    shutil.rmtree(trained / "fused")
    _, said = run_quietly(trained, FUSE, start="fuse", until="fuse")
    assert running(said) == ["fuse"] and (trained / "fused" / "taskmerge.json").is_file()


def test_another_version_removes_nothing(trained: Path) -> None:
    note = trained / "fused-report" / "specialize-audio.json"
    table = json.loads(note.read_text())
    note.write_text(json.dumps(table | {"version": "0.0.1"}))
    before = (trained / "specialist-audio" / "model.safetensors").stat().st_mtime_ns
    _, said = run_quietly(trained, RECIPE.partition("drift:")[0], until="specialize")
    assert "specialize-audio: unchanged, skipped (made by 0.0.1)" in said
    assert (trained / "specialist-audio" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("stage", ["fuse", "specialize"])
def test_a_folder_of_somebody_elses_is_never_replaced(trained: Path, stage: str) -> None:
    """Also when a note says that the stage once left its model there."""
    folder = trained / ("fused" if stage == "fuse" else "specialist-audio")
    for record in folder.glob("taskmerge*.json"):
        record.unlink()
    folder.mkdir(exist_ok=True)
    (folder / "thesis.tex").write_text("ten years of work")
    text = RECIPE.partition("drift:")[0].replace("steps: 3,", "steps: 4,")
    with pytest.raises(OutputError):
        run_quietly(trained, text, start=stage, until=stage)
    assert (folder / "thesis.tex").read_text() == "ten years of work"
