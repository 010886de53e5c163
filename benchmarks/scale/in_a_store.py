"""A real merge from and to a store on this machine, by one worker and by two: time, bytes, memory, the same files.

    python benchmarks/scale/in_a_store.py WORK --gigabytes 1 --out results.json

The store is a server of the tests in a process of its own, so that what it takes is not counted; it counts every byte.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import arguments, leave

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

RECIPE = """\
base: s3://bucket/base
specialists:
  a: {model: s3://bucket/a, weight: 0.5}
  b: {model: s3://bucket/b, weight: 0.3}
merge: {method: ties, density: 0.2}
"""


def models(size: int, tensors: int = 32) -> Iterator[tuple[str, bytes]]:
    """The name and the file of a base and of two specialists, of `size` bytes each."""
    from safetensors.numpy import save

    rng = np.random.default_rng(0)
    rows = size // (2 * 2048 * tensors)
    base = {
        f"model.layers.{i}.mlp.weight": rng.standard_normal((rows, 2048)).astype(np.float16) for i in range(tensors)
    }
    for number, label in enumerate(("base", "a", "b")):
        noise = np.float16(1e-3) * rng.standard_normal(2048).astype(np.float16) * number
        yield label, save({name: one + noise for name, one in base.items()})


def serve(size: int, pipe: Any) -> None:
    """The store: made, filled with models of `size` bytes, and asked through a pipe."""
    from s3_server import serving

    with serving() as server:
        for label, file in models(size):
            server.put(f"bucket/{label}/model.safetensors", file)
            server.put(f"bucket/{label}/config.json", b"{}")
        pipe.send(server.environment)
        while (asked := pipe.recv()) != "end":
            if asked == "processor":
                pipe.send(time.process_time())
            elif asked == "forget":
                server.read.clear()
                server.written.clear()
                pipe.send(None)
            else:
                files = {key: hashlib.sha256(one.data).hexdigest() for key, one in server.objects.items()
                         if key.startswith(asked) and key.endswith(".safetensors")}  # fmt: skip
                pipe.send((sum(server.read.values()), sum(server.written.values()), sorted(files.values())))


def commands(recipe: Path, out: str, workers: int) -> tuple[list[list[str]], list[str]]:
    """The parts, and what ends them."""
    start = [sys.executable, "-m", "taskmerge", "fuse", str(recipe), "--out", out]
    return [[*start, "--part", f"{number}/{workers}"] for number in range(1, workers + 1)], [*start, "--finish"]


def run(
    words: Sequence[Sequence[str]], environment: dict[str, str], own_core: bool = False
) -> tuple[float, float, int]:
    """Seconds, processor seconds, and the most memory of any, of commands that run at once.

    own_core: each command may use one core alone, another one than the others, as a cluster grants it.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for number, one in enumerate(words):
        confined = ["taskset", "--cpu-list", str(cores[number % len(cores)])] if own_core else []
        processes.append(subprocess.Popen([*confined, *one], env=environment, stdout=subprocess.DEVNULL))
    if any(process.wait() for process in processes):
        raise SystemExit("a part failed")
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used, after.ru_maxrss * 1024


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each of the three models")
    said = parser.parse_args()
    said.work.mkdir(parents=True, exist_ok=True)
    size = int(said.gigabytes * 1e9)
    here, there = multiprocessing.Pipe()
    store = multiprocessing.Process(target=serve, args=(size, there))
    store.start()
    environment = {**os.environ, **here.recv(), "TASKMERGE_THREADS": "1"}
    recipe = said.work / "recipe.yaml"
    recipe.write_text(f"{RECIPE}output: {{shard_size: {size // 8}}}\n")
    rows, files = [], []
    for workers in (1, 2):
        here.send("forget")
        here.recv()
        parts, finish = commands(recipe, f"s3://bucket/out{workers}", workers)
        seconds, used, memory = run(parts, environment)
        ended, _, _ = run([finish], environment)
        here.send(f"bucket/out{workers}/")
        read, written, digests = here.recv()
        files.append(digests)
        rows.append({"workers": workers, "seconds": seconds, "processor_seconds": used, "seconds_to_finish": ended,
                     "read": read, "written": written, "read_of_needed": read / (3 * size),
                     "written_of_needed": written / size, "peak_memory_of_a_worker": memory})  # fmt: skip
    here.send("end")
    store.join()
    table = {"bytes_of_a_model": size, "threads_of_a_worker": 1, "load": os.getloadavg()[0],
             "same_files": files[0] == files[1], "runs": rows,
             "two_workers_of_one": rows[1]["seconds"] / rows[0]["seconds"]}  # fmt: skip
    leave(table, said.out)


if __name__ == "__main__":
    main()
