"""A stage runs again exactly when something that it opened has changed; nothing that it did not make is removed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from in_the_way import picture
from pipeline_projects import RECIPE, new_project, run_quietly, running

from taskmerge.errors import OutputError
from taskmerge.pipeline.inputs import Inputs

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


def test_a_newer_taskmerge_trains_nothing_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version removed every trained model, with what its user had put there, and began again."""
    from taskmerge.pipeline import state

    (trained / "specialist-audio" / "notes").mkdir()
    (trained / "specialist-audio" / "notes" / "thesis.tex").write_text("ten years of work")
    before = picture(trained / "specialist-audio")
    monkeypatch.setattr(state, "__version__", "9.9.9")
    _, said = run_quietly(trained, RECIPE.partition("drift:")[0], until="specialize")
    assert running(said) == [] and picture(trained / "specialist-audio") == before


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


SCORED = FUSE.rstrip() + "\nevaluate: {retrieval: {audio: held.jsonl}}\n"


def test_the_report_holds_no_score_of_another_model(trained: Path) -> None:
    table, _ = run_quietly(trained, SCORED, start="fuse")
    assert "evaluate" in table["stages"] and "evaluate" not in table["outdated"]
    other = SCORED.replace("weight: 0.5", "weight: 0.25")
    table, said = run_quietly(trained, other, start="fuse", until="fuse")
    assert "evaluate" not in table["stages"] and "evaluate" in table["outdated"]
    assert "evaluate: belongs to another recipe, other inputs or another model; left out of the report" in said
    kept = json.loads((trained / "fused-report" / "report.json").read_text())
    assert set(kept["stages"]) == {"fuse"}
    assert "Not shown, because they belong to another recipe" in (trained / "fused-report" / "report.html").read_text(
        "utf-8"
    )
    table, said = run_quietly(trained, other, start="fuse")
    assert running(said) == ["evaluate"] and "evaluate" in table["stages"]


def test_a_stage_that_the_recipe_no_longer_has_is_not_shown(trained: Path) -> None:
    run_quietly(trained, SCORED, start="fuse")
    table, _ = run_quietly(trained, FUSE, start="fuse")
    assert "evaluate" not in table["stages"] and "evaluate" in table["outdated"]


def test_skipping_reads_no_data(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.embedders import pairs

    run_quietly(trained, SCORED, start="fuse")

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("data of a stage that is skipped was read")

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "read_pairs", opened)
        _, said = run_quietly(trained, SCORED, start="fuse")
        assert running(said) == []
        with pytest.raises(AssertionError, match="was read"):
            run_quietly(trained, SCORED.replace("held.jsonl", "audio.jsonl"), start="fuse")


def test_a_model_that_is_gone_is_made_again_before_what_needs_it(trained: Path) -> None:
    import shutil

    run_quietly(trained, SCORED, start="fuse")
    shutil.rmtree(trained / "fused")
    table, said = run_quietly(trained, SCORED, start="evaluate")
    assert "fuse: its output is missing; the stage runs again" in said
    assert running(said) == ["fuse", "evaluate"] and (trained / "fused" / "taskmerge.json").is_file()
    assert "fused" in {row["variant"] for row in table["stages"]["evaluate"]["retrieval"]["results"]}


SAID: dict[str, tuple[str, str, str]] = {
    "the stack of a fuse": ("fuse", "seed: 1", "seed: 1\nstack: [{base: 0..1, audio: 0..1, text: 0..1}]"),
    "an adapter of the base": ("fuse", "seed: 1", "seed: 1\nbase_adapter: adapter"),
    "the base of a trained specialist": ("specialize", "base: base", "base: other"),
    "where a specialist lies": ("specialize", "model: specialist-audio", "model: elsewhere"),
    "whose drift": ("diagnose", "model: specialist-audio", "model: elsewhere"),
    "the teacher": ("recover", "drift: {specialist: audio", "drift: {specialist: text"),
    "what rehearsal begins with": ("rehearse", "recover:", "copy: {}\n# recover:"),
}


@pytest.mark.parametrize("what", SAID)
def test_whatever_of_the_recipe_decides_a_stage_is_in_its_note(tmp_path: Path, what: str) -> None:
    from taskmerge.pipeline import Places, Run
    from taskmerge.pipeline.steps import STEPS
    from taskmerge.recipes import loads

    stage, before, after = SAID[what]
    text = RECIPE + "seed: 1\n"
    assert before in text
    found = []
    for said in (text, text.replace(before, after)):
        recipe = loads(said, "recipe.yaml", tmp_path)
        run = Run(recipe, Places.of(recipe))
        found.append([run._said(step.section) for step in STEPS[stage](run)])
    assert found[0] != found[1]


def test_the_unfinished_output_of_a_killed_stage_is_no_input_of_the_one_that_continues_it(tmp_path: Path) -> None:
    """Its journal is read, and gone when the stage has ended: the stage would run again."""
    journal = tmp_path / ".out-recovered.partial" / ".taskmerge-journal.json"
    other = tmp_path / ".other.partial" / "model.json"
    for path in (journal, other):
        path.parent.mkdir()
        path.write_text("{}")
    found = Inputs(tmp_path, tmp_path / "report").identities([journal, other], False, [tmp_path / "out-recovered"])
    assert list(found) == [".other.partial/model.json"]
