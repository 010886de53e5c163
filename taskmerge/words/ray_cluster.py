"""A Ray cluster as a launcher: tasks of this package's own functions, a bounded number at a time, tried again.

A task whose worker dies, or that meets a store that fails, is run again. Functions and arguments travel, and what the
functions return; nothing else is left to Ray.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskmerge.errors import Problem, TaskmergeError, UsageError
from taskmerge.words.extras import require
from taskmerge.words.parts import Part

TRIES = 5
_PAUSE = 15.0
"""Seconds before a task is tried again, more each time: a lease of a worker that is gone lives for a minute."""
_AHEAD = 2
"""Tasks under way for each processor of the cluster."""


_STARTS = 3
"""Attempts at a cluster of this machine: Ray gives up after 30 s, which cannot be set, and a busy machine needs longer
for the first one, which reads all of Ray from the disk."""
_LIGHT = {
    "RAY_prestart_worker_first_driver": "0", "RAY_enable_metrics_collection": "0", "RAY_worker_niceness": "0",
}  # fmt: skip
"""Settings of a cluster that is started here: no worker before there is a task, no statistics of Ray's own, and the
priority of the command for its workers, where Ray would let everything else on the machine go first."""


def parse_launcher(text: str) -> str | None:
    """Return the address in `--on ray` or `--on ray:ADDRESS`; None: RAY_ADDRESS, or a cluster of this machine.

    Raises UsageError for another launcher, and where Ray is not installed.
    """
    name, _, address = text.partition(":")
    if name != "ray":
        raise UsageError(f"{text!r} is not a launcher", next_move="write --on ray, or --on ray:ADDRESS")
    require("ray")
    return address or None


def device_of_task(device: str | None) -> tuple[str | None, bool]:
    """Return a device by its name inside a task, which sees only its own GPU, and whether it needs a GPU."""
    gpu = device is not None and device.startswith("cuda")
    return ("cuda" if gpu else device), gpu


def processors() -> int:
    """Return the number of processors of the present task."""
    import ray

    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine with as little as these tasks need."""
    quiet: dict[str, Any] = {"ignore_reinit_error": True, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None or os.environ.get("RAY_ADDRESS"):
        ray.init(address, **quiet)
        return
    for name, value in _LIGHT.items():
        os.environ.setdefault(name, value)
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(include_dashboard=False, **quiet)
            return
        except Exception as error:
            if attempt == _STARTS or "timed out" not in str(error):
                raise


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
            _connect(ray, self.address)
        except Exception as error:
            move = "start it (`ray start --head`), or leave the address out for a cluster of this machine"
            where = f"at {self.address}" if self.address else "here, and none could be started"
            raise UsageError(f"there is no Ray cluster {where}: {error}", next_move=move) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    @property
    def processors(self) -> int:
        """Processors of all its machines."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    @property
    def gpus(self) -> int:
        """GPUs of all its machines. Raises UsageError if there is none: a task would wait for it forever."""
        found = int(self._ray.cluster_resources().get("GPU", 0))
        if not found:
            raise UsageError("the Ray cluster has no GPU", next_move="use --device cpu")
        return found

    def run(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        parts: Sequence[Part],
        done: Done,
        processors: int = 1,
        gpu: bool = False,
    ) -> None:
        """Call `function(*arguments, part)` for every part; `done` is told of each result.

        processors: of one task, at most those of the largest machine. gpu: whether it needs one. Raises what a task
        raised the last time it was tried; MergeError and UsageError are not tried again.
        """
        each = min(processors, self._largest())
        most = max(1, _AHEAD * (self.gpus if gpu else self.processors // each))
        task = self._ray.remote(max_retries=TRIES, num_cpus=each, num_gpus=int(gpu))(_guarded)
        waiting = [(part, 1, 0.0) for part in parts]
        running: dict[Any, tuple[Part, int]] = {}
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
                elif again and tries < TRIES:
                    waiting.append((part, tries + 1, time.monotonic() + _PAUSE * tries))
                else:
                    raise TaskmergeError([Problem(*row) for row in problems])

    def _largest(self) -> int:
        alive = [node["Resources"].get("CPU", 1) for node in self._ray.nodes() if node["Alive"]]
        return max(1, int(max(alive, default=1)))


def _guarded(function: Callable[..., Any], arguments: tuple[Any, ...], part: Part) -> tuple[Any, bool, Any]:
    """(problems, whether another try may help, result): errors travel as text."""
    from taskmerge.errors import CheckpointError, OutputError

    try:
        return (), False, function(*arguments, part)
    except TaskmergeError as error:
        again = isinstance(error, CheckpointError | OutputError)
        return [(one.what, one.place, one.next_move) for one in error.problems], again, None
