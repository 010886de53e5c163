"""Input covariances collected by a Ray cluster: one task for each chunk of the probes, sums added in their order."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.covariances import InputCovariances
from taskmerge.embedders.loading import open_embedder
from taskmerge.measuring.covariances import Collector, Data, Sums, Total
from taskmerge.words.devices import device_or_default
from taskmerge.words.parts import Part
from taskmerge.words.progress import work
from taskmerge.words.ray_cluster import Cluster, device_of_task

if TYPE_CHECKING:
    from taskmerge.embedders.sources import ModelSource


@dataclass(frozen=True)
class Told:
    """The arguments of a task.

    folder: the folder that relative paths start from. threads: number of threads of the process that asked; products
    of matrices have the same bits with the same number.
    """

    model: ModelSource
    probes: str
    prompts: dict[str, str] | None
    device: str | None
    folder: Path
    threads: int


_opened: list[tuple[Told, Collector, Data]] = []
"""What this process opened last: one worker runs many chunks."""


def collect(told: Told, part: Part) -> Sums:
    """Return the sums of one chunk, in the memory of the processor."""
    import torch

    torch.set_num_threads(told.threads)
    if not _opened or _opened[0][0] != told:
        with contextlib.suppress(OSError):  # absolute paths and hub ids need no folder; others are reported as missing
            os.chdir(told.folder)
        data = Data.of(told.probes)
        collector = Collector(open_embedder(told.model, device=told.device).prompted(told.prompts))
        collector.check(data)
        _opened[:] = [(told, collector, data)]
    _, collector, data = _opened[0]
    sums = collector.run(data.chunks[part.number - 1])
    sums.totals = {name: total.cpu() for name, total in sums.totals.items()}
    return sums


class InOrder:
    """Adds what tasks return as soon as all before it are there, so that the sum does not depend on who is quicker."""

    def __init__(self, total: Total) -> None:
        self._total, self._waiting, self._next = total, dict[int, Sums](), 1

    def add(self, part: Part, sums: Any) -> None:
        """Take the sums of one chunk."""
        self._waiting[part.number] = sums
        while (found := self._waiting.pop(self._next, None)) is not None:
            self._total.add(found)
            self._next += 1


def collect_on_ray(
    address: str | None,
    model: ModelSource,
    probes: str,
    *,
    device: str | None = None,
    prompts: dict[str, str] | None = None,
) -> InputCovariances:
    """Compute `collect_covariances(model, probes)` on a cluster, with the same bits on machines like this one.

    address: see `ray_cluster.parse_launcher`. A task takes as many processors as this process has threads, and a GPU if
    `device` is one. Raises as `collect_covariances`.
    """
    import torch

    data = Data.of(probes)
    own, gpu = device_of_task(device_or_default(device))
    told = Told(model, probes, prompts, own, Path.cwd(), torch.get_num_threads())
    total = Total(data.groups)
    ordered, count = InOrder(total), len(data.chunks)
    with work("chunks of the probes", count, "chunks") as progress, Cluster(address) as cluster:

        def heard(part: Part, sums: Any) -> None:
            ordered.add(part, sums)
            progress.advance()

        parts = [Part(number, count) for number in range(1, count + 1)]
        cluster.run(collect, (told,), parts, heard, processors=told.threads, gpu=gpu)
    return total.result()
