"""Many globs at once cover what each covers by itself."""

from __future__ import annotations

import random

import pytest

from taskmerge.words import pattern_sets
from taskmerge.words.pattern_sets import PatternSet
from taskmerge.words.patterns import Pattern, PatternError

_PIECES = ("a", "b", ".", "*", "**", "?", "[ab]", "[!a]", "{0..12}", "{7..7}", "{98..1203}", "{a,b*,}", "{a,{0..3}}")


def _globs(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 5))) for _ in range(count)]


def _names(rng: random.Random, count: int) -> list[str]:
    pieces = ("a", "b", ".", "0", "7", "12", "13", "98", "1203", "1204", "007", "\n", "é")
    return ["".join(rng.choice(pieces) for _ in range(rng.randint(0, 6))) for _ in range(count)]


@pytest.mark.parametrize("count", [3, 9, 60])
@pytest.mark.parametrize("held", [1 << 12, 32 << 20], ids=["forgetful", "remembering"])
def test_each_name_is_covered_by_the_globs_that_cover_it(
    count: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pattern_sets, "_MOST_HELD", held)
    rng = random.Random(count)
    hits = 0
    for _ in range(8):
        globs = _globs(rng, count)
        together = PatternSet(globs)
        for name in _names(rng, 150):
            alone = {glob for glob in globs if Pattern.parse(glob).matches(name)}
            assert together.covering(name) == alone, (name, globs)
            hits += len(alone)
    assert hits > 100


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 9), (3, 17), (95, 1_004), (100, 199), (7, 7_006), (0, 255)])
def test_ranges_of_numbers(low: int, high: int) -> None:
    together = PatternSet([f"x.{{{low}..{high}}}.y", *(f"never{number}" for number in range(9))])
    found = [number for number in range(11_000) if together.covering(f"x.{number}.y")]
    assert found == list(range(low, high + 1))
    assert not together.covering(f"x.0{high}.y")


def test_a_glob_of_too_many_rows_is_tried_by_itself() -> None:
    wide = "{a,b}" * 12
    together = PatternSet([wide, *(f"never{number}" for number in range(9))])
    assert together.covering("ab" * 6) == {wide}


def test_a_bad_glob_is_said() -> None:
    with pytest.raises(PatternError, match="never closed"):
        PatternSet(["fine", "[bad"])
