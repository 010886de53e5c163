"""Regular expressions of strangers: the same answers as Python's engine, and never long."""

from __future__ import annotations

import random
import re
import time

import pytest

from taskmerge.words.expressions import Expression, ExpressionError

ATOMS = (
    "a",
    "b",
    ".",
    r"\.",
    "[ab]",
    "[^a]",
    r"\w",
    r"\d",
    "(ab)",
    "(?:a|b)",
    "(a|ab|)",
    "a*",
    "(ab)+",
    "b?",
    "a{2}",
    "b{1,3}",
    "(a*)*",
    "a+?",
    "(?i:A)",
    "^",
    "$",
    r"\b",
    r"\B",
    "(?P<x>b)",
    "[a-c0-9_]",
)


def test_the_answers_are_those_of_pythons_engine() -> None:
    rng = random.Random(0)
    compared = 0
    for _ in range(3000):
        text = "".join(rng.choice(ATOMS) for _ in range(rng.randint(1, 5)))
        if text.count("P<x>") > 1:
            continue
        own, other, behind = Expression(text), re.compile(text), re.compile(rf"(?:.*\.)?(?:{text})")
        for _ in range(6):  # of an empty text Python's \B has changed its mind in 3.14
            name = "".join(rng.choice("abc._0A") for _ in range(rng.randint(1, 7)))
            assert own.matches(name) == bool(other.fullmatch(name)), (text, name)
            assert own.matches(name, from_dot=True) == bool(behind.fullmatch(name)), (text, name)
            compared += 1
    assert compared > 10_000


@pytest.mark.parametrize(
    "text",
    [
        "(.|.)*!",
        "(a+)+$",
        "(?:(?:x?){30}){30}",
        "(.*)*(.*)*(.*)*Z",
        r"(\w|\d|_)*$x",
        "(a|a)" * 60 + "b",
        ".*" * 200 + "!",
    ],
)
def test_no_pattern_takes_long(text: str) -> None:
    name = "model.layers.10.self_attn.q_proj" + "a" * 60
    began = time.process_time()
    assert not Expression(text).matches(name)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "text", ["(", "[", r"(a)\1", "(?=a)b", "(?<!a)b", "a{1,65535}{1,65535}", "x" * 5000, "(?x) a", "(?i)a", "*"]
)
def test_what_is_not_matched_is_said(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text)
