"""Projector recovery without gradient descent: a few damped Gauss-Newton steps, with pairs or without labels.

Targets with pairs: the frozen embedding of each item's text. Without: the specialist's embedding of the item, carried
over by the rotation that the texts alone fit between the two models (`specialist` given).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs, spelling
from taskmerge.metrics.bootstrap import mean_interval
from taskmerge.metrics.retrieval import collapse
from taskmerge.metrics.rotation import orthogonal_procrustes
from taskmerge.training.components import assert_unchanged, frozen_hashes, passed, select
from taskmerge.training.gauss_newton import InfoNCE, Krylov, Objective, Parameters, SquaredError, moved_by, walk
from taskmerge.training.items import TrainingItems
from taskmerge.training.splitting import Split

Rows = tuple[np.ndarray, np.ndarray]
"""Rows that are fitted on, and rows that judge."""
FEWEST_ITEMS = 32
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TOWARD_IDENTITY = 1e-3
TEMPERATURE = 0.02


@dataclass(frozen=True)
class ClosedFormReport:
    """The result of closed-form recovery.

    applied: whether the projector was changed; reason: for either.  targets: "pairs" or "label-free".
    items: fitted on.  ridges: μ over the largest eigenvalue, one for every round kept, found by cross-validation.
    errors: cross-validated, before and after every round kept: with pairs the mean InfoNCE loss against all texts,
    label-free the mean ‖target - embedding‖². trained, frozen: numbers of tensors; the frozen ones were hashed before
    and after and were bit-identical.
    """

    applied: bool
    reason: str
    targets: str
    items: int
    ridges: tuple[float, ...]
    errors: tuple[float, ...]
    trained: int
    frozen: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def recover_closed_form(
    model: Any,
    data: Any,
    train: Sequence[str] = ("*_projector",),
    *,
    specialist: Any = None,
    texts: Sequence[str] | None = None,
    rounds: int = 2,
    iterations: int = 8,
    folds: int = 2,
    ridges: Sequence[float] = RIDGES,
    batch_size: int = 32,
    max_items: int = 512,
    seed: int = 0,
) -> ClosedFormReport:
    """Recover the projector of the fused `model`, in place, or leave it exactly as it was.

    model, specialist: what `open_embedder` takes.  data: what `read_pairs` takes.  train:
    components or globs, the projector's.  When a specialist is given, no labels are used: targets come from it (see the
    module), and `texts`, default the data's own, fit the rotation.  rounds: Gauss-Newton steps at most.  iterations:
    Krylov dimension, i.e. passes over the data a step.  folds: of the cross-validation.  max_items: a random subset of
    this size is enough for a projector.

    Every round is fitted on all items, and once for each fold without it: the ridge, whether the round is kept, and in
    the end whether anything is changed at all are decided by every item's error while its text was held out. The
    whole is kept when a bootstrap interval of that error's fall excludes zero. With fewer than 32 items nothing is
    done. Raises UsageError for broken data and for components that do not exist, before anything is computed.
    """
    pairs = read_pairs(data)
    model = open_embedder(model)
    specialist = None if specialist is None else open_embedder(specialist)
    names = passed(select(model, train), components_of(model.state_dict, model.components), [pairs.modality])
    frozen = frozen_hashes(model, names)
    kind = "pairs" if specialist is None else "label-free"
    if len(pairs) < FEWEST_ITEMS:
        reason = f"{len(pairs)} items are too few: with fewer than {FEWEST_ITEMS} a fit makes the model worse"
        return ClosedFormReport(False, reason, kind, len(pairs), (), (), len(names), len(frozen))
    pairs = _subset(pairs, max_items, seed)
    targets = _targets(model, pairs, specialist, texts, batch_size)
    problem = _Problem(model, pairs, names, targets, batch_size, labelled=specialist is None)
    fit = _fitted(problem, _folds(pairs.texts, folds, seed), rounds, iterations, ridges)
    fall = mean_interval(fit.before - fit.errors, groups=[pairs.texts[row] for row in fit.held])
    applied = bool(fall.low > 0)
    if applied:
        problem.write(fit.parameters)
    assert_unchanged(frozen, frozen_hashes(model, names))
    reason = f"the cross-validated error falls by {fall}" if applied else f"no clear gain on held-out items: {fall}"
    steps = (tuple(fit.ridges), tuple(fit.history))
    return ClosedFormReport(applied, reason, kind, len(pairs), *steps, len(names), len(frozen))


@dataclass(frozen=True)
class CrossFit:
    """The closed form fitted on all items and, for each split, on what it fits on.

    parameters: projector tensors by name.  without: the same for each split, in their order.  The ridges, which are the
    same for all, were chosen by the items that judge.
    """

    parameters: Parameters
    without: tuple[Parameters, ...]
    ridges: tuple[float, ...]
    reason: str


def cross_fit(
    model: Embedder,
    pairs: Pairs,
    names: Sequence[str],
    splits: Sequence[Split],
    *,
    specialist: Embedder | None = None,
    rounds: int = 2,
    iterations: int = 4,
    ridges: Sequence[float] = RIDGES,
    batch_size: int = 32,
) -> CrossFit:
    """Fit the projector's tensors `names` in closed form, once for each split and once on all; nothing is changed.

    Arguments as for `recover_closed_form`.
    """
    targets = _targets(model, pairs, specialist, None, batch_size)
    problem = _Problem(model, pairs, names, targets, batch_size, labelled=specialist is None)
    parts = [(np.asarray(split.fitted), np.asarray(split.held)) for split in splits]
    fit = _fitted(problem, parts, rounds, iterations, ridges)
    said = f"{len(fit.ridges)} rounds, error on held-out items {fit.history[0]:.3f} -> {fit.history[-1]:.3f}"
    return CrossFit(fit.parameters, tuple(fit.without), tuple(fit.ridges), said)


def _fitted(
    problem: _Problem,
    folds: Sequence[Rows],
    rounds: int,
    iterations: int,
    ridges: Sequence[float],
) -> _Fit:
    with _without_gradients(problem.model.module):
        fit = _Fit(problem, folds, iterations)
        while len(fit.ridges) < rounds and fit.another(ridges):
            pass
    return fit


@contextmanager
def _without_gradients(model: Any) -> Iterator[None]:
    """Evaluation mode, and no parameter with gradients during the Jacobian products: they would be slower."""
    was_training = model.training
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])


class _Problem:
    """The model as a function of the projector's parameters, and the items with their targets."""

    def __init__(
        self, model: Embedder, pairs: Pairs, names: Sequence[str], targets: Tensor, batch_size: int, labelled: bool
    ) -> None:
        self.model = model
        distinct, right = pairs.distinct()
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
        own = model.state_dict.values
        self.stored = {name: own[name].dtype for name in names}
        # in half precision the steps would be rounded away: they are summed in float32, and rounded where they run
        self.start: dict[str, Tensor] = {name: own[name].detach().clone().to(targets.dtype) for name in names}

    def embed(self, parameters: dict[str, Tensor], features: dict[str, Any]) -> Tensor:
        held = {name: value.to(self.stored[name]) for name, value in parameters.items()}
        return torch.nn.functional.normalize(self.model.embed_with(held, features).to(self.targets.dtype), dim=-1)

    def batches(self, rows: np.ndarray) -> list[tuple[dict[str, Any], Objective]]:
        """Features of these items, and what they should become."""
        parts = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return [(self._features(part), self._objective(torch.as_tensor(part))) for part in parts]

    def _objective(self, part: Tensor) -> Objective:
        if self.bank is None:
            return SquaredError(self.targets[part])
        return InfoNCE(self.bank, self.labels[part], TEMPERATURE)

    def _features(self, rows: np.ndarray) -> dict[str, Any]:
        return self.model.placed(self.items.batch(rows.tolist()))

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
        own = self.model.state_dict.values
        for name, value in parameters.items():
            own[name].copy_(value)


class _Fit:
    """Rounds of Gauss-Newton on all rows, and the same rounds without each fold, which validate them.

    parameters: fitted on all.  held: rows that judge, fold by fold.  before, errors: the error of each at the start and
    now, by the fit that never saw its text.  history: their means.  ridges: of the rounds kept.
    """

    def __init__(self, problem: _Problem, folds: Sequence[Rows], iterations: int) -> None:
        self.problem, self.folds, self.iterations = problem, folds, iterations
        self.rows = np.arange(len(problem.labels))
        self.held = np.concatenate([held for _, held in folds])
        self.parameters: Parameters = problem.start
        self.without: Sequence[Parameters] = [problem.start for _ in folds]
        self.before = problem.errors(problem.start, self.held)
        self.errors = self.before
        self.history = [float(self.before.mean())]
        self.ridges: list[float] = []

    def another(self, ridges: Sequence[float]) -> bool:
        """One more round; False when no ridge makes the held-out errors smaller, and then nothing is changed."""
        walks = [self._walk(own, fitted) for own, (fitted, _) in zip(self.without, self.folds, strict=True)]
        whole = self._walk(self.parameters, self.rows)
        if whole is None or any(krylov is None for krylov in walks):
            return False
        tried = []
        for ridge in ridges:
            moved: list[Parameters] = [
                moved_by(own, krylov.solve(ridge)) for own, krylov in zip(self.without, walks, strict=True) if krylov
            ]
            errors = np.concatenate(
                [self.problem.errors(own, held) for own, (_, held) in zip(moved, self.folds, strict=True)]
            )
            tried.append((float(errors.mean()), ridge, moved, errors))
        mean, ridge, moved, errors = min(tried, key=lambda attempt: attempt[0])
        if not mean < self.history[-1]:
            return False
        self.parameters = moved_by(self.parameters, whole.solve(ridge))
        self.without, self.errors = moved, errors
        self.history.append(mean)
        self.ridges.append(ridge)
        return True

    def _walk(self, parameters: Parameters, rows: np.ndarray) -> Krylov | None:
        return walk(self.problem.embed, parameters, self.problem.batches(rows), self.iterations)


def _targets(
    model: Embedder, pairs: Pairs, specialist: Embedder | None, texts: Sequence[str] | None, batch_size: int
) -> Tensor:
    """(items, d) of length 1: the target of each item's embedding in the fused space."""
    distinct, right = pairs.distinct()
    role = pairs.roles[1]
    fused_items = TrainingItems(model, {})
    if specialist is None:
        return fused_items.embed_texts(distinct, role, batch_size)[torch.as_tensor(right)]
    used = list(texts) if texts is not None else distinct
    own = TrainingItems(specialist, {"items": pairs})
    fused_texts, own_texts = fused_items.embed_texts(used, role, batch_size), own.embed_texts(used, role, batch_size)
    turn = orthogonal_procrustes((own_texts.mT @ fused_texts).double().numpy(), toward_identity=TOWARD_IDENTITY)
    embedded = own.embed(list(range(len(pairs))), batch_size)
    return torch.nn.functional.normalize(embedded @ torch.from_numpy(turn).to(embedded), dim=-1)


def _subset(pairs: Pairs, count: int, seed: int) -> Pairs:
    if len(pairs) <= count:
        return pairs
    return pairs.take(sorted(np.random.default_rng(seed).permutation(len(pairs))[:count].tolist()))


def _folds(texts: Sequence[str], count: int, seed: int) -> list[Rows]:
    """(rows fitted on, rows that judge) of each fold; no text in two of them, unless there are too few texts."""
    distinct, index = collapse([spelling(text) for text in texts])
    rng = np.random.default_rng(seed)
    if len(distinct) < 10:
        held = [np.sort(part) for part in np.array_split(rng.permutation(len(texts)), count)]
    else:
        parts = np.array_split(rng.permutation(len(distinct)), count)
        held = [np.flatnonzero(np.isin(index, part)) for part in parts]
    return [(np.setdiff1d(np.arange(len(texts)), part), part) for part in held]
