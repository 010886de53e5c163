"""Run a program as a whole process and say what it cost: wall and processor time, and memory not mapped from files."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_INTERVAL = 0.01


@dataclass(frozen=True)
class Cost:
    """One run. wall, cpu: seconds, cpu summed over cores; resident: peak bytes in all; private: peak bytes besides
    mapped file pages (anonymous and shared memory)."""

    wall: float
    cpu: float
    resident: int
    private: int


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, log: Path | None = None) -> Cost:
    """Runs `command` to its end. Raises RuntimeError with its last words when it fails.

    Python may keep compiled bytecode, as it does for an installed package, whatever the caller's environment says.
    """
    private = [0]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (log or Path(os.devnull)).open("w") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**surroundings, **(environment or {})})
        watcher = threading.Thread(target=_watch, args=(process.pid, private), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        words = log.read_text()[-2000:] if log else ""
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}\n{words}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, private[0])


def _watch(pid: int, peak: list[int]) -> None:
    """Samples RssAnon + RssShmem until the process is gone."""
    path = Path(f"/proc/{pid}/status")
    while True:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            return
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
        if not sizes:
            return
        peak[0] = max(peak[0], 1024 * (int(sizes["RssAnon"]) + int(sizes["RssShmem"])))
        time.sleep(_INTERVAL)


def median(costs: Sequence[Cost]) -> Cost:
    """Field by field; of memory the largest."""
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        max(cost.resident for cost in costs),
        max(cost.private for cost in costs),
    )


def rows(costs: Sequence[Cost]) -> list[dict[str, float]]:
    """As they go into a results file."""
    return [asdict(cost) for cost in costs]


def machine() -> dict[str, object]:
    """The machine, in general terms, and how busy it was."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "load_average_after": round(os.getloadavg()[0], 1),
    }
