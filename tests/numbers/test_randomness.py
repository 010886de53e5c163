"""The counter-based generator: the same bits however they are asked for, and good enough to trust."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from taskmerge.numbers.randomness import keep_limit, stream_key, uniform_bits, uniform_bits_torch

KEYS = [stream_key(seed, specialist, "layer.weight") for seed in (0, 1) for specialist in ("audio", "image")]


def split_mix(key: int, index: int) -> int:
    """SplitMix64 in Python integers, from the paper."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def bits_of(key: int, element: int) -> int:
    """32 bits: 16 of each of two streams, four elements to an output."""
    upper, lower = (split_mix(each, element // 4) >> (16 * (element % 4)) & 0xFFFF for each in (key, key ^ (2**64 - 1)))
    return upper << 16 | lower


@settings(deadline=None)
@given(key=some.integers(0, 2**64 - 1), start=some.integers(0, 2**63 - 40), count=some.integers(0, 20))
def test_numpy_torch_and_integers_agree(key: int, start: int, count: int) -> None:
    expected = [bits_of(key, start + i) for i in range(count)]
    assert uniform_bits(key, start, count).tolist() == expected
    assert uniform_bits_torch(key, start, count).tolist() == expected


def test_keys_differ_by_every_part_and_do_not_run_together() -> None:
    keys = {stream_key(*parts) for parts in [(0, "a", "b"), (1, "a", "b"), (0, "ab", ""), (0, "", "ab"), (0, "a", "c")]}
    assert len(keys) == 5


@pytest.mark.parametrize("key", [0, *KEYS])
def test_bits_are_uniform_and_uncorrelated(key: int) -> None:
    bits = uniform_bits(key, 0, 1 << 20)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits >> shift) & 0xFF, minlength=256)
        chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert 150 < chi_square < 380  # 255 degrees of freedom: 5.6 sigma either way at the top
    centred = bits / 2.0**32 - 0.5
    for lag in (1, 2, 7, 64, 896, 4096):
        correlation = 12 * np.mean(centred[:-lag] * centred[lag:])
        assert abs(correlation) < 5 / np.sqrt(centred.size - lag)


def test_streams_are_independent() -> None:
    draws = [uniform_bits(key, 0, 1 << 19) / 2.0**32 - 0.5 for key in [*KEYS, 0, 1, 2]]
    for i, first in enumerate(draws):
        for second in draws[i + 1 :]:
            assert abs(12 * np.mean(first * second)) < 5 / np.sqrt(first.size)


def test_density_limits() -> None:
    assert keep_limit(1.0) == 2**32 and keep_limit(0.0) == 0 and keep_limit(0.5) == 2**31
    assert keep_limit(1.5) == 2**32 and keep_limit(-0.1) == 0
    kept = np.mean(uniform_bits(KEYS[0], 0, 1 << 20) < keep_limit(0.3))
    assert abs(kept - 0.3) < 5 * np.sqrt(0.21 / 2**20)
