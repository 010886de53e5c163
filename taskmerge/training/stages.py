"""specialize, recover, rehearse: the same training with another trainable set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.declarations import TEXTS, Instance, Named, Place, checked_arguments, optional
from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.overlap import overlap_note
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import UsageError
from taskmerge.training.publishing import Destination, publish
from taskmerge.training.room import check_room
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.splitting import split_sets
from taskmerge.training.watching import METRIC, Watch
from taskmerge.training.work import check_work, claim_work, clear_work
from taskmerge.words.modalities import tower_of
from taskmerge.words.processes import say_to_all

if TYPE_CHECKING:
    from taskmerge.embedders.takes import Model, PairSets, PairSource


_NO_TARGET = "{}: there is no specialist to compare with: its share depends on the distance of its MRR from 1"
CHECKPOINTS = ".checkpoints"
"""Behind the name of the output folder: where training leaves its checkpoints until it is done."""


@dataclass(frozen=True)
class StageReport:
    """The result of a stage.

    before, after: scores on the held-out pairs ({} without any).  curves: the same at every evaluation.
    trained, frozen: numbers of tensors; the frozen ones are hashed before and after and were bit-identical.
    moved: number of trained tensors that training changed at all.
    losses: [step, mean loss since the previous step in the list], at most 200 of them.
    kept: False if no checkpoint was better than the initial model, or if nothing moved; the initial model was then
    saved. barred: modalities that were below their initial scores at every evaluation that was better in the mean, if
    there
        are
    floors: because of them the initial model was kept.  below: modalities that end below their initial scores, which
    `may_fall`.
    targets: modality -> the mean reciprocal rank of its specialist, if specialists were given.
    notes: about the data: pairs that are not used, texts that are on both sides.
    """

    stage: str
    steps: int
    seconds: float
    trained: int
    frozen: int
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    kept: bool = True
    moved: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    barred: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    targets: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def verdict(self) -> list[str]:
        """Return sentences on the decisions by floors; none if every modality ends at its initial score or above."""
        said = []
        if self.barred:
            said.append(
                f"left unchanged: every measurement with a better mean had {', '.join(self.barred)} below "
                "its initial score; `may_fall` allows this for a modality, `shares` or adaptive balance "
                "train it more often"
            )
        if self.below:
            said.append(f"{', '.join(self.below)} ends below its initial score, which may_fall allows")
        return said


SETTINGS = optional(Instance(TrainingSettings))


@checked_arguments(train=optional(TEXTS), settings=SETTINGS, work=optional(Place()))
def specialize(
    model: Model,
    data: PairSets,
    train: Sequence[str] | None = None,
    settings: TrainingSettings | None = None,
    *,
    held_out: PairSets | None = None,
    out: str | Path | Destination | None = None,
    work: str | Path | None = None,
) -> StageReport:
    """Train a specialist for a modality from the base: InfoNCE in both directions, with in-batch negatives.

    Args:
        model: a model that `open_embedder` takes; a loaded model is trained in place.
        data: pairs that `read_pairs` takes, or {set name: pairs} for joint training.
        train: components or globs of tensors to train; default: the backbone and the encoders of the data's modalities.
        settings: steps, learning rates and all other settings, see `TrainingSettings`.
        held_out: pairs to score during training, {set name: pairs} for several sets; default: none.
        out: folder for the trained model; default: nothing is saved.
        work: folder for checkpoints; default: next to `out` during training, else temporary. Checkpoints are removed
            when the stage is complete, unless `settings.keep_checkpoints` is set.

    Returns:
        Scores before and after, learning curves, losses and notes.

    Raises:
        UsageError: about data, components and settings, before training starts.
    """
    sets = named_sets(data)
    settings = settings or TrainingSettings()
    place = _place(out, model, work)
    embedder = open_embedder(model, device=settings.device)
    train = list(train) if train is not None else ["backbone", *_tower_globs(embedder, sets)]
    return _run("specialize", model, embedder, sets, train, settings, held_out, place, work)


@checked_arguments(train=TEXTS, settings=SETTINGS, work=optional(Place()))
def recover(
    model: Model,
    data: PairSets,
    train: Sequence[str] = ("*_projector",),
    settings: TrainingSettings | None = None,
    *,
    held_out: PairSets | None = None,
    out: str | Path | Destination | None = None,
    work: str | Path | None = None,
) -> StageReport:
    """Train projectors with all their parameters; everything else is frozen and is checked to be bit-identical.

    Texts are embedded once, and all of them serve as negatives; items pass through their frozen encoder once. The stage
    stops early by `settings.patience`. It keeps the best checkpoint, or the initial model if no checkpoint is better.

    Args:
        model, data, settings, out, work: as for `specialize`.
        train: projectors to train, as components or globs.
        held_out: pairs to score; default: a tenth of the texts, or a fifth of the texts in a fifth of the groups if the
            pairs have a `group`.

    Returns:
        Scores before and after, learning curves, losses and notes.

    Raises:
        UsageError: about data, components and settings, before training starts.

    Source:
        Projector Recovery of Conan-embedding-v3 (arXiv 2606.09331).
    """
    settings = settings or TrainingSettings(steps=300, learning_rate=1e-3, evaluate_every=25, patience=4)
    sets, held, notes = to_train_and_judge(data, held_out, settings.seed)
    place = _place(out, model, work)
    embedder = open_embedder(model, device=settings.device)
    return _run("recover", model, embedder, sets, list(train), settings, held, place, work, notes=notes)


@checked_arguments(
    data=Named("sets of pairs"), train=TEXTS, settings=SETTINGS, may_fall=TEXTS,
    specialists=optional(Named("models")), work=optional(Place()),
)  # fmt: skip
def rehearse(
    model: Model,
    data: Mapping[str, PairSource],
    train: Sequence[str] = ("backbone", "vision_encoder"),
    settings: TrainingSettings | None = None,
    *,
    held_out: PairSets | None = None,
    may_fall: Sequence[str] = (),
    specialists: Mapping[str, Model] | None = None,
    out: str | Path | Destination | None = None,
    work: str | Path | None = None,
) -> StageReport:
    """Train on all modalities in balance: one modality per batch, drawn by `settings.balance`.

    No modality ends below its initial score on its held-out pairs: a checkpoint is not kept if the 95 % bootstrap
    interval of the change of a modality is below zero. If only such checkpoints are better, the initial model is kept.

    Args:
        model, settings, out, work: as for `specialize`.
        data: {modality: pairs}.
        train: components or globs of tensors to train.
        held_out: {modality: pairs} to score; default: a part of `data`, see `recover`.
        may_fall: modalities that may end below their initial score.
        specialists: modality -> a model that `open_embedder` takes; their scores on the held-out pairs are the targets
            for `settings.adaptive`.

    Returns:
        Scores before and after, learning curves of every held-out modality, losses and notes.

    Raises:
        UsageError: about data, components and settings, before training starts.
    """
    settings = settings or TrainingSettings(steps=2000, learning_rate=1e-5)
    sets, held, notes = to_train_and_judge(data, held_out, settings.seed)
    for name in [*may_fall, *(specialists or {})]:
        if name not in held:
            raise UsageError(f"{name!r} has no held-out pairs", next_move=f"there are: {', '.join(held)}")
    place = _place(out, model, work)
    targets = {
        name: _score(own, {name: held[name]}, sets, settings)[f"{name}_{METRIC}"]
        for name, own in (specialists or {}).items()
    }
    if settings.adaptive:
        notes = [*notes, *(_NO_TARGET.format(name) for name in sets if name not in targets)]
    embedder = open_embedder(model, device=settings.device)
    watch = Watch(floors=True, may_fall=tuple(may_fall), targets=targets)
    return _run("rehearse", model, embedder, sets, list(train), settings, held, place, work, watch, notes)


def precision_notes(settings: TrainingSettings) -> list[str]:
    """Return the note about the precision of scores; none if it is the model's own."""
    if settings.looked_at_in is None:
        return []
    return [
        f"held-out pairs are scored in {settings.looked_at_in}: do not compare them with scores in another precision"
    ]


def _score(
    model: Any, held: Mapping[str, Pairs], sets: Mapping[str, Pairs], settings: TrainingSettings
) -> dict[str, float]:
    """What a model scores on held-out pairs among the texts of all sets."""
    from taskmerge.training.held_out import HeldOutRetrieval
    from taskmerge.training.items import TrainingItems

    embedder = open_embedder(model, device=settings.device).prompted(settings.prompts)
    return HeldOutRetrieval(TrainingItems(embedder, held, precision=settings.looked_at_in), sets).scores()


def to_train_and_judge(data: Any, held_out: Any, seed: int) -> tuple[dict[str, Pairs], dict[str, Pairs], list[str]]:
    """Return sets to train on, held-out sets, and notes; see `splitting.split_sets`."""
    sets = named_sets(data)
    if held_out is None:
        return split_sets(sets, seed)
    held = named_sets(held_out)
    notes = [said for name, pairs in held.items() if name in sets and (said := overlap_note(name, pairs, sets[name]))]
    return sets, held, notes


def _place(out: str | Path | Destination | None, model: Any, work: str | Path | None) -> Destination | None:
    """The destination of the model, after a check for conflicts with it and with its checkpoints."""
    if work is not None:
        check_work(Path(work))
    if out is None:
        return None
    place = Destination.of(out)
    place.check([model])
    if work is None:
        check_work(_checkpoints(place))
    return place


def _checkpoints(place: Destination) -> Path:
    return place.path.with_name(place.path.name + CHECKPOINTS)


def _run(
    stage: str,
    model: Any,
    embedder: Embedder,
    sets: dict[str, Pairs],
    train: list[str],
    settings: TrainingSettings,
    held_out: Any,
    out: Destination | None,
    work: str | Path | None,
    watch: Watch | None = None,
    notes: Sequence[str] = (),
) -> StageReport:
    from tempfile import TemporaryDirectory

    from taskmerge.training.components import select
    from taskmerge.training.session import Session

    held = named_sets(held_out) if held_out is not None else {}
    embedder = embedder.prompted(settings.prompts)
    with TemporaryDirectory() as temporary:
        beside = None if out is None else _checkpoints(out)
        folder = Path(say_to_all(str(work or beside or temporary)))  # one for all processes
        check_room(embedder, select(embedder, train), settings, folder, None if out is None else out.path)
        session = Session(embedder, sets, held, train, settings, folder, stage, watch)
        claim_work(folder)
        started = time.monotonic()
        outcome = session.run()
        report = StageReport(
            stage,
            seconds=time.monotonic() - started,
            settings=asdict(settings),
            targets=dict(watch.targets or {}) if watch is not None else {},
            notes=[*notes, *(precision_notes(settings) if held else ())],
            **outcome,
        )
        if out is not None:
            publish(embedder, out, "trained", stage, {"model": model}, session.trained, asdict(report))
        if session.is_main and not settings.keep_checkpoints:
            clear_work(folder)
    return report


def named_sets(data: Any) -> dict[str, Pairs]:
    """Return {set name: pairs}; the name of a single set is its column."""
    if isinstance(data, Mapping):
        if not data:
            raise UsageError("there is no training data", next_move="give {modality: pairs, ...}")
        return {str(name): read_pairs(source) for name, source in data.items()}
    pairs = read_pairs(data)
    return {pairs.column: pairs}


def _tower_globs(embedder: Embedder, sets: Mapping[str, Pairs]) -> list[str]:
    """The towers that the data's items pass through, as patterns over components."""
    known = set(components_of(embedder.state_dict, embedder.components).values())
    towers = {tower_of(pairs.modality) for pairs in sets.values()}
    return [f"{tower}_*" for tower in sorted(towers) if known & {f"{tower}_encoder", f"{tower}_projector"}]
