"""The study: Optuna proposes and remembers, several processes share its journal, a killed one is taken up."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from filelock import FileLock, Timeout

from taskmerge.recipes import Recipe
from taskmerge.recipes.axes import Axis
from taskmerge.words.extras import require

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
NAME = "search"
GP_TRIALS = 150
_UNCLAIMED = timedelta(seconds=60)
"""How long a trial may run before it says whose it is."""


@dataclass(frozen=True)
class Proposed:
    """A trial that is to be run. values: on the axes that apply."""

    trial: optuna.Trial
    values: Mapping[str, Any]

    @property
    def number(self) -> int:
        """The number of the trial."""
        return self.trial.number


class Study:
    """A study in a folder, its trials those of all processes that ever worked on it."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        axes: Sequence[Axis],
        objectives: int,
        sampler: str,
        trials: int,
        prune: bool,
    ) -> None:
        """Open a study, or begin one.

        Args:
            folder: of the journal.
            recipe, axes: what is varied.
            objectives: how many numbers are maximised.
            sampler: as in the recipe.
            trials: how many shall be run, all processes together.
            prune: whether trials may be stopped early.
        """
        require("optuna")
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.recipe, self.axes, self.trials = recipe, axes, trials
        self._objectives = objectives
        self._sampler = _chosen(sampler, axes, trials, objectives)
        self._workers = folder / "workers"
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._lock = FileLock(str(self._workers / self._worker))
        self._proposing = FileLock(str(folder / ".lock-propose"))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _quietly():
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
                study_name=NAME,
                directions=["maximize"] * objectives,
                load_if_exists=True,
                pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=4)
                if prune and objectives == 1
                else optuna.pruners.NopPruner(),
            )

    @property
    def sampler(self) -> str:
        """The name of the sampler that proposes points."""
        return self._sampler

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count among the living: trials of processes that no longer do are taken up."""
        self._workers.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self.bury()
            yield
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def bury(self) -> list[int]:
        """Give up the trials of processes that were killed; the same values are tried again. Returns their numbers."""
        from optuna.trial import TrialState

        lost = [trial for trial in self._in(TrialState.RUNNING) if not self._lives(trial)]
        for trial in lost:
            with _quietly():
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        return [trial.number for trial in lost]

    def _lives(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        if worker is None:
            return trial.datetime_start is None or datetime.now() - trial.datetime_start < _UNCLAIMED
        if worker == self._worker or not str(worker).startswith(socket.gethostname()):
            return True  # another machine's: unknown here
        place = self._workers / str(worker)
        if not place.exists():
            return False
        try:
            with FileLock(str(place), timeout=0):
                place.unlink(missing_ok=True)
        except Timeout:
            return True
        return False

    def _in(self, *states: Any) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def propose(self) -> Proposed | None:
        """Return the next trial; None if there are enough, including those that still run elsewhere."""
        with self._proposing:  # two processes must not both take the last one
            return self._propose()

    def _propose(self) -> Proposed | None:
        from optuna.trial import TrialState

        counted = [
            trial for trial in self._in(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
            if "reference" not in trial.user_attrs and "around" not in trial.user_attrs and not self._was_lost(trial)
        ]  # fmt: skip
        if len(counted) >= self.trials:
            return None
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = _sampler(self._sampler, (self.recipe.seed + 7919 * number) % 2**32)
        with _quietly():
            trial = self.study.ask()
            trial.set_user_attr("worker", self._worker)
            values: dict[str, Any] = {}
            for axis in sorted(self.axes, key=lambda axis: axis.option != "method"):
                if axis.applies(values, self.recipe):
                    values[axis.name] = _drawn(trial, axis)
        return Proposed(trial, values)

    def _was_lost(self, trial: FrozenTrial) -> bool:
        """Whether a killed process had it: it failed without a word."""
        return trial.state.name == "FAIL" and "failure" not in trial.user_attrs

    def report(self, proposed: Proposed, part: int, value: float) -> bool:
        """Tell the objective on a part of the pairs. Returns whether the trial is known to be worse."""
        if self._objectives > 1:
            return False
        with _quietly():
            proposed.trial.report(value, part)
            return bool(proposed.trial.should_prune())

    def tell(
        self, proposed: Proposed, values: Sequence[float], constraints: Mapping[str, float], told: Mapping[str, Any]
    ) -> None:
        """Note a finished trial. constraints: at most 0 where a floor is met. told: what else is kept of it."""
        for key, value in told.items():
            proposed.trial.set_user_attr(key, value)
        for key, value in constraints.items():
            proposed.trial.set_constraint(key, value)
        with _quietly():
            self.study.tell(proposed.trial, list(values))

    def stop(self, proposed: Proposed) -> None:
        """Note a trial that was stopped early."""
        from optuna.trial import TrialState

        with _quietly():
            self.study.tell(proposed.trial, state=TrialState.PRUNED)

    def fail(self, proposed: Proposed, why: str) -> None:
        """Note a trial that failed, and why."""
        from optuna.trial import TrialState

        proposed.trial.set_user_attr("failure", why)
        with _quietly():
            self.study.tell(proposed.trial, state=TrialState.FAIL)

    def add(
        self,
        values: Mapping[str, Any],
        results: Sequence[float],
        constraints: Mapping[str, float],
        told: Mapping[str, Any],
        parts: Mapping[int, float] | None = None,
    ) -> int:
        """Add a point that was scored outside of the sampler's turn, from which it learns. Returns its number."""
        import optuna

        by_name = {axis.name: axis for axis in self.axes}
        with _quietly():
            self.study.add_trial(
                optuna.trial.create_trial(
                    values=list(results),
                    params=dict(values),
                    distributions={name: distribution(by_name[name]) for name in values},
                    user_attrs=dict(told),
                    intermediate_values=dict(parts or {}) if self._objectives == 1 else {},
                    constraints=dict(constraints),
                )
            )
        return len(self.study.get_trials(deepcopy=False)) - 1

    def finished(self) -> list[FrozenTrial]:
        """Return all trials that ended, in order."""
        from optuna.trial import TrialState

        return self._in(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

    def complete(self) -> list[FrozenTrial]:
        """Return the trials that were scored completely."""
        from optuna.trial import TrialState

        return self._in(TrialState.COMPLETE)

    def running(self) -> dict[int, str]:
        """Number -> process, of the trials that run, here or elsewhere."""
        from optuna.trial import TrialState

        return {trial.number: str(trial.user_attrs.get("worker", "?")) for trial in self._in(TrialState.RUNNING)}

    def importances(self, objective: int = 0) -> dict[str, float]:
        """Compute each axis' share in the difference between good and bad trials (PED-ANOVA, arXiv 2304.10255)."""
        import optuna

        if len(self.complete()) < 4:
            return {}
        with _quietly():
            return dict(optuna.importance.get_param_importances(
                self.study, target=lambda trial: -trial.values[objective]  # it takes the lower for the better
            ))  # fmt: skip


def _drawn(trial: optuna.Trial, axis: Axis) -> Any:
    if axis.bounds is None:
        return trial.suggest_categorical(axis.name, list(axis.choices))
    (low, high), step = axis.bounds, axis.range.step
    if axis.integer:
        whole = 1 if step is None else round(step)
        return trial.suggest_int(axis.name, round(low), round(high), log=axis.range.log, step=whole)
    return trial.suggest_float(axis.name, low, high, log=axis.range.log, step=step)


def distribution(axis: Axis) -> BaseDistribution:
    """Return the distribution from which Optuna draws values of an axis."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.bounds is None:
        return CategoricalDistribution(list(axis.choices))
    low, high = axis.bounds
    step = axis.range.step
    if axis.integer:
        return IntDistribution(round(low), round(high), log=axis.range.log, step=1 if step is None else round(step))
    return FloatDistribution(low, high, log=axis.range.log, step=step)


def _chosen(sampler: str, axes: Sequence[Axis], trials: int, objectives: int) -> str:
    if sampler != "auto":
        return sampler
    numbers = all(axis.bounds is not None and not axis.methods for axis in axes)
    return "gp" if numbers and trials <= GP_TRIALS and objectives == 1 else "tpe"


def _sampler(name: str, seed: int) -> Any:
    """A new sampler for one proposal: what it proposes follows from the trials so far and the seed alone."""
    from optuna import samplers

    with _quietly():
        if name == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=8, warn_independent_sampling=False)
        if name == "cmaes":
            require("cmaes")
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if name == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True, group=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what Optuna says of parts that are new in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
