"""Check that sets of pairs can be trained on, the pairs that a run draws, and the checkpoint that it continues from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import CheckpointError, Problem, UsageError
from taskmerge.training.components import on_the_way
from taskmerge.training.settings import TrainingSettings, batch_problems
from taskmerge.training.work import OPTIMIZER_FILE, SCHEDULER_FILE, TRAINED_FILE
from taskmerge.words.progress import tell

FEWEST_DRAWN = 10_000
"""Pairs of a set that are always there to draw from."""
LOOKED_AT = 2000
"""Held-out pairs of a set that are looked at while training."""


def check_ways(sets: Mapping[str, Pairs], components: set[str]) -> None:
    """Raise UsageError for a set whose items pass through no trained component."""
    for name, pairs in sets.items():
        if not any(on_the_way(component, pairs.modality) for component in components):
            raise UsageError(
                f"{name}: no component that processes {pairs.modality} is trained",
                pairs.source,
                f"trained: {', '.join(sorted(components))}",
            )


def check_batches(sets: Mapping[str, Pairs], size: int, texts_learn: bool) -> None:
    """Raise UsageError for sets that do not fill a batch of all processes."""
    problems: list[Problem] = []
    for name, pairs in sets.items():
        problems += batch_problems(name, pairs.texts, size, texts_learn)
    if problems:
        raise UsageError(problems)


def check_rates(settings: TrainingSettings, trained: Sequence[str]) -> None:
    """Raise UsageError for a learning rate that matches no tensor."""
    for pattern in settings.learning_rates:
        if not any(pattern in name for name in trained):
            parts = sorted({name.partition(".")[0] for name in trained})
            raise UsageError(
                f"learning_rates: {pattern!r} matches no trained tensor's name",
                next_move=f"trained: {', '.join(parts)}",
            )


def drawn(sets: Mapping[str, Pairs], most: int, batch: int, seed: int) -> dict[str, Pairs]:
    """Limit every large set to the pairs that a run can draw, at random: the others would be embedded in vain.

    most: that are drawn.  batch: of all processes; what is left has as many different texts.
    """
    found: dict[str, Pairs] = {}
    most = max(most, FEWEST_DRAWN)
    for number, (name, pairs) in enumerate(sets.items()):
        found[name] = pairs
        if len(pairs) > most:
            rows = np.sort(np.random.default_rng((seed, number)).choice(len(pairs), most, replace=False))
            chosen = pairs.take(rows.tolist())
            if len(set(chosen.texts)) >= batch:
                found[name] = chosen
                tell(f"{name}: only {most:,} of {len(pairs):,} pairs are used, because the steps do not need more")
    return found


def looked_at(held_out: Mapping[str, Pairs], seed: int) -> dict[str, Pairs]:
    """Limit every held-out set to a number of pairs that can be evaluated repeatedly."""
    found: dict[str, Pairs] = {}
    for name, pairs in held_out.items():
        found[name] = pairs
        if len(pairs) > LOOKED_AT:
            rows = np.random.default_rng(seed).choice(len(pairs), LOOKED_AT, replace=False)
            found[name] = pairs.take(np.sort(rows).tolist())
            tell(f"{name}: {LOOKED_AT:,} of {len(pairs):,} held-out pairs are used while training")
    return found


class _TrainerState(TypedDict, total=False):
    global_step: int
    best_model_checkpoint: str | None
    log_history: list[dict[str, Any]]


class Reached(NamedTuple):
    """A checkpoint: its step, its folder, and what the trainer had logged by then."""

    step: int
    folder: str
    logged: list[dict[str, Any]]


def last_checkpoint(folder: Path) -> Reached | None:
    """Return the newest complete checkpoint that is not being removed.

    The trainer's state is written last; neither the files of the checkpoint nor those of the best one, which it refers
    to, may be missing.
    """
    if not folder.is_dir():
        raise UsageError(f"there is nothing to resume in {str(folder)!r}", next_move="start without resume")
    return max(_whole_checkpoints(folder), key=lambda reached: reached.step, default=None)


def _whole_checkpoints(folder: Path) -> Iterator[Reached]:
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    for state in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/trainer_state.json"):
        try:
            reached: _TrainerState = read_json(state, _TrainerState)
            step = reached["global_step"]
        except (CheckpointError, KeyError):  # killed while writing it
            continue
        best = folder / Path(reached.get("best_model_checkpoint") or state.parent).name
        needed = [state.parent / name for name in (TRAINED_FILE, OPTIMIZER_FILE, SCHEDULER_FILE)]
        if all(path.is_file() for path in (*needed, best / TRAINED_FILE)):
            yield Reached(step, str(state.parent), reached.get("log_history", []))
