"""What pairs that judge share with pairs that are trained on."""

from __future__ import annotations

import numpy as np

from taskmerge.embedders.overlap import Overlap, overlap_note
from taskmerge.embedders.pairs import read_pairs


def heard(value: float, text: str, group: str) -> dict[str, object]:
    return {"audio": {"array": np.full(50, value, np.float32), "sampling_rate": 16000}, "text": text, "group": group}


def test_items_texts_and_groups_are_counted_once() -> None:
    trained = read_pairs([heard(0.1, "a dog", "ann"), heard(0.2, "a cat", "bob")])
    judging = read_pairs(
        [
            heard(0.1, "a dog", "ann"),
            heard(0.3, "A Dog.", "eve"),
            heard(0.4, "a cow", "bob"),
            heard(0.5, "a pig", "eve"),
        ]
    )
    found = Overlap.of(judging, trained)
    assert (found.items, found.texts, found.groups) == ([0], [1], [2])
    note = overlap_note("audio", judging, trained)
    assert note == (
        "audio: of 4 evaluation pairs (pairs in memory) 1 are training items, 1 have a text of the training data, "
        "1 have a group of the training data (pairs in memory): results on new data may be worse."
    )


def test_nothing_shared_is_nothing_said() -> None:
    trained = read_pairs([heard(0.1, "a dog", "ann")])
    assert overlap_note("audio", read_pairs([heard(0.2, "a cat", "bob")]), trained) == ""
