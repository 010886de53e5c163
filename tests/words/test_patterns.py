"""Name globs: what they match, and how a bad one is told."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as some

from taskmerge.words.patterns import Pattern, PatternError, matches


@pytest.mark.parametrize(
    ("pattern", "name", "does"),
    [
        ("*", "model.layers.0.weight", True),
        ("*", "", True),
        ("*.weight", "a.b.weight", True),
        ("*.weight", "a.b.weight_scale", False),
        ("weight", "a.weight", False),
        ("layers.?.w", "layers.7.w", True),
        ("layers.?.w", "layers.17.w", False),
        ("layers.{0..7}.*", "layers.7.w", True),
        ("layers.{0..7}.*", "layers.8.w", False),
        ("layers.{0..7}.*", "layers.07.w", False),
        ("layers.{0..12}.*", "layers.12.w", True),
        ("layers.{0..12}.*", "layers.123.w", False),
        ("{q,k,v}_proj", "k_proj", True),
        ("{q,k,v}_proj", "o_proj", False),
        ("{a,b{c,d*}}.x", "bd.e.x", True),
        ("{a,}b", "b", True),
        ("{a?,b}", "az", True),
        ("[abc]1", "b1", True),
        ("[a-c]1", "d1", False),
        ("[!a-c]1", "d1", True),
        ("[]]x", "]x", True),
        ("a.b", "axb", False),
        ("a+b(c)|^$", "a+b(c)|^$", True),
        ("line", "line\n", False),
        ("*", "a\nb", True),
        ("Weight", "weight", False),
    ],
)
def test_matches(pattern: str, name: str, does: bool) -> None:
    assert matches(name, pattern) is does


@pytest.mark.parametrize(
    ("pattern", "what", "position"),
    [
        ("layers.{0..7.*", "'{' is never closed", 8),
        ("a[bc", "'[' is never closed", 2),
        ("a}", "'}' has no opening bracket", 2),
        ("a]", "']' has no opening bracket", 2),
        ("x.{}", "'{}' has no alternatives", 3),
        ("x{9..3}", "the range 9..3 is reversed", 2),
        ("[z-a]", "the range z-a is reversed", 1),
        ("[!]x", "'[' is never closed", 1),
        ("{0..99999}", "the range 0..99999 contains more than 10000 numbers", 1),
        ("{" * 30 + "}" * 30, "braces are nested too deeply", 21),
    ],
)
def test_bad_pattern_is_told_with_its_place(pattern: str, what: str, position: int) -> None:
    with pytest.raises(PatternError) as caught:
        Pattern.parse(pattern)
    assert f"bad pattern {pattern!r}: {what} at character {position}\n" in str(caught.value)
    pointer, move = str(caught.value).splitlines()[-2:]
    assert pointer.strip() == "^" and pointer.index("^") == position + 3
    assert move.strip().startswith("correct the pattern")


def test_empty_and_endless_patterns_are_refused() -> None:
    with pytest.raises(PatternError, match="a pattern is empty"):
        Pattern.parse("")
    with pytest.raises(PatternError, match="more than 2000"):
        Pattern.parse("a" * 2001)


@given(some.text("ab.*?", max_size=8), some.text("ab.", max_size=10))
def test_stars_and_question_marks_are_those_of_the_shell(pattern: str, name: str) -> None:
    if pattern:
        assert matches(name, pattern) == fnmatch.fnmatchcase(name, pattern)


@given(some.text(max_size=30))
def test_text_is_a_pattern_or_a_told_mistake(text: str) -> None:
    try:
        Pattern.parse(text)
    except PatternError as error:
        assert error.exit_code == 2


@given(some.text(min_size=1, max_size=30))
def test_plain_text_matches_itself_alone(text: str) -> None:
    plain = re.sub(r"[*?\[\]{}]", "", text)
    if plain:
        assert matches(plain, plain)
        assert not matches(plain + "x", plain)


def test_many_stars_stay_fast() -> None:
    assert not matches("a" * 300, "*a" * 30 + "b")


def test_filter_keeps_order() -> None:
    assert Pattern.parse("b*").filter(["b2", "a", "b1"]) == ["b2", "b1"]
