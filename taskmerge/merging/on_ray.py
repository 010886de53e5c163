"""Parts on a Ray cluster: one task a file of the output, nothing but hashes sent back, a bounded number under way.

Each task is what `fuse --part` is, planned from the recipe's text where it runs; what was finished stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from taskmerge import kernels
from taskmerge.checkpoints.output.checking import Checked
from taskmerge.checkpoints.stores.cached import use_cache
from taskmerge.merging.measured import Measured
from taskmerge.merging.parts import Job, execute_part, measure_part, measures_the_model
from taskmerge.merging.plan import plan
from taskmerge.merging.verify import model_folder, verified
from taskmerge.recipes import loads
from taskmerge.words.parts import Part
from taskmerge.words.places import StoreUri
from taskmerge.words.ray_cluster import TRIES, Cluster, processors


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
        """Return the data from which another process plans the same job."""
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
    kernels.set_threads(processors())
    return dict(execute_part(_job(told), part, memory=told.memory).sha256)


def _measure(told: Told, part: Part) -> Measured:
    kernels.set_threads(processors())
    return measure_part(_job(told), part)


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
            for _ in range(TRIES):  # a round each
                found: list[Measured] = []
                cluster.run(_measure, (told,), parts, lambda _, one, found=found: found.append(one))  # type: ignore[misc]
                if any(one.done for one in found):
                    break
        cluster.run(_write, (told,), parts, lambda part, _: done(job.plan.shards[part.number - 1].size))


def verify_parts(address: str | None, of: int, *arguments: Any, done: Callable[[], None]) -> Checked:
    """Run `verify.verified(*arguments)` on a cluster, in `of` parts; done: called after each."""
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
    kernels.set_threads(processors())
    return verified(model_folder(folder), rederive, recipe_folder, methods, part)
