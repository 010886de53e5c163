"""What judges and is trained on too is known from the recipe, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline_projects import RECIPE, write_sound

from taskmerge.pipeline import Places
from taskmerge.pipeline.overlaps import overlap_notes
from taskmerge.pipeline.state import Run
from taskmerge.recipes import loads


def written(folder: Path, name: str, rows: list[tuple[float, str, str]]) -> None:
    """A set of sounds: (pitch, text, speaker)."""
    lines = []
    for number, (pitch, text, speaker) in enumerate(rows):
        write_sound(folder / f"{name}{number}.wav", pitch)
        lines.append(json.dumps({"audio": f"{name}{number}.wav", "text": text, "group": speaker}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))


def test_sets_that_judge_are_compared_with_what_each_stage_trains_on(tmp_path: Path) -> None:
    written(tmp_path, "audio", [(300, "a dog", "ann"), (400, "a cat", "ann")])
    written(
        tmp_path, "held", [(300, "a dog", "ann"), (500, "A Cat.", "eve"), (600, "a cow", "ann"), (700, "a pig", "eve")]
    )
    (tmp_path / "text.jsonl").write_text(json.dumps({"query": "a dog", "text": "a dog"}))
    run = Run(loads(RECIPE, str(tmp_path / "recipe.yaml"), folder=tmp_path), Places(tmp_path / "fused"))
    held = run.data({"audio": "held.jsonl"})
    (note,) = overlap_notes(run, "evaluate", held)
    assert "evaluate: audio: of 4 evaluation pairs" in note and "audio.jsonl" in note
    assert "1 are training items, 1 have a text of the training data, 1 have a group of the training data" in note
    (tmp_path / "other.jsonl").write_text((tmp_path / "held.jsonl").read_text().splitlines()[3])
    assert (
        overlap_notes(run, "evaluate", run.data({"audio": "other.jsonl"}), ("specialize", "recover", "rehearse")) == []
    )
