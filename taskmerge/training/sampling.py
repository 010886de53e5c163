"""Batches that balance the sets: one set per batch, drawn by temperature and share, the same for any process count."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler

from taskmerge.errors import UsageError

_LOOKED_BACK = 16
"""Rows put aside that are tried again for a batch, over the size of the batch."""


def draw_probabilities(sizes: Sequence[int], balance: float, shares: Sequence[float]) -> torch.Tensor:
    """Compute p ~ share * size ** (1 / balance), float64: 1 follows size, large is uniform (arXiv 1907.05019, 3.2)."""
    weights = torch.tensor(shares, dtype=torch.float64) * torch.tensor(sizes, dtype=torch.float64) ** (1.0 / balance)
    return weights / weights.sum()


def passes(size: int, count: int, seed: Sequence[int], texts: np.ndarray | None = None) -> Iterator[list[int]]:
    """Yield batches of `count` rows out of `size` without end: all rows in random order, then again in another.

    Rows that do not fill a last batch are left out of a pass.  texts: (rows, columns) ids; no id twice in a batch,
    as a text would be its own negative. A row that does not fit waits for the next batch.
    """
    turn = 0
    while True:
        order = np.random.default_rng((*seed, turn)).permutation(size)
        turn += 1
        whole = (order[start : start + count].tolist() for start in range(0, size - count + 1, count))
        empty = True
        for batch in whole if texts is None else _without_doubles(order, count, texts):
            empty = False
            yield batch
        if empty:
            raise UsageError(f"a batch of {count} different texts cannot be formed", next_move="reduce batch_size")


def _without_doubles(order: np.ndarray, count: int, texts: np.ndarray) -> Iterator[list[int]]:
    fresh, waiting = iter(order.tolist()), deque[int]()
    while True:
        batch: list[int] = []
        seen: set[int] = set()
        again: list[int] = []

        def take(row: int, into: list[int], seen: set[int] = seen, batch: list[int] = batch) -> None:
            own = set(texts[row].tolist())
            if seen.isdisjoint(own):
                seen |= own
                batch.append(row)
            else:
                into.append(row)

        for row in list(islice(waiting, _LOOKED_BACK * count)):
            waiting.popleft()
            if len(batch) < count:
                take(row, again)
            else:
                again.append(row)
        while len(batch) < count and (row := next(fresh, -1)) >= 0:
            take(row, again)
        waiting.extend(again)
        if len(batch) < count:
            return
        yield batch


class BalancedSampler(MultiDatasetDefaultBatchSampler):
    """A sampler that draws a set, then a batch of it for all processes, `draws` times; processes get slices.

    accelerate deals batches to the processes in turn: what is learnt in a step does not depend on how many there are.
    sentence-transformers' own samplers stop at the smallest set or follow size.
    """

    probabilities: torch.Tensor
    texts: Sequence[np.ndarray | None] = ()
    draws: int = 0
    size: int = 0
    processes: int = 1
    follows: Callable[[int], Sequence[float]] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        seed = (self.seed or 0) + self.epoch
        generator = torch.Generator().manual_seed(seed)
        parts: list[Any] = list(self.dataset.datasets)
        sizes = [len(part) for part in parts]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        count = self.size * self.processes
        streams = [
            passes(size, count, (seed, number), self.texts[number] if self.texts else None)
            for number, size in enumerate(sizes)
        ]
        for draw in range(self.draws):
            chosen = int(torch.multinomial(self._at(draw), 1, generator=generator))
            rows = [int(starts[chosen]) + row for row in next(streams[chosen])]
            for first in range(0, count, self.size):
                yield rows[first : first + self.size]

    def __len__(self) -> int:
        return self.draws * self.processes

    def _at(self, draw: int) -> torch.Tensor:
        """The probabilities of the sets when a batch is drawn."""
        if self.follows is None:
            return self.probabilities
        followed = self.probabilities * torch.tensor(self.follows(draw), dtype=torch.float64)
        return followed / followed.sum()


def balanced_sampler(
    probabilities: torch.Tensor,
    texts: Sequence[np.ndarray | None],
    draws: int,
    size: int,
    processes: int,
    follows: Callable[[int], Sequence[float]] | None = None,
) -> type[BalancedSampler]:
    """Return a sampler class with these settings, as the trainer's arguments take it.

    probabilities: of the sets.  texts: for each set what `passes` takes.  draws: of a set and a batch of it.  size: of
    the batch of one process.  follows: number of a draw, from 0 -> what the probabilities are multiplied by then.
    """
    settings: dict[str, Any] = {
        "probabilities": probabilities, "texts": texts, "draws": draws, "size": size, "processes": processes
    }  # fmt: skip
    if follows is not None:
        settings["follows"] = staticmethod(follows)
    return type("BalancedSampler", (BalancedSampler,), settings)
