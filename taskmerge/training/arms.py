"""Recovery chosen by measurement: every arm the data allows, "leave it" among them, compared on held-out pairs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.pairs import Pairs
from taskmerge.embedders.sources import ModelSource
from taskmerge.errors import UsageError
from taskmerge.training.publishing import Destination, publish
from taskmerge.training.room import check_room
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.work import check_work

How = Literal["auto", "gradient", "closed_form"]
LEAVE = "leave it"


@dataclass(frozen=True)
class Arm:
    """One way tried. scores: recall@1 and MRR per held-out set, and "mrr", their mean, which decides."""

    name: str
    scores: Mapping[str, float]
    seconds: float
    note: str


@dataclass(frozen=True)
class RecoveryReport:
    """All arms in the order tried, and the one that was kept."""

    arms: tuple[Arm, ...]
    kept: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def recover_by_choice(
    fused: str | Path | ModelSource,
    data: Any,
    train: Sequence[str] = ("*_projector",),
    *,
    method: How = "auto",
    specialist: str | Path | ModelSource | None = None,
    settings: TrainingSettings | None = None,
    held_out: Any = None,
    out: str | Path | Destination,
    work: str | Path | None = None,
) -> RecoveryReport:
    """Tries the ways of recovering a projector, measures each on the same held-out pairs, saves the best to `out`.

    fused: path of the fused model, or a `ModelSource`. data: pairs, or {name: pairs}. method: "gradient" and
    "closed_form" try only those; "auto" all. specialist: as fused; allows the label-free closed form. held_out: pairs
    that decide; default: a tenth of the data, which no arm sees. work: folder for training checkpoints. "leave it" wins
    unless an arm is better than the fused model as it is. Raises UsageError before anything is computed.
    """
    from taskmerge.training.components import select
    from taskmerge.training.stages import named_sets, split_sets

    place = Destination.of(out)
    place.check([fused, specialist])
    if work is not None:
        check_work(Path(work))
    settings = settings or TrainingSettings(steps=300, learning_rate=1e-3, evaluate_every=25, patience=4)
    sets = named_sets(data)
    if held_out is None:
        sets, held = split_sets(sets, settings.seed)
    else:
        held = named_sets(held_out)
    trial = _Trial(fused, sets, held, list(train), settings, specialist, Path(work) if work else None, place.path)
    best, arms = trial.run(method)
    report = RecoveryReport(tuple(arms), max(arms, key=lambda arm: arm.scores["mrr"]).name)
    trained = [] if report.kept == LEAVE else select(best, list(train))
    publish(best, place, "recovered", "recover", {"model": fused, "specialist": specialist}, trained, report.as_dict())
    return report


@dataclass
class _Trial:
    fused: str | Path | ModelSource
    sets: dict[str, Pairs]
    held: dict[str, Pairs]
    train: list[str]
    settings: TrainingSettings
    specialist: str | Path | ModelSource | None
    work: Path | None
    out: Path

    def run(self, method: How) -> tuple[Embedder, list[Arm]]:
        """The best model and every arm; the first of equals is kept, and "leave it" is first."""
        from taskmerge.training.components import select

        ways = {LEAVE: self._leave}
        if method in ("auto", "closed_form"):
            ways["closed form, pairs"] = self._closed_form
            if self.specialist is not None:
                ways["closed form, label-free"] = self._label_free
        if method in ("auto", "gradient"):
            ways["gradient"] = self._gradient
        best, arms = None, []
        for name, way in ways.items():
            model = self._opened(self.fused)
            if best is None:
                work = self.work if "gradient" in ways else None
                check_room(model, select(model, self.train), self.settings, work, self.out)
            began = time.monotonic()
            note = way(model)
            arms.append(Arm(name, self._scores(model), time.monotonic() - began, note))
            if best is None or arms[-1].scores["mrr"] > best[1]:
                best = (model, arms[-1].scores["mrr"])
        if best is None:
            raise UsageError(f"unknown way to recover {method!r}", next_move="auto, gradient or closed_form")
        return best[0], arms

    def _opened(self, source: str | Path | ModelSource) -> Embedder:
        return open_embedder(source, device=self.settings.device).prompted(self.settings.prompts)

    def _scores(self, model: Embedder) -> dict[str, float]:
        from taskmerge.training.held_out import HeldOutRetrieval
        from taskmerge.training.items import TrainingItems

        return HeldOutRetrieval(TrainingItems(model, self.held)).scores()

    def _leave(self, model: Embedder) -> str:
        return "the fused model as it is"

    def _gradient(self, model: Embedder) -> str:
        from taskmerge.training.stages import recover

        report = recover(model, self.sets, self.train, self.settings, held_out=self.held, work=self.work)
        return f"{report.steps} steps, {report.frozen} tensors proven unchanged"

    def _closed_form(self, model: Embedder) -> str:
        return self._solved(model, None)

    def _label_free(self, model: Embedder) -> str:
        assert self.specialist is not None
        return self._solved(model, self._opened(self.specialist))

    def _solved(self, model: Embedder, specialist: Embedder | None) -> str:
        from taskmerge.training.closed_form import recover_closed_form

        notes = []
        for pairs in self.sets.values():
            report = recover_closed_form(model, pairs, self.train, specialist=specialist, seed=self.settings.seed)
            notes.append(report.reason)
        return "; ".join(notes)
