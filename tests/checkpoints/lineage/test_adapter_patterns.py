"""Which of an adapter's patterns speaks for a module: peft's own answer, and in time however many there are."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as some
from peft.utils.other import get_pattern_key

from taskmerge.checkpoints.lineage.adapter_patterns import MOST_PATTERNS, ModuleValues
from taskmerge.words.regular import RegularError

NAMES = some.text("ab.1_-", max_size=6)
PATTERNS = some.one_of(NAMES, some.sampled_from([r"a\.b", ".*b", "a+", "(a|b)", "[ab]1", r"\d", "a.*", ""]))


MODULES = some.text("ab.1_-\n", max_size=8).filter(lambda text: not text.endswith("\n"))


@given(some.lists(PATTERNS, max_size=6, unique=True), MODULES)
def test_it_is_the_one_that_peft_takes(patterns: list[str], module: str) -> None:
    matching = [pattern for pattern in patterns if get_pattern_key([pattern], module) == pattern]
    values = {pattern: float(number) for number, pattern in enumerate(patterns)}
    assert ModuleValues(values).of(module, -1.0) == (values[matching[0]] if matching else -1.0)


def test_one_pattern_a_module_takes_no_longer_than_reading_them() -> None:
    """Adapters of mixtures of experts list tens of thousands: each was read again for each module."""
    modules = [f"model.layers.{layer}.mlp.experts.{one}.{part}" for layer in range(48) for one in range(128)
               for part in ("up_proj", "down_proj")]  # fmt: skip
    began = time.process_time()
    values = ModuleValues({module: float(number) for number, module in enumerate(modules)})
    found = [values.of(f"base_model.model.{module}", -1.0) for module in modules]
    assert time.process_time() - began < 5
    assert found == [float(number) for number in range(len(modules))]


def test_more_patterns_than_can_be_tried_are_refused() -> None:
    patterns = {f"a{number}+": 1.0 for number in range(MOST_PATTERNS + 1)}
    with pytest.raises(RegularError, match="1,001 patterns are too many"):
        ModuleValues(patterns)
