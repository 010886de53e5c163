"""Range of a statistic without drift: the same model in another precision, or trained from another seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from taskmerge.declarations import shown
from taskmerge.embedders.interface import Embedder
from taskmerge.errors import UsageError
from taskmerge.words.statistics import statistic


@dataclass(frozen=True)
class Band:
    """The null band of one statistic.

    limit: its 95th percentile on the harmful side.  sources: the pairs of equal models it was measured on.
    samples: values behind the percentile.
    """

    statistic: str
    limit: float
    sources: tuple[str, ...]
    samples: int

    def outside(self, value: float) -> bool:
        """Return whether `value` is worse than the band."""
        return statistic(self.statistic).outside(value, self.limit)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def null_bands(
    changes: Mapping[str, Mapping[str, np.ndarray]], *, halves: int = 200, percentile: float = 95, seed: int = 0
) -> dict[str, Band]:
    """Return one band per statistic, from `probe_changes` of pairs of models without drift.

    changes: what the pair is ("bfloat16", "seed 2") -> statistic -> (n,) values. Every pair is measured on `halves`
    random halves of the probes, so that the band holds the scatter of the probes as well as that of the models.
    """
    rng = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {}
    for values_of in changes.values():
        count = len(next(iter(values_of.values())))
        size = max(1, count // 2)
        for _ in range(halves):
            half = rng.permutation(count)[:size]
            for key, values in values_of.items():
                samples.setdefault(key, []).append(float(values[half].mean()))
    sources = tuple(changes)
    return {
        key: Band(
            key,
            float(np.percentile(values, statistic(key).percentile(percentile))),
            sources,
            len(values),
        )
        for key, values in samples.items()
    }


def precision_twin(embedder: Embedder) -> tuple[str, Embedder]:
    """Return the same model in another precision: (its name, a copy). float32 becomes bfloat16; half precisions become
    float32.
    """
    import torch

    own = {parameter.dtype for parameter in embedder.module.parameters() if parameter.is_floating_point()}
    other = torch.bfloat16 if torch.float32 in own else torch.float32
    return str(other).removeprefix("torch."), embedder.copied().to(dtype=other)


def between_halves(embeddings: np.ndarray, *, seed: int = 0) -> float:
    """Fréchet distance between the embeddings (n, d) of two random halves of the probes under one model."""
    from taskmerge.measuring.drift.statistics import PairMoments

    order = np.random.default_rng(seed).permutation(len(embeddings))
    size = len(order) // 2
    moments = PairMoments()
    moments.update(embeddings[order[:size]], embeddings[order[size : 2 * size]])
    return moments.frechet_distance()


def named_references(models: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's undrifted references by name."""
    if isinstance(models, Mapping):
        return {str(name): model for name, model in models.items()}
    if not isinstance(models, Sequence) or isinstance(models, str):
        move = "give a list of models, or {name: models} for several specialists"
        raise UsageError(f"references must be models that did not drift, not {shown(models)}", next_move=move)
    return {f"reference {number}": model for number, model in enumerate(models, start=1)}
