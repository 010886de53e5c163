"""Regular expressions in linear time mean what Python's own mean."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from taskmerge.words.regular import Regular, RegularError, regular

PATTERNS = [
    "q_proj", ".*", "", "a|b|", "(a|b)*c", "a+b?c*", "a{2,3}", "a{2}", "a{,2}b", "a{2,}", "(?:ab){1,2}", "[a-c.]+",
    "[^a]b", r"\d+", r"\w*\.\d", r"[\d_]+", r"\.", "^ab$", "(^a|b)+", "(?P<x>a)b", "a*?b", "(?i)AB", "(?i:A)b",
    r"layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.up_proj)", "((a*)*)*b", "(a|a|ab)*b", "(|a)+b", "(a{0,2}){0,2}",
    "a$b", "b^a", r"[^\W\d]+",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=60, deadline=None)
@given(text=some.text("abAB.1_c", max_size=8))
def test_what_matches_is_what_python_matches(pattern: str, text: str) -> None:
    assert Regular(pattern).fullmatch(text) == (re.fullmatch(pattern, text) is not None)


@settings(max_examples=200, deadline=None)
@given(some.text("ab|*+?()[]{}.,1^$\\d", max_size=10), some.text("ab1", max_size=6))
def test_any_pattern_is_read_as_python_reads_it_or_refused(pattern: str, text: str) -> None:
    try:
        own = Regular(pattern)
    except RegularError as error:
        assert error.exit_code == 2
        return
    assert own.fullmatch(text) == (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
    "pattern",
    [
        "(.|.)*!",
        "(a+a+)+b",
        "(a*)*b",
        ".*" * 12 + "!",
        "(?:(?:a{1,20}){1,10}){1,9}b",
        "(a|aa|aaa)*b",
        "((((a*)*)*)*)*b",
    ],
)
def test_no_pattern_is_slow(pattern: str) -> None:
    began = time.monotonic()
    assert not regular(rf"(?:.*\.)?(?:{pattern})").fullmatch("model.layers.0." + "a" * 200)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        "(?=a)a",
        "(?<!a)b",
        r"\bab",
        "(",
        "a{9999}{9999}",
        "(?:a{999}){999}",
        "(?:(?:a{1,30}){1,20}){1,9}b",
        "(?m)^a",
    ],
)
def test_what_is_not_read_is_refused(pattern: str) -> None:
    with pytest.raises(RegularError, match="is not a supported regular expression"):
        regular(pattern)
