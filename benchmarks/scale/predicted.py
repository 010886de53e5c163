"""Two workers, predicted from one worker on two smaller merges, and measured.

    python benchmarks/scale/predicted.py WORK --megabytes 128 256 --of 512 --out results.json

One worker at two sizes gives the time to start and the time for a byte, and the processor time of both, of the worker
and of the store, which shares the processors. Two workers share the bytes, and all processes share the processors:
whichever takes longer is the prediction. The calibration is repeated after the measurement, and the mean of both used,
since others work on the machine too.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from in_a_store import RECIPE, commands, run, serve
from results import arguments, leave


@dataclass(frozen=True)
class Times:
    """Wall time of the parts, and processor time of all workers and of the store, in seconds."""

    seconds: float
    workers: float
    store: float


def merge(work: Path, megabytes: int, workers: int) -> Times:
    """Merge three models of so many megabytes in a store of its own."""
    here, there = multiprocessing.Pipe()
    size = megabytes * 1_000_000
    store = multiprocessing.Process(target=serve, args=(size, there))
    store.start()
    environment = {**os.environ, **here.recv(), "TASKMERGE_THREADS": "1"}
    recipe = work / "recipe.yaml"
    recipe.write_text(f"{RECIPE}output: {{shard_size: {size // 8}}}\n")
    before = _asked(here)
    seconds, used, _ = run(commands(recipe, "s3://bucket/out", workers)[0], environment)
    after = _asked(here)
    here.send("end")
    store.join()
    return Times(seconds, used, after - before)


def _asked(pipe: Any) -> float:
    pipe.send("processor")
    return float(pipe.recv())


def line(small: float, large: float, sizes: tuple[int, int]) -> tuple[float, float]:
    """Where a straight line through two measurements starts, and what it adds for a megabyte."""
    slope = (large - small) / (sizes[1] - sizes[0])
    return max(0.0, small - slope * sizes[0]), slope


def mean(one: Times, two: Times) -> Times:
    return Times(*((a + b) / 2 for a, b in zip(asdict(one).values(), asdict(two).values(), strict=True)))


def predict(small: Times, large: Times, sizes: tuple[int, int], size: int, workers: int, cores: int) -> float:
    """Seconds that `workers` take: of the wall of one with its share, or of all processors, whichever is longer."""
    start, for_one = line(small.seconds, large.seconds, sizes)
    start_used, used = line(small.workers, large.workers, sizes)
    _, served = line(small.store, large.store, sizes)
    alone = start + for_one * size / workers
    shared = (workers * start_used + (used + served) * size) / cores
    return max(alone, shared)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--megabytes", type=int, nargs=2, default=[128, 256], help="of each model, by one worker")
    parser.add_argument("--of", type=int, default=512, help="of each model, by two workers")
    said = parser.parse_args()
    said.work.mkdir(parents=True, exist_ok=True)
    sizes = (said.megabytes[0], said.megabytes[1])
    before = [merge(said.work, size, 1) for size in sizes]
    load = os.getloadavg()[0]
    measured = merge(said.work, said.of, 2)
    after = [merge(said.work, size, 1) for size in sizes]
    small, large = (mean(*rows) for rows in zip(before, after, strict=True))
    cores = os.cpu_count() or 1
    seconds = predict(small, large, sizes, said.of, 2, cores)
    table = {
        "megabytes_of_a_model": said.of, "bytes_in_all": 4 * said.of * 1_000_000, "cores": cores, "load": load,
        "one_worker": [{"megabytes_of_a_model": size, "before": asdict(one), "after": asdict(two)}
                       for size, one, two in zip(sizes, before, after, strict=True)],
        "two_workers": asdict(measured), "predicted_seconds": seconds,
        "predicted_of_measured": seconds / measured.seconds,
    }  # fmt: skip
    leave(table, said.out)


if __name__ == "__main__":
    main()
