"""A real merge of files on the disk of this machine, by one worker and by two of one thread each: times, files.

    python benchmarks/scale/on_disk.py WORK --gigabytes 2.15 --rounds 5 --out results.json

Four times so many bytes are read and written, 8 GiB: a base, two specialists and the output. In a store on the same
machine (in_a_store.py) the server shares the processors with the workers; here nothing does. Each round is run twice:
with a core of its own for each worker, as a cluster grants it, and with all cores of the machine for every worker.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from in_a_store import RECIPE, commands, models, run
from results import arguments, leave

WORKERS = (1, 2)


def make(work: Path, size: int) -> Path:
    """Write the models and the recipe into `work`, and return the recipe."""
    for label, file in models(size):
        (work / label).mkdir(parents=True, exist_ok=True)
        (work / label / "model.safetensors").write_bytes(file)
        (work / label / "config.json").write_text("{}")
    recipe = work / "recipe.yaml"
    text = RECIPE.replace("s3://bucket/", "./")
    recipe.write_text(f"{text}output: {{shard_size: {size // 8}}}\n")
    return recipe


def merge(work: Path, recipe: Path, workers: int, own_core: bool) -> tuple[dict[str, Any], list[str]]:
    """Merge by so many workers: the times, and the digests of the files."""
    out = work / f"out{workers}"
    shutil.rmtree(out, ignore_errors=True)
    parts, finish = commands(recipe, str(out), workers)
    environment = {**os.environ, "TASKMERGE_THREADS": "1"}
    seconds, used, _ = run(parts, environment, own_core)
    ended, _, _ = run([finish], environment)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("*.safetensors"))]
    row = {"workers": workers, "own_core": own_core, "seconds": seconds, "processor_seconds": used,
           "seconds_to_finish": ended}  # fmt: skip
    return row, digests


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.15, help="of each of the three models")
    parser.add_argument("--rounds", type=int, default=5)
    said = parser.parse_args()
    size = int(said.gigabytes * 1e9)
    recipe = make(said.work, size)
    load = os.getloadavg()[0]
    done = [
        merge(said.work, recipe, workers, own_core)
        for _ in range(said.rounds)
        for own_core in (True, False)
        for workers in WORKERS
    ]
    rows, digests = [row for row, _ in done], [files for _, files in done]
    table = {"bytes_of_a_model": size, "threads_of_a_worker": 1, "load": load,
             "same_files": all(files == digests[0] for files in digests), "runs": rows,
             "two_workers_of_one_with_own_cores": ratio(rows, own_core=True),
             "two_workers_of_one": ratio(rows, own_core=False)}  # fmt: skip
    leave(table, said.out)


def ratio(rows: list[dict[str, Any]], own_core: bool) -> float:
    """The median over rounds of the time of two workers, over that of one."""
    one, two = (
        [row["seconds"] for row in rows if row["workers"] == workers and row["own_core"] == own_core]
        for workers in WORKERS
    )
    return statistics.median(b / a for a, b in zip(one, two, strict=True))


if __name__ == "__main__":
    main()
