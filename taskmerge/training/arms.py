"""Recovery chosen by measurement: every arm the data allows, "leave it" among them, compared on pairs that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taskmerge.declarations import TEXTS, Instance, OneOf, Place, checked_arguments, optional
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.sources import ModelSource
from taskmerge.metrics.bootstrap import Interval
from taskmerge.training.choosing import LEAVE, choose
from taskmerge.training.publishing import Destination, publish
from taskmerge.training.room import check_room
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.work import check_work

if TYPE_CHECKING:
    from taskmerge.embedders.takes import PairSets


How = Literal["auto", "gradient", "closed_form"]


@dataclass(frozen=True)
class Arm:
    """One method that was tried.

    scores: recall@1 and MRR per set, and "mrr", their mean, of pairs that it was not fitted on. gain: its gain in MRR
    over "leave it", pair by pair.
    """

    name: str
    scores: Mapping[str, float]
    seconds: float
    note: str
    gain: Interval | None = None


@dataclass(frozen=True)
class RecoveryReport:
    """All arms in the order tried, and the one that was kept. reason: why.  notes: what is to be said of the data."""

    arms: tuple[Arm, ...]
    kept: str
    reason: str = ""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@checked_arguments(
    train=TEXTS,
    method=OneOf(("auto", "gradient", "closed_form")),
    settings=optional(Instance(TrainingSettings)),
    work=optional(Place()),
)
def recover_by_choice(
    fused: str | Path | ModelSource,
    data: PairSets,
    train: Sequence[str] = ("*_projector",),
    *,
    method: How = "auto",
    specialist: str | Path | ModelSource | None = None,
    settings: TrainingSettings | None = None,
    held_out: PairSets | None = None,
    out: str | Path | Destination,
    work: str | Path | None = None,
) -> RecoveryReport:
    """Try the methods that recover a projector, measure each on pairs that it was not fitted on, and save the best.

    Held-out pairs are ranked among all texts, including those that were fitted on. Without `held_out`, up to 512 pairs
    are used for both. They are divided into three parts; each method is fitted three times without one part, and scored
    on it. The chosen method is then fitted on all pairs. Of more pairs, a fifth of the texts is held out. No text is
    on both sides, and no group if the pairs have groups.

    Args:
        fused: path of the fused model, or a `ModelSource`.
        data: pairs, or {name: pairs}.
        train: projectors to recover, as components or globs.
        method: "gradient" and "closed_form" try only these; "auto" tries all.
        specialist: as `fused`; allows the closed form without labels.
        settings: of the training by gradient.
        held_out: pairs to score on instead.
        out: folder for the model.
        work: folder for training checkpoints.

    Returns:
        The scores of every method. The model is left unchanged ("leave it") unless a method is significantly better:
        the paired bootstrap interval of its gain excludes zero at 95 %, or at 90 % with a gain of five points.

    Raises:
        UsageError: before anything is computed.
    """
    from taskmerge.training.components import select
    from taskmerge.training.trying import trial_of

    place = Destination.of(out)
    place.check([fused, specialist])
    if work is not None:
        check_work(Path(work))
    settings = settings or TrainingSettings(steps=300, learning_rate=1e-3, evaluate_every=25, patience=4)
    trial = trial_of(fused, data, list(train), settings, specialist, held_out, Path(work) if work else None)
    model = open_embedder(fused, device=settings.device)
    folder = Path(work) if work and method != "closed_form" else None
    check_room(model, select(model, list(train)), settings, folder, place.path)
    del model
    report = try_all(trial, method)
    best = trial.final(report.kept)
    trained = [] if report.kept == LEAVE else select(best, list(train))
    publish(best, place, "recovered", "recover", {"model": fused, "specialist": specialist}, trained, report.as_dict())
    return report


def try_all(trial: Any, method: How = "auto", ways: Sequence[str] | None = None) -> RecoveryReport:
    """Measure every way that the method allows, or those named. trial: of `taskmerge.training.trying`."""
    from taskmerge.training.choosing import gain_of
    from taskmerge.training.stages import precision_notes

    left = trial.measured(LEAVE)
    arms = [Arm(LEAVE, left.scores, left.seconds, left.note)]
    gains = {}
    for name in trial.ways(method) if ways is None else ways:
        found = trial.measured(name)
        gains[name] = gain_of(found.ranks, left.ranks, trial.labels)
        arms.append(Arm(name, found.scores, found.seconds, found.note, gains[name].sure))
    kept, reason = choose(gains)
    return RecoveryReport(tuple(arms), kept, reason, [*trial.notes, *precision_notes(trial.source.settings)])
