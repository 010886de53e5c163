"""Two models on the same probes: one pass, from the projector's output to the ranking of the texts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from taskmerge.embedders.anatomy import Anatomy, components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import UsageError
from taskmerge.measuring.drift.capture import Captured, capture
from taskmerge.measuring.drift.statistics import (
    PairMoments,
    RowSums,
    frechet_distance,
    gallery_statistics,
    neighbour_overlap,
)
from taskmerge.metrics.retrieval import normalized, score_queries
from taskmerge.metrics.rotation import orthogonal_procrustes
from taskmerge.words.modalities import tower_of

MOMENTS_MEMORY = 2 << 30
"""Bytes that the moments behind the layers' CKA may take; with more layers than fit, evenly spaced ones are measured.
"""
TOWARD_IDENTITY = 1e-3
TABLE_ROWS = 20_000


@dataclass(frozen=True)
class Embedded:
    """One model's final embeddings. probes: (n, d); texts: (m, d), the distinct texts; both float32."""

    probes: np.ndarray
    texts: np.ndarray


@dataclass(frozen=True)
class DepthChange:
    """The projected tokens' states at one depth, the other model against the reference.

    depth 0 is what enters the first layer, depth l what layer l puts out. debiased_cka is None where it was not
    measured.
    """

    depth: int
    cosine: float
    relative_norm: float
    relative_change: float
    debiased_cka: float | None


@dataclass(frozen=True)
class ProjectorControl:
    """The projector's output under both models, which copying must leave equal to the last bit.

    outputs: vectors seen; 0 when no projector of the modality was found, or none ran.  identical: whether all are
    bit-equal; None: not checked, because nothing was seen.  tensors, changed: how many tensors the modality's encoder
    and projector have by name, and how many of them differ between the models, both rounded to the narrower format.
    rounded: whether some are stored in two formats: their outputs differ then though nothing was changed.
    relative_change: mean ‖difference‖ / mean ‖output‖.  norm_against_tokens, shift_against_tokens: for each backbone
    the mean length of the outputs over that of its token embeddings, and the Fréchet distance of the two distributions
    over the token embeddings' variance: what that backbone is being fed, against what it was made to read. None without
    a table.
    """

    outputs: int
    identical: bool | None
    relative_change: float
    norm_against_tokens: dict[str, float] | None
    shift_against_tokens: dict[str, float] | None
    tensors: int = 0
    changed: int = 0
    rounded: bool = False

    @property
    def passed(self) -> bool | None:
        """True if the projector is unchanged; None: not checked."""
        if self.changed:
            return False
        return True if self.rounded and self.outputs else self.identical


@dataclass(frozen=True)
class Comparison:
    """Everything measured of one pair of models on one set of probes."""

    right: np.ndarray
    reference: Embedded
    other: Embedded
    control: ProjectorControl
    depths: tuple[DepthChange, ...]


def compare(
    reference: Embedder,
    other: Embedder,
    pairs: Pairs,
    *,
    batch_size: int = 32,
    moments_memory: int = MOMENTS_MEMORY,
) -> Comparison:
    """Run both embedders over `pairs` once. reference: the specialist; other: the fused model.

    Hidden states are summed up and let go batch by batch; what grows with the probes is their final embeddings alone.
    Raises UsageError when the two backbones differ in depth.
    """
    anatomies = (reference.anatomy(), other.anatomy())
    if len(anatomies[0].layers) != len(anatomies[1].layers):
        depths = " and ".join(str(len(anatomy.layers)) for anatomy in anatomies)
        raise UsageError(
            f"the two backbones have {depths} layers: drift can only be measured between models of one architecture",
            next_move="give models of the same architecture",
        )
    texts, right = pairs.distinct()
    layers = _LayerSums(len(anatomies[0].layers) + 1, moments_memory)
    projector = _ProjectorSums()
    probes: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for items, _ in pairs.batches(batch_size):
        first = capture(reference, items, anatomies[0], pairs.modality)
        second = capture(other, items, anatomies[1], pairs.modality)
        layers.update(first.hidden, second.hidden)
        projector.update(first, second)
        probes[0].append(first.embeddings)
        probes[1].append(second.embeddings)
    embedded = [
        Embedded(np.concatenate(rows), side.encode(texts, "text", "document", batch_size=batch_size))
        for side, rows in zip((reference, other), probes, strict=True)
    ]
    tensors = tower_tensors(reference, other, tower_of(pairs.modality))
    control = replace(projector.control(anatomies), tensors=tensors[0], changed=tensors[1], rounded=tensors[2])
    return Comparison(right, embedded[0], embedded[1], control, layers.changes())


def tower_tensors(reference: Embedder, other: Embedder, tower: str) -> tuple[int, int, bool]:
    """Compare the tensors of an encoder and its projector that both models have.

    Returns their number, the number that differ once both are rounded to the narrower format, and whether any had to
    be.
    """
    import torch

    own, theirs = reference.state_dict, other.state_dict
    parts = components_of(own, reference.components)
    wanted = {f"{tower}_encoder", f"{tower}_projector"}
    shared = [name for name in own.values if parts.home(name) in wanted and name in theirs.values]
    changed, rounded = 0, False
    for name in shared:
        one, two = own.values[name].cpu(), theirs.values[name].cpu()
        if one.dtype != two.dtype:
            narrower = min(one.dtype, two.dtype, key=lambda dtype: dtype.itemsize)
            one, two, rounded = one.to(narrower), two.to(narrower), True
        changed += not torch.equal(one, two)
    return len(shared), changed, rounded


def embed_pairs(embedder: Embedder, pairs: Pairs, batch_size: int = 32) -> Embedded:
    """Final embeddings alone, for the null band: items as queries, texts as documents."""
    batches = (items for items, _ in pairs.batches(batch_size))
    rows = [embedder.encode(items, pairs.modality, "query", batch_size=batch_size) for items in batches]
    texts = pairs.distinct()[0]
    return Embedded(np.concatenate(rows), embedder.encode(texts, "text", "document", batch_size=batch_size))


def probe_changes(reference: Embedded, other: Embedded, right: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the change of every probe, (n,) each; each model embeds its own gallery.

    neighbour_overlap: share of its nearest texts that stayed.  cosine: of its two embeddings.  rotated_cosine: the same
    after the rotation fitted on the texts alone (text moved too: a joint rotation is harmless).  margin_loss,
    {recall_at_1, recall_at_10, mrr, ndcg_at_5, ndcg_at_10}_loss: reference minus other.
    """
    before, after = (gallery_statistics(side.probes, side.texts, right) for side in (reference, other))
    turn = orthogonal_procrustes(reference.texts.astype(np.float64).T @ other.texts, toward_identity=TOWARD_IDENTITY)
    unit_before, unit_after = normalized(reference.probes), normalized(other.probes)
    relevant = [[row] for row in right]
    scores = [score_queries(side.probes, side.texts, relevant) for side in (reference, other)]
    return {
        "neighbour_overlap": neighbour_overlap(before.neighbours, after.neighbours),
        "rotated_cosine": ((unit_before @ turn) * unit_after).sum(axis=1),
        "cosine": (unit_before * unit_after).sum(axis=1),
        "margin_loss": before.margins - after.margins,
        **{
            f"{metric}_loss": scores[0][metric] - scores[1][metric]
            for metric in ("recall_at_1", "recall_at_10", "mrr", "ndcg_at_5", "ndcg_at_10")
        },
    }


class _LayerSums:
    """Statistics of every depth; those that need d² numbers only where memory allows."""

    def __init__(self, depths: int, moments_memory: int) -> None:
        self._rows = [RowSums() for _ in range(depths)]
        self._memory = moments_memory
        self._moments: dict[int, PairMoments] | None = None

    def update(self, first: list[np.ndarray], second: list[np.ndarray]) -> None:
        if self._moments is None:
            each = 3 * 8 * first[0].shape[1] ** 2
            count = min(len(self._rows), max(3, self._memory // each))
            chosen = np.unique(np.linspace(0, len(self._rows) - 1, count).round().astype(int))
            self._moments = {int(depth): PairMoments() for depth in chosen}
        for depth, (x, y) in enumerate(zip(first, second, strict=True)):
            self._rows[depth].update(x, y)
            if depth in self._moments:
                self._moments[depth].update(x, y)

    def changes(self) -> tuple[DepthChange, ...]:
        moments = self._moments or {}
        return tuple(
            DepthChange(
                depth,
                rows.cosine(),
                rows.relative_norm(),
                rows.relative_change(),
                moments[depth].debiased_cka() if depth in moments else None,
            )
            for depth, rows in enumerate(self._rows)
        )


class _ProjectorSums:
    """The control: equality of every projector output, and the distribution of the last one."""

    def __init__(self) -> None:
        self._rows: list[RowSums] = []
        self._last = PairMoments()
        self._unlike = False

    def update(self, first: Captured, second: Captured) -> None:
        if first.fed is None or second.fed is None:
            return
        shapes = [[rows.shape for rows in side.projected] for side in (first, second)]
        if shapes[0] != shapes[1]:  # modules that ran in one model alone, or on other tokens
            self._unlike = True
            return
        self._rows = self._rows or [RowSums() for _ in first.projected]
        for sums, x, y in zip(self._rows, first.projected, second.projected, strict=True):
            sums.update(x, y)
        self._last.update(first.fed, second.fed)

    def control(self, anatomies: tuple[Anatomy, Anatomy]) -> ProjectorControl:
        if not self._rows:
            return ProjectorControl(0, False if self._unlike else None, 0.0, None, None)
        last = self._rows[-1]
        against = [
            _against_tokens(anatomy, *self._distribution(side)) if self._last.count > 1 else None
            for side, anatomy in enumerate(anatomies)
        ]
        names = ("specialist", "fused")
        sides = {name: pair for name, pair in zip(names, against, strict=True) if pair is not None}
        return ProjectorControl(
            self._last.count,
            not self._unlike and all(sums.identical for sums in self._rows),
            last.relative_change(),
            {name: pair[0] for name, pair in sides.items()} or None,
            {name: pair[1] for name, pair in sides.items()} or None,
        )

    def _distribution(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        return self._last.means()[side], self._last.covariances()[side]


def _against_tokens(anatomy: Anatomy, mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float] | None:
    """(root mean square length of the outputs over the token embeddings', Fréchet distance over their variance)."""
    if anatomy.token_table is None or anatomy.token_table.shape[1] != len(mean):
        return None
    step = max(1, len(anatomy.token_table) // TABLE_ROWS)
    table = anatomy.token_table.detach()[::step].double().cpu().numpy()
    own_mean, own_covariance = table.mean(axis=0), np.cov(table.T)
    variance = float(np.trace(own_covariance))
    length = np.sqrt(mean @ mean + np.trace(covariance)) / np.sqrt(own_mean @ own_mean + variance)
    return float(length), frechet_distance(mean, covariance, own_mean, own_covariance) / variance
