"""Batches that balance the modalities: one data set per batch, drawn by temperature and share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        parts: list[Any] = list(self.dataset.datasets)
        sizes = [len(part) for part in parts]
        offsets = [sum(sizes[:index]) for index in range(len(sizes))]
        probabilities = draw_probabilities(sizes, self.balance, self.shares)
        iterators = [iter(sampler) for sampler in self.batch_samplers]
        rounds = [0] * len(sizes)
        for number in range(len(self)):
            if number % self.processes == 0:
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


def balanced_sampler(balance: float, shares: Sequence[float], steps: int, processes: int) -> type[BalancedSampler]:
    """A sampler class with these settings, as the trainer's arguments take it. shares: one per data set."""
    settings = {"balance": balance, "shares": tuple(shares), "steps": steps, "processes": processes}
    return type("BalancedSampler", (BalancedSampler,), settings)
