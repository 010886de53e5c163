"""Parts on a Ray cluster: one task a file of the output, nothing but hashes sent back, a bounded number under way.

Ray is a launcher here and no more: each task is what `fuse --part` is, planned from the recipe's text where it runs. A
task whose worker dies, or that meets a store that fails, is run again; what was finished stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from taskmerge import kernels
from taskmerge.checkpoints.output.checking import Checked
from taskmerge.checkpoints.stores.cached import use_cache
from taskmerge.errors import Problem, TaskmergeError, UsageError
from taskmerge.merging.measured import Measured
from taskmerge.merging.parts import Job, execute_part, measure_part, measures_the_model
from taskmerge.merging.plan import plan
from taskmerge.merging.verify import model_folder, verified
from taskmerge.recipes import loads
from taskmerge.words.extras import require
from taskmerge.words.parts import Part
from taskmerge.words.places import StoreUri

_TRIES = 5
_PAUSE = 15.0
"""Seconds before a task is tried again, more each time: a lease of a worker that is gone lives for a minute."""
_AHEAD = 2
"""Tasks under way for each processor of the cluster."""


def parse_launcher(text: str) -> str | None:
    """The address that `--on ray` or `--on ray:ADDRESS` names; None: RAY_ADDRESS, or a cluster of this machine.

    Raises UsageError for another launcher, and where Ray is not installed.
    """
    name, _, address = text.partition(":")
    if name != "ray":
        raise UsageError(f"{text!r} is not a launcher", next_move="--on ray, or --on ray:ADDRESS")
    require("ray")
    return address or None


@dataclass(frozen=True)
class Told:
    """A job as it travels: nothing that is open. out: folder or uri."""

    recipe: str
    label: str
    folder: Path
    out: str
    in_store: bool
    device: str
    fresh: bool
    memory: int
    cache: int | None

    @classmethod
    def of(cls, job: Job, memory: int, cache: int | None = None) -> Told:
        """What another process plans the same job from."""
        in_store = isinstance(job.out, StoreUri)
        out = str(job.out) if in_store else str(Path(str(job.out)).absolute())
        recipe = job.recipe
        return cls(
            recipe.text, recipe.place.rpartition(":")[0], recipe.folder.absolute(),
            out, in_store, job.device, job.fresh, memory, cache,
        )  # fmt: skip


@lru_cache(2)
def _job(told: Told) -> Job:
    """The job, planned once for all tasks that a worker runs."""
    use_cache(told.cache)
    recipe = loads(told.recipe, told.label, told.folder)
    out = StoreUri(told.out) if told.in_store else Path(told.out)
    return Job(plan(recipe), recipe, out, told.device, told.fresh)


def _write(told: Told, part: Part) -> dict[str, str]:
    kernels.set_threads(_processors())
    return dict(execute_part(_job(told), part, memory=told.memory).sha256)


def _measure(told: Told, part: Part) -> Measured:
    kernels.set_threads(_processors())
    return measure_part(_job(told), part)


def _processors() -> int:
    import ray

    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


Done = Callable[[Part, Any], None]


@dataclass
class Cluster:
    """A Ray cluster, connected to. address: see `parse_launcher`."""

    address: str | None
    _ray: Any = field(init=False, repr=False)

    def __enter__(self) -> Cluster:
        import ray

        self._ray = ray
        try:
            ray.init(self.address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            move = "start it (`ray start --head`), or leave the address out for a cluster of this machine"
            where = f"at {self.address}" if self.address else "here, and none could be started"
            raise UsageError(f"there is no Ray cluster {where}: {error}", next_move=move) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], parts: Sequence[Part], done: Done) -> None:
        """Call `function(*arguments, part)` for every part; `done` is told of each result.

        Raises what a task raised the last time it was tried; MergeError and UsageError are not tried again.
        """
        task = self._ray.remote(max_retries=_TRIES, num_cpus=1)(_guarded)
        waiting = [(part, 1, 0.0) for part in parts]
        running: dict[Any, tuple[Part, int]] = {}
        most = max(1, int(_AHEAD * self._ray.cluster_resources().get("CPU", 1)))
        while waiting or running:
            ready = [row for row in waiting if row[2] <= time.monotonic()]
            for row in ready[: most - len(running)]:
                waiting.remove(row)
                running[task.remote(function, arguments, row[0])] = row[:2]
            if not running:
                time.sleep(0.2)
                continue
            finished, _ = self._ray.wait(list(running), timeout=0.5)
            for one in finished:
                part, tries = running.pop(one)
                problems, again, result = self._ray.get(one)
                if not problems:
                    done(part, result)
                elif again and tries < _TRIES:
                    waiting.append((part, tries + 1, time.monotonic() + _PAUSE * tries))
                else:
                    raise TaskmergeError([Problem(*row) for row in problems])


def _guarded(function: Callable[..., Any], arguments: tuple[Any, ...], part: Part) -> tuple[Any, bool, Any]:
    """(problems, whether another try may help, result): errors travel as text."""
    from taskmerge.errors import CheckpointError, OutputError

    try:
        return (), False, function(*arguments, part)
    except TaskmergeError as error:
        again = isinstance(error, CheckpointError | OutputError)
        return [(one.what, one.place, one.next_move) for one in error.problems], again, None


def write_parts(
    job: Job, address: str | None, *, memory: int, cache: int | None = None, done: Callable[[int], None]
) -> None:
    """Have a cluster write every file of a planned merge, and measure first what is measured over the whole model.

    cache: bytes of ranges of remote files that each machine may keep. done: called with the bytes of every file that is
    written. Nothing is published: `execute(finish=True)` does.
    """
    told, files = Told.of(job, memory, cache), len(job.plan.shards)
    parts = [Part(number, files) for number in range(1, files + 1)]
    with Cluster(address) as cluster:
        if measures_the_model(job.plan):
            for _ in range(_TRIES):  # a round each
                found: list[Measured] = []
                cluster.run(_measure, (told,), parts, lambda _, one, found=found: found.append(one))  # type: ignore[misc]
                if any(one.done for one in found):
                    break
        cluster.run(_write, (told,), parts, lambda part, _: done(job.plan.shards[part.number - 1].size))


def verify_parts(address: str | None, of: int, *arguments: Any, done: Callable[[], None]) -> Checked:
    """`verify.verified(*arguments)` by a cluster, in `of` parts; done: called after each."""
    found: list[Checked] = []

    def heard(part: Part, result: Checked) -> None:
        found.append(result)
        done()

    with Cluster(address) as cluster:
        cluster.run(_verify, arguments, [Part(number, of) for number in range(1, of + 1)], heard)
    rows = ([line for one in found for line in getattr(one, name)] for name in ("differences", "checked", "unchecked"))
    differences, checked, unchecked = (tuple(dict.fromkeys(lines)) for lines in rows)
    return Checked(differences, checked, unchecked)


def _verify(folder: str, rederive: bool, recipe_folder: Path | None, methods: Sequence[str], part: Part) -> Checked:
    kernels.set_threads(_processors())
    return verified(model_folder(folder), rederive, recipe_folder, methods, part)
