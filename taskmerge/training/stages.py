"""specialize, recover, rehearse: the same training with another trainable set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import UsageError
from taskmerge.training.publishing import Destination, publish
from taskmerge.training.room import check_room
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.work import check_work, claim_work, clear_work
from taskmerge.words.modalities import tower_of

HELD_OUT_SHARE = 0.1
CHECKPOINTS = ".checkpoints"
"""Behind the name of the output folder: where training leaves its checkpoints until it is done."""


@dataclass(frozen=True)
class StageReport:
    """What a stage did.

    before, after: scores on the held-out pairs ({} without any).  curves: the same at every look.
    trained, frozen: numbers of tensors; the frozen ones are hashed before and after and were bit-identical.
    moved: how many of the trained ones training changed at all.
    kept: False when nothing beat the model as it came, or nothing moved; that model is then what was saved.
    """

    stage: str
    steps: int
    seconds: float
    trained: int
    frozen: int
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)
    kept: bool = True
    moved: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def specialize(
    model: Any,
    data: Any,
    train: Sequence[str] | None = None,
    settings: TrainingSettings | None = None,
    *,
    held_out: Any = None,
    out: str | Path | Destination | None = None,
    work: str | Path | None = None,
) -> StageReport:
    """Train a modality specialist from the base: InfoNCE both ways with in-batch negatives.

    model: what `open_embedder` takes; a loaded model is trained in place.  data: pairs, as `read_pairs` takes them,
    or {set name: pairs} for joint training.  train: components or globs; default: the backbone and the data's towers.
    held_out: pairs to look at, {set name: pairs} for several; default: none.  out: folder for the result.
    work: folder for checkpoints; default: beside out while it trains, else temporary.
    Raises UsageError about data, components and settings before training starts.
    """
    sets = named_sets(data)
    settings = settings or TrainingSettings()
    place = _place(out, model, work)
    embedder = open_embedder(model, device=settings.device)
    train = list(train) if train is not None else ["backbone", *_tower_globs(embedder, sets)]
    return _run("specialize", model, embedder, sets, train, settings, held_out, place, work)


def recover(
    model: Any,
    data: Any,
    train: Sequence[str] = ("*_projector",),
    settings: TrainingSettings | None = None,
    *,
    held_out: Any = None,
    out: str | Path | Destination | None = None,
    work: str | Path | None = None,
) -> StageReport:
    """Projector Recovery: full-parameter training of projectors, everything else frozen and proven bit-identical.

    Texts are embedded once and all of them serve as negatives; items go through their frozen encoder once. A tenth of
    the texts is held out unless `held_out` says which pairs are. Stops early by `settings.patience`; the best
    checkpoint is kept, or the model as it came when nothing was better. Arguments as for `specialize`.
    """
    sets = named_sets(data)
    settings = settings or TrainingSettings(steps=300, learning_rate=1e-3, evaluate_every=25, patience=4)
    if held_out is None:
        sets, held_out = split_sets(sets, settings.seed)
    place = _place(out, model, work)
    embedder = open_embedder(model, device=settings.device)
    return _run("recover", model, embedder, sets, list(train), settings, held_out, place, work)


def rehearse(
    model: Any,
    data: Mapping[str, Any],
    train: Sequence[str] = ("backbone", "vision_encoder"),
    settings: TrainingSettings | None = None,
    *,
    held_out: Any = None,
    out: str | Path | Destination | None = None,
    work: str | Path | None = None,
) -> StageReport:
    """Balanced rehearsal over all modalities: one modality per batch, drawn by `settings.balance`.

    data: {modality: pairs}.  Learning curves of every held-out modality are in the report.
    Other arguments as for `specialize`.
    """
    sets = named_sets(data)
    settings = settings or TrainingSettings(steps=2000, learning_rate=1e-5)
    if held_out is None:
        sets, held_out = split_sets(sets, settings.seed)
    place = _place(out, model, work)
    embedder = open_embedder(model, device=settings.device)
    return _run("rehearse", model, embedder, sets, list(train), settings, held_out, place, work)


def _place(out: str | Path | Destination | None, model: Any, work: str | Path | None) -> Destination | None:
    """Where the model goes, once nothing stands in the way of it, nor of its checkpoints."""
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
) -> StageReport:
    from tempfile import TemporaryDirectory

    from taskmerge.training.components import select
    from taskmerge.training.session import Session

    held = named_sets(held_out) if held_out is not None else {}
    embedder = embedder.prompted(settings.prompts)
    with TemporaryDirectory() as temporary:
        beside = None if out is None else _checkpoints(out)
        folder = Path(work) if work is not None else beside or Path(temporary)
        check_room(embedder, select(embedder, train), settings, folder, None if out is None else out.path)
        session = Session(embedder, sets, held, train, settings, folder)
        claim_work(folder)
        started = time.monotonic()
        outcome = session.run()
    report = StageReport(stage, seconds=time.monotonic() - started, settings=asdict(settings), **outcome)
    if out is not None and session.is_main:
        publish(embedder, out, "trained", stage, {"model": model}, session.trained, asdict(report))
        if work is None and beside is not None:
            clear_work(beside)
    return report


def named_sets(data: Any) -> dict[str, Pairs]:
    """{set name: pairs}; a single set is named after its column."""
    if isinstance(data, Mapping):
        if not data:
            raise UsageError("no training data", next_move="{modality: pairs, ...}")
        return {str(name): read_pairs(source) for name, source in data.items()}
    pairs = read_pairs(data)
    return {pairs.column: pairs}


def _tower_globs(embedder: Embedder, sets: Mapping[str, Pairs]) -> list[str]:
    """The towers that the data's items pass through, as patterns over components."""
    known = set(components_of(embedder.state_dict, embedder.components).values())
    towers = {tower_of(pairs.modality) for pairs in sets.values()}
    return [f"{tower}_*" for tower in sorted(towers) if known & {f"{tower}_encoder", f"{tower}_projector"}]


def split_sets(sets: Mapping[str, Pairs], seed: int) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """A tenth of every set's pairs aside. Raises UsageError for a set too small to split."""
    kept: dict[str, Pairs] = {}
    held: dict[str, Pairs] = {}
    for name, pairs in sets.items():
        count = round(len(pairs) * HELD_OUT_SHARE)
        if count < 2:
            raise UsageError(
                f"{name}: {len(pairs)} pairs are too few to hold some out", next_move="give held_out pairs"
            )
        order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
        held[name], kept[name] = pairs.take(sorted(order[:count])), pairs.take(sorted(order[count:]))
    return kept, held
