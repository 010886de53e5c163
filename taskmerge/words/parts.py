"""Part i of n: how several processes share the files of one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from taskmerge.errors import UsageError, clipped
from taskmerge.words.numerals import is_whole

MOST_PARTS = 100_000
Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """One of `of` equal shares; number: from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return items number, number + of, … (the first is number 1)."""
        return list(items[self.number - 1 :: self.of])


def parse_part(text: str) -> Part:
    """Return the part that `--part 2/8` means. Raises UsageError for an invalid one."""
    number, _, of = text.strip().partition("/")
    if not (is_whole(number) and is_whole(of) and 1 <= int(number) <= int(of) <= MOST_PARTS):
        raise UsageError(
            f"{clipped(repr(text), 100)} is not a valid part: the first of eight is 1/8, the last 8/8",
            next_move="write --part 1/8, counting from 1; add 1 to a Slurm or Kubernetes index that counts from 0",
        )
    return Part(int(number), int(of))
