"""Exact k-th largest magnitudes without sorting.

A non-negative float32 orders like its bits. Each query holds a bracket of bit patterns; one pass over the data counts
what lies above it and histograms what lies inside. The bracket comes from a sample, so one pass usually ends it; where
it missed, the next pass looks on the side where the count says the answer is. Memory is bounded by the histogram,
whatever the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_BITS = 0x7FFFFFFF
BINS = 1 << 18
_SIGMAS = 6.0


@dataclass
class Query:
    """Looks for the `rank`-th largest (from 1) magnitude of one specialist's delta within [low, high] (bits)."""

    specialist: int
    rank: int
    low: int = 0
    high: int = LARGEST_BITS
    found: int | None = None

    @property
    def shift(self) -> int:
        """How many low bits one histogram bin leaves out."""
        return max(0, (self.high - self.low).bit_length() - BINS.bit_length() + 1)

    def bracket_from(self, sample: np.ndarray, count: int) -> None:
        """Narrow to where a random sample (bits, uint32) says the rank of `count` entries lies, six sigma around."""
        size = sample.size
        share = self.rank / count
        margin = int(_SIGMAS * np.sqrt(max(share * (1 - share), 1 / size) * size)) + 2
        place = size - int(share * size)  # position in rising order
        lower, upper = max(0, place - margin), min(size - 1, place + margin)
        ordered = np.partition(sample, (lower, upper))
        self.low = 0 if lower == 0 else int(ordered[lower])
        self.high = LARGEST_BITS if upper == size - 1 else int(ordered[upper])

    def narrow(self, above: int, histogram: np.ndarray) -> None:
        """Take in one pass's counts: `found`, or a smaller bracket."""
        inside = int(histogram.sum(dtype=np.int64))
        if self.rank <= above:
            self.low, self.high = self.high + 1, LARGEST_BITS
        elif self.rank > above + inside:
            self.low, self.high = 0, self.low - 1
        else:
            from_top = above + np.cumsum(histogram[::-1], dtype=np.int64)
            bin_index = histogram.size - 1 - int(np.searchsorted(from_top, self.rank))
            shift = self.shift
            low = self.low + (bin_index << shift)
            if shift == 0:
                self.found = low
            self.low, self.high = low, min(self.high, low + (1 << shift) - 1)


Scan = Callable[[Sequence[Query]], tuple[np.ndarray, np.ndarray]]


def find_all(queries: Sequence[Query], scan: Scan) -> None:
    """Repeat passes until all is found. scan: queries -> (above int64 (queries,), histogram (queries, bins))."""
    while open_queries := [query for query in queries if query.found is None]:
        above, histogram = scan(open_queries)
        for query, count, bins in zip(open_queries, above, histogram, strict=True):
            query.narrow(int(count), bins)


def magnitude_of(bits: int) -> float:
    """The float32 value with these bits."""
    return float(np.uint32(bits).view(np.float32))
