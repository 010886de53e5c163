"""The ways of recovering a projector, fitted on one part of the pairs and judged by the rest."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.pairs import Pairs
from taskmerge.training.choosing import LEAVE, Ranks
from taskmerge.training.closed_form import CrossFit, cross_fit, recover_closed_form
from taskmerge.training.components import assert_unchanged, frozen_hashes, passed, select
from taskmerge.training.gauss_newton import Parameters
from taskmerge.training.held_out import HeldOutRetrieval
from taskmerge.training.items import TrainingItems
from taskmerge.training.session import Session
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.splitting import Split, recovery_splits
from taskmerge.training.stages import named_sets, recover, to_train_and_judge
from taskmerge.training.watching import METRIC

CLOSED, LABEL_FREE = "closed form, pairs", "closed form, label-free"
GRADIENT, WARM = "gradient", "gradient from the closed form"


@dataclass(frozen=True)
class Measured:
    """The scores of a method on pairs that it was not fitted on. ranks: of every such pair, by set."""

    ranks: Ranks
    scores: Mapping[str, float]
    seconds: float
    note: str


def trial_of(
    fused: Any,
    data: Any,
    train: Sequence[str],
    settings: TrainingSettings,
    specialist: Any,
    held_out: Any,
    work: Path | None,
) -> Trial:
    """Prepare a trial: decide how the pairs are used. Raises UsageError for too few of them."""
    sets = named_sets(data)
    source = _Source(fused, specialist, list(train), settings, work)
    if held_out is not None:
        return SplitTrial(source, *to_train_and_judge(sets, held_out, settings.seed))
    splits = recovery_splits(sets, settings.seed)
    notes = [_unused(name, own) for name, own in splits.items() if any(split.unused for split in own)]
    if len(next(iter(splits.values()))) > 1:
        return CrossedTrial(source, sets, splits, notes)
    fitted = {name: sets[name].take(split.fitted) for name, (split,) in splits.items()}
    held = {name: sets[name].take(split.held) for name, (split,) in splits.items()}
    return SplitTrial(source, fitted, held, notes)


def _unused(name: str, splits: Sequence[Split]) -> str:
    held, unused = sum(len(split.held) for split in splits), sum(split.unused for split in splits)
    return (
        f"{name}: {held} pairs are held out, with texts and groups that are not used for the fit; {unused} "
        f"times a pair "
        "is not used"
    )


@dataclass(frozen=True)
class _Source:
    """What every way starts from."""

    fused: Any
    specialist: Any
    train: list[str]
    settings: TrainingSettings
    work: Path | None

    def opened(self, source: Any) -> Embedder:
        return open_embedder(source, device=self.settings.device).prompted(self.settings.prompts)

    def items(self, model: Embedder, held: Mapping[str, Pairs]) -> TrainingItems:
        """Pairs that judge."""
        return TrainingItems(model, held, precision=self.settings.looked_at_in)

    def trained(self, model: Embedder, sets: Mapping[str, Pairs]) -> list[str]:
        """Names of the tensors that may be changed."""
        components = components_of(model.state_dict, model.components)
        return passed(select(model, self.train), components, [pairs.modality for pairs in sets.values()])


class Trial(ABC):
    """Ways of recovering one model. labels: the text of every pair that judges, by set.  notes: what is to be said."""

    labels: dict[str, list[int]]
    notes: list[str]

    def __init__(self, source: _Source) -> None:
        self.source = source
        self._measured: dict[str, Measured] = {}

    def ways(self, method: str) -> list[str]:
        """Return the names of the methods, without "leave it"."""
        closed = [CLOSED, *([LABEL_FREE] if self.source.specialist is not None else [])]
        found = closed if method in ("auto", "closed_form") else []
        found = found + ([GRADIENT] if method in ("auto", "gradient") else [])
        return found + ([WARM] if method == "auto" else [])

    def measured(self, name: str) -> Measured:
        """Return the scores of a method; computed once."""
        if name not in self._measured:
            began = time.monotonic()
            ranks, scores, note = self._measure(name)
            self._measured[name] = Measured(ranks, scores, time.monotonic() - began, note)
        return self._measured[name]

    @abstractmethod
    def _measure(self, name: str) -> tuple[Ranks, dict[str, float], str]: ...

    @abstractmethod
    def final(self, name: str) -> Embedder:
        """Return the model of a method that was measured, fitted on all pairs that it may use."""


class SplitTrial(Trial):
    """A trial with one split: one part is fitted on, the other is held out."""

    def __init__(
        self, source: _Source, sets: dict[str, Pairs], held: dict[str, Pairs], notes: Sequence[str] = ()
    ) -> None:
        super().__init__(source)
        self.sets, self.held, self.notes = sets, held, list(notes)
        self.labels = {name: pairs.distinct()[1].tolist() for name, pairs in held.items()}
        self._fitted: dict[str, Parameters] = {}

    def _measure(self, name: str) -> tuple[Ranks, dict[str, float], str]:
        model = self.source.opened(self.source.fused)
        ways: dict[str, Callable[[Embedder], str]] = {
            LEAVE: lambda _: "the unchanged fused model",
            CLOSED: lambda own: self._solved(own, None),
            LABEL_FREE: lambda own: self._solved(own, self.source.opened(self.source.specialist)),
            GRADIENT: lambda own: self._trained(own, self.source.work),
            WARM: self._warm,
        }
        note = ways[name](model)
        judge = HeldOutRetrieval(self.source.items(model, self.held), self.sets)
        scores = judge.scores()
        values = model.state_dict.values
        self._fitted[name] = {own: values[own].detach().cpu() for own in self.source.trained(model, self.sets)}
        return judge.latest, _shown(scores), note

    def final(self, name: str) -> Embedder:
        """Return the model with the values that were fitted by a method."""
        self.measured(name)
        model = self.source.opened(self.source.fused)
        write(model, self._fitted[name])
        return model

    def _solved(self, model: Embedder, specialist: Embedder | None) -> str:
        reports = [
            recover_closed_form(model, pairs, self.source.train, specialist=specialist, seed=self.source.settings.seed)
            for pairs in self.sets.values()
        ]
        return "; ".join(report.reason for report in reports)

    def _warm(self, model: Embedder) -> str:
        self.measured(CLOSED)
        write(model, self._fitted[CLOSED])
        return self._trained(model, None)

    def _trained(self, model: Embedder, work: Path | None) -> str:
        """Gradient descent. work: for checkpoints from which an interrupted run resumes: of one method alone."""
        source = self.source
        settings = replace(source.settings, resume=source.settings.resume and work is not None and work.is_dir())
        report = recover(model, self.sets, source.train, settings, held_out=self.held, work=work)
        return f"{report.steps} steps, {report.frozen} tensors verified as unchanged"


class CrossedTrial(Trial):
    """The pairs judge in turn. Each way is fitted once without each part, and what is kept once on all."""

    def __init__(
        self, source: _Source, sets: dict[str, Pairs], splits: dict[str, list[Split]], notes: Sequence[str]
    ) -> None:
        super().__init__(source)
        self.sets, self.splits, self.notes = sets, splits, list(notes)
        self.count = min(len(own) for own in splits.values())
        numbers = {name: pairs.distinct()[1] for name, pairs in sets.items()}
        self.labels = {name: numbers[name][self._rows(name)].tolist() for name in sets}
        self._stop: dict[str, int] = {}

    def _rows(self, name: str) -> list[int]:
        """Rows that judge, part by part."""
        return [row for split in self.splits[name] for row in split.held]

    @cached_property
    def _model(self) -> Embedder:
        return self.source.opened(self.source.fused)

    @cached_property
    def _names(self) -> list[str]:
        return self.source.trained(self._model, self.sets)

    @cached_property
    def _start(self) -> Parameters:
        values = self._model.state_dict.values
        return {name: values[name].detach().clone() for name in self._names}

    @cached_property
    def _judges(self) -> list[HeldOutRetrieval]:
        found = []
        for part in range(self.count):
            fitted, held = self._part(part)
            judge = HeldOutRetrieval(self.source.items(self._model, held), fitted)
            if not any("_encoder" in name for name in self._names):
                judge.items.encode()
            found.append(judge)
        return found

    def _part(self, part: int) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
        cuts = {name: splits[part] for name, splits in self.splits.items()}
        fitted = {name: self.sets[name].take(cut.fitted) for name, cut in cuts.items()}
        return fitted, {name: self.sets[name].take(cut.held) for name, cut in cuts.items()}

    def _measure(self, name: str) -> tuple[Ranks, dict[str, float], str]:
        if name == WARM and not self._closed(CLOSED).ridges:
            found = self.measured(GRADIENT)
            self._stop[WARM] = self._stop[GRADIENT]
            return found.ranks, dict(found.scores), "same as gradient: the closed form changes nothing"
        if name in (GRADIENT, WARM):
            return self._measure_gradient(name)
        note = "the unchanged fused model" if name == LEAVE else self._closed(name).reason
        looks = []
        for part, judge in enumerate(self._judges):
            write(self._model, self._start if name == LEAVE else self._closed(name).without[part])
            judge.scores()
            looks.append(judge.latest)
        write(self._model, self._start)
        ranks = _joined(looks)
        return ranks, _means(ranks), note

    def _closed(self, name: str) -> CrossFit:
        """What is written for a way without gradients, the closed form of all sets: each set's own projector."""
        if name not in self._fits:
            specialist = self.source.opened(self.source.specialist) if name == LABEL_FREE else None
            fits = [
                cross_fit(
                    self._model, pairs, self.source.trained(self._model, {own: pairs}), self.splits[own],
                    specialist=specialist,
                )
                for own, pairs in self.sets.items()
            ]  # fmt: skip
            self._fits[name] = _together(fits)
        return self._fits[name]

    @cached_property
    def _fits(self) -> dict[str, CrossFit]:
        return {}

    def _measure_gradient(self, name: str) -> tuple[Ranks, dict[str, float], str]:
        """Looks of all parts at the same steps: the step at which they are best together is the one to leave off at."""
        parts = []
        for part in range(self.count):
            fitted, held = self._part(part)
            write(self._model, self._closed(CLOSED).without[part] if name == WARM else self._start)
            judge = self._train(fitted, held, self.source.settings)
            assert judge is not None
            parts.append(judge)
        write(self._model, self._start)
        common = min(len(judge.looks) for judge in parts)
        joined = [_joined([judge.looks[look] for judge in parts]) for look in range(common)]
        best = max(range(common), key=lambda look: _means(joined[look])[METRIC])
        self._stop[name] = int(parts[0].history[best]["step"])
        return joined[best], _means(joined[best]), f"{self._stop[name]} steps of {self.source.settings.steps}"

    def _train(
        self, fitted: dict[str, Pairs], held: dict[str, Pairs], settings: TrainingSettings
    ) -> HeldOutRetrieval | None:
        least = min(len(pairs) for pairs in fitted.values())
        every = min(settings.evaluate_every, settings.steps)
        settings = replace(settings, resume=False, batch_size=min(settings.batch_size, least), evaluate_every=every)
        with TemporaryDirectory() as folder:
            session = Session(self._model, fitted, held, self.source.train, settings, Path(folder))
            session.run()
        return session.held_out

    def final(self, name: str) -> Embedder:
        """Return the model fitted by a method on all pairs."""
        self.measured(name)
        model, start = self._model, self._start
        write(model, start)
        proof = frozen_hashes(model, self._names)
        if name in (CLOSED, LABEL_FREE, WARM):
            write(model, self._closed(CLOSED if name == WARM else name).parameters)
        if name in (GRADIENT, WARM):
            self._train(self.sets, {}, replace(self.source.settings, stop_at=self._stop[name], patience=None))
        assert_unchanged(proof, frozen_hashes(model, self._names))
        return model


def write(model: Embedder, parameters: Parameters) -> None:
    """Put values into a model's tensors, rounded to their formats."""
    own = model.state_dict.values
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)


def _together(fits: Sequence[CrossFit]) -> CrossFit:
    """The fits of several sets as one: their projectors are different tensors, or the later ones count."""
    without = tuple({name: value for part in parts for name, value in part.items()} for parts in zip(
        *(fit.without for fit in fits), strict=True
    ))  # fmt: skip
    parameters = {name: value for fit in fits for name, value in fit.parameters.items()}
    return CrossFit(parameters, without, fits[0].ridges, "; ".join(fit.reason for fit in fits))


def _joined(parts: Sequence[Ranks]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([ranks[name] for ranks in parts]) for name in parts[0]}


def _means(ranks: Ranks) -> dict[str, float]:
    """Recall@1 is where the reciprocal rank is 1."""
    found: dict[str, float] = {}
    for name, own in ranks.items():
        found[f"{name}_recall_at_1"] = float((own == 1).mean())
        found[f"{name}_mrr"] = float(own.mean())
    found[METRIC] = sum(found[f"{name}_mrr"] for name in ranks) / len(ranks)
    return found


def _shown(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name.endswith(("_recall_at_1", METRIC))}
