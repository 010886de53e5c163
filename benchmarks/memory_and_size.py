"""Memory besides mapped input pages, for more specialists and larger models; and whether cost is linear in bytes.

python benchmarks/memory_and_size.py .bench --memory-cases qwen2:0.494:3,qwen2:0.494:8,qwen2:2.0:3 --gibibytes 2,4,8,16
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from fuse_vs_peers import Case, taskmerge
from processes import machine, run
from synthetic import header, make

HERE = Path(__file__).parent
_ROWS, _COLUMNS = 8_192, 8_192  # 128 MiB a tensor
_TENSORS_PER_SHARD = 16


def sparse_model(folder: Path, gibibytes: int) -> Path:
    """A checkpoint of sparse bf16 shards of 2 GiB each: its size is real, the disk it takes is not."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, weight_map = gibibytes // 2, {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = [f"model.layers.{shard * _TENSORS_PER_SHARD + i}.weight" for i in range(_TENSORS_PER_SHARD)]
        weight_map |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as out:
            out.write(header(dict.fromkeys(names, (_ROWS, _COLUMNS))))
            out.truncate(out.tell() + len(names) * 2 * _ROWS * _COLUMNS)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


def linear_in_bytes(folder: Path, sizes: list[int]) -> list[dict[str, float]]:
    """Task arithmetic of sparse models of growing size, inputs hashed too. The output is written, and removed."""
    found = []
    cache = folder / "sparse_cache"  # shared, so that the kernels are built before the first of them is timed
    warm_up = Case("warm up", [sparse_model(folder / "sparse_warm_up" / name, 2) for name in ("base", "specialist")],
                   folder / "sparse_warm_up")  # fmt: skip
    run(taskmerge(warm_up, "task_arithmetic")[0], {"XDG_CACHE_HOME": str(cache)})
    shutil.rmtree(warm_up.work)
    for size in sizes:
        place = folder / f"sparse_{size}"
        case = Case(f"{size} GiB", [sparse_model(place / name, size) for name in ("base", "specialist")], place)
        command, _ = taskmerge(case, "task_arithmetic")
        cost = run(command, {"XDG_CACHE_HOME": str(cache)}, place / "log")
        found.append({"gibibytes": size, "wall": cost.wall, "cpu": cost.cpu, "private": cost.private})
        print(found[-1], flush=True)
        shutil.rmtree(place)
    return found


def memory(folder: Path, cases: list[str], methods: list[str]) -> list[dict[str, object]]:
    """Peak memory of whole fuses."""
    found: list[dict[str, object]] = []
    for text in cases:
        shape, billions, specialists = text.split(":")
        place = folder / f"{shape}_{billions}"
        case = Case(text, make(place, shape, float(billions), int(specialists)), place)
        for method in methods:
            cost = run(*taskmerge(case, method), place / "log")
            row = {"case": text, "method": method, "private": cost.private, "wall": cost.wall, "cpu": cost.cpu}
            found.append(row)
            print(row, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory-cases", default="")
    parser.add_argument("--methods", default="task_arithmetic,ties,della")
    parser.add_argument("--gibibytes", default="")
    parser.add_argument("--name", default="memory_and_size")
    arguments = parser.parse_args()
    results = {
        "memory": memory(arguments.folder, _listed(arguments.memory_cases), _listed(arguments.methods)),
        "linear_in_bytes": linear_in_bytes(arguments.folder, [int(size) for size in _listed(arguments.gibibytes)]),
        "machine": machine(),
        "python": sys.version.split()[0],
    }
    (HERE / "results" / f"{arguments.name}.json").write_text(json.dumps(results, indent=1) + "\n")


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    main()
