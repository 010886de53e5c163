"""Batches that balance the modalities: one data set per batch, drawn by temperature and share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler


def draw_probabilities(sizes: Sequence[int], balance: float, shares: Sequence[float]) -> torch.Tensor:
    """p ~ share * size ** (1 / balance), float64: 1 follows size, large is uniform (arXiv 1907.05019, section 3.2)."""
    weights = torch.tensor(shares, dtype=torch.float64) * torch.tensor(sizes, dtype=torch.float64) ** (1.0 / balance)
    return weights / weights.sum()


class BalancedSampler(MultiDatasetDefaultBatchSampler):
    """Draws `steps` times one data set and a batch of it per process; sets that run out start again, reshuffled.

    accelerate deals batches to the processes in turn, so all processes work on the same modality in a step.
    sentence-transformers' own samplers stop at the smallest set or follow size.
    """

    balance: float = 1.0
    shares: Sequence[float] = ()
    steps: int = 0
    processes: int = 1
    follows: Callable[[int], Sequence[float]] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        parts: list[Any] = list(self.dataset.datasets)
        sizes = [len(part) for part in parts]
        offsets = [sum(sizes[:index]) for index in range(len(sizes))]
        iterators = [iter(sampler) for sampler in self.batch_samplers]
        rounds = [0] * len(sizes)
        for number in range(len(self)):
            if number % self.processes == 0:
                shares = self._shares(number // self.processes)
                probabilities = draw_probabilities(sizes, self.balance, shares)
                chosen = int(torch.multinomial(probabilities, 1, generator=generator))
            batch = next(iterators[chosen], None)
            if batch is None:
                rounds[chosen] += 1
                sampler = self.batch_samplers[chosen]
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(self.epoch + rounds[chosen])
                iterators[chosen] = iter(sampler)
                batch = next(iterators[chosen])
            yield [index + offsets[chosen] for index in batch]

    def __len__(self) -> int:
        return self.steps * self.processes

    def _shares(self, draw: int) -> Sequence[float]:
        if self.follows is None:
            return self.shares
        return [own * missing for own, missing in zip(self.shares, self.follows(draw), strict=True)]


def balanced_sampler(
    balance: float,
    shares: Sequence[float],
    steps: int,
    processes: int,
    follows: Callable[[int], Sequence[float]] | None = None,
) -> type[BalancedSampler]:
    """A sampler class with these settings, as the trainer's arguments take it.

    shares: one per data set.  follows: number of a draw, from 0 -> what the shares are multiplied by then.
    """
    settings: dict[str, Any] = {"balance": balance, "shares": tuple(shares), "steps": steps, "processes": processes}
    if follows is not None:
        settings["follows"] = staticmethod(follows)
    return type("BalancedSampler", (BalancedSampler,), settings)
