"""How long the command line takes to say something: `--help`, and the plan of a 33-shard, 1,000-tensor checkpoint.

python benchmarks/start_up.py .bench
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from processes import machine, run
from synthetic import header

SHARDS, TENSORS, SHAPE = 33, 1_000, (2_560, 3_072)


def make(folder: Path) -> Path:
    """A checkpoint of sparse files (no disk is used, headers apart): 1,000 matrices of 15.7 MB, 15.7 GB in all."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model.layers.{i // 7}.part_{i % 7}.weight" for i in range(TENSORS)]
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        here = names[shard::SHARDS]
        weight_map |= dict.fromkeys(here, file)
        with (folder / file).open("wb") as out:
            out.write(header(dict.fromkeys(here, SHAPE)))
            out.truncate(out.tell() + len(here) * 2 * SHAPE[0] * SHAPE[1])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    place = arguments.folder / "shards"
    base, specialist = make(place / "base"), make(place / "specialist")
    recipe = place / "merge.yaml"
    table = {"base": str(base.resolve()), "specialists": {"one": {"model": str(specialist.resolve()), "weight": 0.5}}}
    recipe.write_text(json.dumps({**table, "merge": {"method": "ties"}, "output": {"path": str(place / "out")}}))
    taskmerge = str(Path(sys.executable).parent / "taskmerge")
    commands = {"--help": [taskmerge, "--help"], "fuse --dry-run": [taskmerge, "fuse", str(recipe), "--dry-run"]}
    print(json.dumps(machine()))
    for name, command in commands.items():
        costs = [run(command) for _ in range(arguments.rounds)]
        wall, cpu = [cost.wall for cost in costs], [cost.cpu for cost in costs]
        print(
            f"{name}: wall median {statistics.median(wall):.2f} s, least {min(wall):.2f} s; "
            f"cpu median {statistics.median(cpu):.2f} s, least {min(cpu):.2f} s"
        )


if __name__ == "__main__":
    main()
