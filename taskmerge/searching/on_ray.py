"""A search by several workers of a Ray cluster on one study: what starting the command several times does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge import kernels
from taskmerge.reporting import check_page
from taskmerge.searching.api import begin, contribute, search
from taskmerge.searching.outcome import Outcome
from taskmerge.words.devices import device_or_default
from taskmerge.words.parts import Part
from taskmerge.words.ray_cluster import Cluster, device_of_task, processors


@dataclass(frozen=True)
class Told:
    """The arguments of a worker.

    here: the working directory of the command; out: the study's folder, which all share.
    """

    recipe: Path
    out: Path
    here: Path
    trials: int | None
    device: str | None
    memory: int


def work(told: Told, _: Part) -> list[str]:
    """Run trials until the study has enough; returns what was said of them."""
    kernels.set_threads(processors())
    with contextlib.suppress(OSError):  # all paths that the recipe names start from its own folder
        os.chdir(told.here)
    lines: list[str] = []
    contribute(told.recipe, out=told.out, trials=told.trials, device=told.device, memory=told.memory, say=lines.append)
    return lines


def search_on_ray(
    address: str | None,
    recipe: Path,
    *,
    out: Path | None,
    trials: int | None,
    device: str | None,
    fresh: bool,
    memory: int,
    page: Path | None,
    say: Callable[[str], None],
) -> Outcome:
    """Run `search(recipe)` with a worker for each processor of a cluster, or for each GPU if `device` is one.

    All share one Optuna study: its journal is a file in the study's folder, which every machine must see. The order of
    trials, and so what the sampler proposes, depends on who is quicker. This process draws the conclusions.

    Raises:
        as `search`, before any worker starts for what is wrong in the recipe.
    """
    if page is not None:
        check_page(page)
    own, gpu = device_of_task(device_or_default(device))
    folder = begin(recipe, out=out, trials=trials, fresh=fresh, memory=memory)
    told = Told(recipe.absolute(), folder, Path.cwd(), trials, own, memory)
    with Cluster(address) as cluster:
        count = cluster.gpus if gpu else cluster.processors
        say(f"{count} workers on Ray share one study; the order of trials differs from that of one process")

        def heard(part: Part, lines: Any) -> None:
            for line in lines:
                if line.startswith("trial "):
                    say(f"worker {part}: {line}")

        cluster.run(work, (told,), [Part(number, count) for number in range(1, count + 1)], heard, gpu=gpu)
    return search(recipe, out=folder, trials=trials, device=device, memory=memory, page=page, say=say)
