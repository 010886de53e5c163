"""Exact k-th largest magnitudes without sorting.

A non-negative float32 orders like its bits. Each query holds a bracket of bit patterns; one pass over the data counts
the entries above it and makes a histogram of those inside. The bracket comes from a sample, so one pass usually ends
it; where it missed, the next pass looks on the side where the count says the answer is. Memory is bounded by the
histogram, whatever the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST_BITS = 0x7FFFFFFF
RAGGED = 1 << 40  # what an entry that is not at the start of its bin adds to the bin's count
_SIGMAS = 6.0
LEAST_BINS, BINS_OF_HALVES, MOST_BINS = 1 << 12, 1 << 14, 1 << 18


@dataclass
class Query:
    """Looks for the `rank`-th largest (from 1) of `count` magnitudes of one specialist, within [low, high] (bits).

    most_bins: of its histogram. Deltas of 16-bit numbers are on a coarse grid, so that few bins separate them; the
    many that float32 needs cost more than they save there.
    """

    specialist: int
    rank: int
    count: int
    low: int = 0
    high: int = LARGEST_BITS
    bits: int | None = None
    most_bins: int = MOST_BINS

    @property
    def shift(self) -> int:
        """The number of low bits that one histogram bin combines; it depends on the number of entries."""
        bins = min(max(self.count >> 4, LEAST_BINS), self.most_bins)
        return max(0, (self.high - self.low).bit_length() - bins.bit_length() + 1)

    @property
    def bins(self) -> int:
        """Length of the histogram."""
        return ((self.high - self.low) >> self.shift) + 1

    def bracket_from(self, ordered: np.ndarray) -> None:
        """Narrow to where a sorted sample (bits, uint32) locates the rank, six sigma around; done if it is all."""
        size = ordered.size
        if size == self.count:
            self.bits = int(ordered[size - self.rank])
            return
        share = self.rank / self.count
        margin = int(_SIGMAS * np.sqrt(max(share * (1 - share), 1 / size) * size)) + 2
        place = size - int(share * size)  # position in rising order
        lower, upper = place - margin, place + margin
        self.low = int(ordered[lower]) if lower > 0 else 0
        self.high = int(ordered[upper]) if upper < size - 1 else LARGEST_BITS
        self.low &= -1 << self.shift  # so that entries with as many trailing zeros are at the start of their bins

    def narrow(self, above: int, histogram: np.ndarray) -> None:
        """Take in one pass's counts: `bits`, or a smaller bracket."""
        counts = histogram[: self.bins] & (RAGGED - 1)
        inside = int(counts.sum())
        if self.rank <= above:
            self.low, self.high = self.high + 1, LARGEST_BITS
        elif self.rank > above + inside:
            self.low, self.high = 0, self.low - 1
        else:
            from_top = above + np.cumsum(counts[::-1])
            place = counts.size - 1 - int(np.searchsorted(from_top, self.rank))
            low = self.low + (place << self.shift)
            if not histogram[place] & -RAGGED:  # of very many ragged entries the sum is negative
                self.bits = low
            self.low, self.high = low, min(self.high, low + (1 << self.shift) - 1)


def magnitude_of(bits: int) -> float:
    """Return the float32 value with these bits."""
    return float(np.uint32(bits).view(np.float32))
