"""What probes leave open is said: a control that saw nothing, probes that were trained on, spellings of one text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from drift_models import moved, qwen2_audio, sounds, tiny_grafted

from taskmerge.embedders import open_embedder
from taskmerge.embedders.overlap import shared_items
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import UsageError
from taskmerge.measuring.drift import diagnose_drift
from taskmerge.measuring.drift.comparison import compare
from taskmerge.measuring.drift.probes import probe_notes


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return qwen2_audio(tmp_path_factory.mktemp("models") / "qwen2_audio")


def test_a_control_that_saw_nothing_has_not_passed(native: Any) -> None:
    """With every tensor called backbone no projector is found: nothing is seen, and nothing is claimed."""
    hidden = {"backbone": ["*"]}
    found = diagnose_drift(moved(native, 0.8), native, None, sounds(8), components=hidden).modalities["audio"]
    assert (found.control.outputs, found.control.identical, found.control.passed) == (0, None, None)
    assert "projector was not checked" in str(found.verdict)


def test_a_changed_projector_that_nobody_saw_run_is_found_by_its_tensors(native: Any) -> None:
    first, other = open_embedder(native), open_embedder(moved(native, 0.5, names="multi_modal_projector"))
    for side in (first, other):
        seen = replace(side.anatomy(), projectors={})
        side.anatomy = lambda components=None, seen=seen: seen  # type: ignore[method-assign, misc]
    control = compare(first, other, read_pairs(sounds(4))).control
    assert (control.outputs, control.identical) == (0, None)
    assert (control.tensors > 2, control.changed, control.passed) == (True, 1, False)
    same = compare(first, first, read_pairs(sounds(4))).control
    assert (same.changed, same.passed) == (0, None)


def test_the_tower_of_a_graft_is_compared_too(tmp_path: Path) -> None:
    model = tiny_grafted(tmp_path)
    first, other = open_embedder(model), open_embedder(moved(model, 0.5, names="audio_projector"))
    control = compare(first, other, read_pairs(sounds(4))).control
    assert control.tensors > 2
    assert (control.changed > 0, control.passed) == (True, False)


def test_probes_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    """By content: a copy of a file under another name, and the same array, are the same item."""
    rows = []
    for number, pair in enumerate(sounds(6)):
        soundfile.write(tmp_path / f"{number}.wav", pair["audio"]["array"], 16000)
        rows.append({"audio": str(tmp_path / f"{number}.wav"), "text": pair["text"]})
    (tmp_path / "copy.wav").write_bytes((tmp_path / "2.wav").read_bytes())
    trained = read_pairs([{"audio": str(tmp_path / "copy.wav"), "text": "other"}, rows[4]])
    assert shared_items(read_pairs(rows), trained) == [2, 4]
    arrays = sounds(6)
    assert shared_items(read_pairs(arrays), read_pairs(arrays[1:3])) == [1, 2]
    embeddings = np.eye(6)
    notes = probe_notes(read_pairs(arrays), embeddings, embeddings, [arrays[1:3]])
    assert notes == (
        "2 of 6 probes are in the specialist's training data (pairs in memory): it may have memorised them, and "
        "other items "
        "may lose more.",
    )
    assert probe_notes(read_pairs(arrays), embeddings, embeddings, [sounds(3, seed=9)]) == ()


def test_the_report_says_it(native: Any) -> None:
    probes = sounds(8)
    report = diagnose_drift(native, native, None, probes, trained_on=probes[:5])
    assert "5 of 8 probes are in the specialist's training data" in str(report)
    with pytest.raises(UsageError, match="no probes for 'image'"):
        diagnose_drift(native, {"audio": native}, None, {"audio": probes}, trained_on={"image": probes})


def test_spellings_of_one_text_are_one_text() -> None:
    texts = ["Seven", "seven.", " SEVEN ", "seven", "eight", "Eight!", "ｅｉｇｈｔ", "C++", "C"]
    pairs = read_pairs([{"query": str(number), "text": text} for number, text in enumerate(texts)])
    distinct, right = pairs.distinct()
    assert distinct == ["Seven", "eight", "C++", "C"]
    assert right.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 3]
    embeddings = np.eye(4)
    notes = probe_notes(pairs, embeddings[right], embeddings)
    assert notes == ("9 texts that differ only in case, spaces or closing punctuation were counted as 4.",)


def test_spellings_do_not_make_a_specialist_find_nothing(native: Any) -> None:
    """Forty sounds of one word in as many spellings, and one other text: every sound finds its word."""
    pairs = sounds(41)
    spelled = [
        {**pair, "text": f"{'a' if number % 2 else 'A'} dog{'.' * (number % 20)}"} for number, pair in enumerate(pairs)
    ]
    spelled[-1]["text"] = "rain"
    found = diagnose_drift(native, native, None, spelled).modalities["audio"]
    assert found.distinct_texts == 2
    assert "texts that differ only in case" in found.notes[0]


def test_almost_the_right_text_is_named() -> None:
    texts = ["the colour red", "the color red", "rain"]
    pairs = read_pairs([{"query": str(number), "text": text} for number, text in enumerate(texts)])
    gallery = torch.eye(3).numpy()
    (note,) = probe_notes(pairs, gallery[[1, 1, 0]], gallery)  # the last finds another text altogether
    assert note.startswith(
        "1 of 3 probes retrieve a text that is almost their own ('the color red' for 'the colour red')"
    )
