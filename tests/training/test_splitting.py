"""What judges shares no text with what is fitted on, nor a group, however rows are written and ordered."""

from __future__ import annotations

from typing import Any

import pytest

from taskmerge.embedders.pairs import Pairs, read_pairs, spelling
from taskmerge.errors import UsageError
from taskmerge.training.splitting import Split, folds, one_split, recovery_splits, split_sets

VOICES = ("ann", "bob", "eve", "joe")


def spoken(texts: int, voices: tuple[str, ...] = VOICES, grouped: bool = True) -> Pairs:
    """Every text by every voice, each spelled in another way."""
    spellings = (str.upper, str.lower, "{}.".format, " {}".format)
    rows: list[dict[str, Any]] = [
        {"query": f"{voice} {number}", "text": spellings[place % 4](f"text {number}"), "group": voice}
        for number in range(texts)
        for place, voice in enumerate(voices)
    ]
    return read_pairs(rows if grouped else [{key: row[key] for key in ("query", "text")} for row in rows])


def shared(pairs: Pairs, split: Split) -> tuple[set[str], set[str]]:
    """Texts and groups on both sides."""
    sides = [pairs.take(split.fitted), pairs.take(split.held)]
    texts, groups = ([{spelling(t) for t in side.texts} for side in sides], [set(side.groups) for side in sides])
    return texts[0] & texts[1], groups[0] & groups[1]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_no_text_and_no_group_is_on_both_sides(grouped: bool, seed: int) -> None:
    pairs = spoken(30, grouped=grouped)
    for split in [one_split(pairs, seed, 0.1), *folds(pairs, 3, seed)]:
        assert split is not None and split.fitted and split.held
        assert shared(pairs, split) == (set(), set())
        assert len(split.fitted) + len(split.held) + split.unused == len(pairs)
        assert bool(split.unused) == grouped


def test_every_text_judges_once() -> None:
    pairs = spoken(20, grouped=False)
    held = [row for split in folds(pairs, 3, 0) for row in split.held]
    assert sorted(held) == list(range(len(pairs)))
    grouped = spoken(20)
    texts = [spelling(grouped.texts[row]) for split in folds(grouped, 3, 0) for row in split.held]
    assert set(texts) == {spelling(text) for text in grouped.texts}


def test_a_tenth_of_the_texts_is_a_tenth_of_the_texts_however_often_they_occur() -> None:
    often = read_pairs([{"query": str(row), "text": "the same" if row < 500 else f"text {row}"} for row in range(599)])
    split = one_split(often, 0, 0.1)
    assert split is not None
    assert len({often.texts[row] for row in split.held}) == 10


def test_pairs_that_are_neither_are_told() -> None:
    kept, held, notes = split_sets({"audio": spoken(20), "text": spoken(20, grouped=False)}, 0)
    assert (
        len(notes) == 1 and notes[0].startswith("audio: 4 of 80 pairs are held out") and "28 are not used" in notes[0]
    )
    assert len(held["audio"]) == 4 and len(kept["audio"]) == 48


def test_sets_that_cannot_be_split_are_refused_with_the_way_on() -> None:
    for pairs in (spoken(1, grouped=False), spoken(4, ("ann",))):
        with pytest.raises(UsageError, match="too few to reserve some for evaluation\n    give held_out pairs"):
            split_sets({"audio": pairs}, 0)
    with pytest.raises(UsageError, match="1 texts are too few"):
        recovery_splits({"audio": spoken(1, grouped=False)}, 0)


def test_large_recoveries_are_split_once_and_small_ones_in_turn() -> None:
    assert len(recovery_splits({"audio": spoken(40)}, 0)["audio"]) == 3
    assert len(recovery_splits({"audio": spoken(200)}, 0)["audio"]) == 1
    two = recovery_splits({"one": spoken(40, ("ann", "bob")), "other": spoken(40)}, 0)
    assert [len(splits) for splits in two.values()] == [2, 2]


def test_a_group_is_said_of_every_row_or_of_none() -> None:
    rows = [{"query": "a", "text": "b", "group": "ann"}, {"query": "c", "text": "d"}]
    with pytest.raises(UsageError, match="1 of 2 rows have no group"):
        read_pairs(rows)
    assert read_pairs(rows[:1]).groups == ["ann"]
    assert list(read_pairs(rows[1:]).groups) == []
