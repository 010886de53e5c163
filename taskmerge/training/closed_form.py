"""Projector recovery without gradient descent: a few damped Gauss-Newton steps, with pairs or without labels.

Targets with pairs: the frozen embedding of each item's text. Without: the specialist's embedding of the item, carried
over by the rotation that the texts alone fit between the two models (`specialist` given).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskmerge.metrics.bootstrap import mean_interval
from taskmerge.metrics.retrieval import collapse
from taskmerge.metrics.rotation import orthogonal_procrustes
from taskmerge.pairs import Pairs, read_pairs
from taskmerge.training.components import assert_unchanged, frozen_hashes, select
from taskmerge.training.gauss_newton import InfoNCE, Krylov, Objective, Parameters, SquaredError, moved_by, walk
from taskmerge.training.items import TrainingItems

FEWEST_ITEMS = 32
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
STEPS = (1.0, 0.5, 0.25)
HELD_OUT_SHARE = 0.2
TOWARD_IDENTITY = 1e-3
TEMPERATURE = 0.02


@dataclass(frozen=True)
class ClosedFormReport:
    """What closed-form recovery did.

    applied: whether the projector was changed at all; reason: why, or why not.  targets: "pairs" or "label-free".
    items: used for fitting; held_out: for deciding.  ridge: μ over the largest eigenvalue, found by cross-validation.
    errors: on the held-out items, before and after every round kept: with pairs the mean InfoNCE loss against all
    texts, label-free the mean ‖target - embedding‖². trained, frozen: numbers of tensors; the frozen ones were hashed
    before and after and were bit-identical.
    """

    applied: bool
    reason: str
    targets: str
    items: int
    held_out: int
    ridge: float | None
    errors: tuple[float, ...]
    trained: int
    frozen: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def recover_closed_form(
    model: Any,
    data: Any,
    train: Sequence[str] = ("*_projector",),
    *,
    specialist: Any = None,
    texts: Sequence[str] | None = None,
    rounds: int = 3,
    iterations: int = 12,
    folds: int = 2,
    ridges: Sequence[float] = RIDGES,
    batch_size: int = 32,
    max_items: int = 512,
    seed: int = 0,
) -> ClosedFormReport:
    """Recover the projector of the fused `model`, in place, or leave it exactly as it was.

    model: a grafted SentenceTransformer, or one that owns its towers.  data: what `read_pairs` takes.  train:
    components or globs, the projector's.  specialist: when given, no labels are used: targets come from it (see the
    module), and `texts`, default the data's own, fit the rotation.  rounds: Gauss-Newton steps at most.  iterations:
    Krylov dimension, i.e. passes over the data a step.  folds: of the cross-validation over `ridges`, in the first
    round.  max_items: a random subset of this size is enough for a projector.

    A step is kept when the error on a fifth of the texts, held out, falls; the whole is kept when a bootstrap interval
    of the error's fall excludes zero. With fewer than 32 items nothing is done. Raises UsageError for broken data and
    for components that do not exist, before anything is computed.
    """
    pairs = read_pairs(data)
    names = select(model[0], train)
    frozen = frozen_hashes(model[0], names)
    kind = "pairs" if specialist is None else "label-free"
    if len(pairs) < FEWEST_ITEMS:
        reason = f"{len(pairs)} items are too few: below {FEWEST_ITEMS} a fit does more harm than good"
        return ClosedFormReport(False, reason, kind, len(pairs), 0, None, (), len(names), len(frozen))
    pairs = _subset(pairs, max_items, seed)
    targets = _targets(model, pairs, specialist, texts, batch_size)
    problem = _Problem(model, pairs, names, targets, batch_size, labelled=specialist is None)
    fit, held = _split(pairs.texts, HELD_OUT_SHARE, seed)
    was_training = model.training
    model.eval()
    try:
        found, ridge, errors = _rounds(problem, fit, held, rounds, iterations, folds, ridges, seed)
        before = problem.errors(problem.start, held)
        fall = mean_interval(before - problem.errors(found, held), groups=[pairs.texts[row] for row in held])
    finally:
        model.train(was_training)
    applied = bool(fall.low > 0)
    if applied:
        problem.write(found)
    assert_unchanged(frozen, frozen_hashes(model[0], names))
    reason = f"the held-out error falls by {fall}" if applied else f"no sure gain on held-out items: {fall}"
    return ClosedFormReport(applied, reason, kind, len(fit), len(held), ridge, tuple(errors), len(names), len(frozen))


class _Problem:
    """The model as a function of the projector's parameters, and the items with their targets."""

    def __init__(
        self, model: Any, pairs: Pairs, names: Sequence[str], targets: Tensor, batch_size: int, labelled: bool
    ) -> None:
        self.model = model
        distinct, right = collapse(pairs.texts)
        self.labels = torch.as_tensor(right, device=model.device)
        self.bank: Tensor | None = None
        if labelled:
            first = torch.as_tensor([right.tolist().index(row) for row in range(len(distinct))])
            self.bank = targets[first].to(model.device)
        self.items = TrainingItems(model, {"items": pairs})
        if not any("_encoder" in name for name in names):
            self.items.encode()
        self.targets = targets.to(model.device)
        self.batch_size = batch_size
        own = dict(model[0].named_parameters())
        self.start: dict[str, Tensor] = {f"0.{name}": own[name].detach().clone() for name in names}

    def embed(self, parameters: dict[str, Tensor], features: dict[str, Any]) -> Tensor:
        output = torch.func.functional_call(self.model, parameters, (dict(features),))["sentence_embedding"]
        return torch.nn.functional.normalize(output, dim=-1)

    def batches(self, rows: np.ndarray) -> list[tuple[dict[str, Any], Objective]]:
        """Features of these items, and what they should become."""
        parts = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return [(self._features(part), self._objective(torch.as_tensor(part))) for part in parts]

    def _objective(self, part: Tensor) -> Objective:
        if self.bank is None:
            return SquaredError(self.targets[part])
        return InfoNCE(self.bank, self.labels[part], TEMPERATURE)

    def _features(self, rows: np.ndarray) -> dict[str, Any]:
        features = self.items.batch(rows.tolist())
        return {key: value.to(self.model.device) if hasattr(value, "to") else value for key, value in features.items()}

    @torch.no_grad()
    def errors(self, parameters: Parameters, rows: np.ndarray) -> np.ndarray:
        """What is fitted and decides, (rows,): with pairs the InfoNCE loss against all texts, else ‖target -
        embedding‖².

        With pairs the squared error would mislead: embeddings that shrink towards the mean text come nearer to every
        text and are harder to tell apart.
        """
        found = []
        for start in range(0, len(rows), self.batch_size):
            part = torch.as_tensor(rows[start : start + self.batch_size])
            embeddings = self.embed(dict(parameters), self._features(part.numpy()))
            if self.bank is None:
                found.append((embeddings - self.targets[part]).square().sum(dim=1))
            else:
                scores = embeddings @ self.bank.mT / TEMPERATURE
                found.append(torch.nn.functional.cross_entropy(scores, self.labels[part], reduction="none"))
        return torch.cat(found).double().cpu().numpy()

    @torch.no_grad()
    def write(self, parameters: Parameters) -> None:
        own = dict(self.model[0].named_parameters())
        for name, value in parameters.items():
            own[name.removeprefix("0.")].copy_(value)


def _rounds(
    problem: _Problem,
    fit: np.ndarray,
    held: np.ndarray,
    rounds: int,
    iterations: int,
    folds: int,
    ridges: Sequence[float],
    seed: int,
) -> tuple[Parameters, float | None, list[float]]:
    """(parameters, ridge, held-out error before and after each round that was kept)."""
    current: Parameters = problem.start
    errors = [float(problem.errors(current, held).mean())]
    ridge = _cross_validated(problem, fit, iterations, folds, ridges, seed)
    for _ in range(rounds if ridge is not None else 0):
        krylov = walk(problem.embed, current, problem.batches(fit), iterations)
        if krylov is None:
            break
        step = krylov.solve(ridge or 0.0)
        tried = [moved_by(current, length * step) for length in STEPS]
        found = [float(problem.errors(parameters, held).mean()) for parameters in tried]
        best = int(np.argmin(found))
        if not found[best] < errors[-1]:
            break
        current = tried[best]
        errors.append(found[best])
    return current, ridge, errors


def _cross_validated(
    problem: _Problem, rows: np.ndarray, iterations: int, folds: int, ridges: Sequence[float], seed: int
) -> float | None:
    """The ridge whose first step leaves the smallest error on the folds left out; None: standing still is better."""
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), folds)
    totals = np.zeros(len(ridges))
    still = 0.0
    for number, left_out in enumerate(parts):
        rest = np.concatenate([part for place, part in enumerate(parts) if place != number])
        krylov = walk(problem.embed, problem.start, problem.batches(rest), iterations)
        still += float(problem.errors(problem.start, left_out).sum())
        if krylov is None:
            return None
        totals += _errors_by_ridge(problem, krylov, left_out, ridges)
    best = int(np.argmin(totals))
    return ridges[best] if totals[best] < still else None


def _errors_by_ridge(problem: _Problem, krylov: Krylov, rows: np.ndarray, ridges: Sequence[float]) -> np.ndarray:
    return np.array([problem.errors(moved_by(problem.start, krylov.solve(ridge)), rows).sum() for ridge in ridges])


def _targets(model: Any, pairs: Pairs, specialist: Any, texts: Sequence[str] | None, batch_size: int) -> Tensor:
    """(items, d) of length 1: where each item's embedding should lie in the fused space."""
    distinct, right = collapse(pairs.texts)
    fused_items = TrainingItems(model, {})
    if specialist is None:
        return fused_items.embed_texts(distinct, batch_size)[torch.as_tensor(right)]
    used = list(texts) if texts is not None else distinct
    own = TrainingItems(specialist, {"items": pairs})
    fused_texts, own_texts = fused_items.embed_texts(used, batch_size), own.embed_texts(used, batch_size)
    turn = orthogonal_procrustes((own_texts.mT @ fused_texts).double().numpy(), toward_identity=TOWARD_IDENTITY)
    embedded = own.embed(list(range(len(pairs))), batch_size)
    return torch.nn.functional.normalize(embedded @ torch.from_numpy(turn).to(embedded), dim=-1)


def _subset(pairs: Pairs, count: int, seed: int) -> Pairs:
    if len(pairs) <= count:
        return pairs
    return pairs.take(sorted(np.random.default_rng(seed).permutation(len(pairs))[:count].tolist()))


def _split(texts: Sequence[str], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows held out; no text on both sides, unless there are too few texts for that."""
    distinct, index = collapse(texts)
    rng = np.random.default_rng(seed)
    if len(distinct) < 10:
        order = rng.permutation(len(texts))
        count = max(1, round(share * len(texts)))
        return np.sort(order[count:]), np.sort(order[:count])
    out = rng.permutation(len(distinct))[: max(1, round(share * len(distinct)))]
    held = np.isin(index, out)
    return np.flatnonzero(~held), np.flatnonzero(held)
