"""What a merge of a terabyte takes: planned for real from sparse files, bytes counted, time from measured costs.

    python benchmarks/scale/simulate.py WORK --workers 1 8 32 --bandwidth 1e9 --out results.json

The plan is the real one, made from headers of models as large as said. What each part reads and writes follows from it.
Processor time for a byte is measured here, on a merge of a few hundred megabytes; bandwidth is what you say it is.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from results import arguments, leave
from shapes import mixture, write_sparse

from taskmerge import recipes
from taskmerge.checkpoints.stores.blocks import BLOCK, BUDGET
from taskmerge.checkpoints.stores.interface import part_size
from taskmerge.merging import execute, plan
from taskmerge.merging.steps import BASE, Plan, Source
from taskmerge.words.parts import Part

RECIPE = """\
base: base
specialists:
{specialists}
merge: {{method: {method}, {options}}}
output: {{path: out}}
"""


@dataclass(frozen=True)
class Costs:
    """Processor seconds for a byte of output, hashing and merging; what was merged to know it."""

    seconds_per_byte: float
    bytes_written: int
    method: str


@dataclass(frozen=True)
class Share:
    """What one part does."""

    read: int
    written: int
    requests: int


def write_recipe(folder: Path, specialists: int, method: str, options: str) -> Path:
    rows = "\n".join(f"  s{number}: {{model: s{number}, weight: 0.5}}" for number in range(specialists))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(specialists=rows, method=method, options=options))
    return path


def shares(decided: Plan, of: int) -> list[Share]:
    """What each of `of` parts reads, writes and asks for."""
    steps = {step.info.name: step for step in decided.steps}
    found = []
    for number in range(1, of + 1):
        read = requests = written = 0
        for shard in Part(number, of).share(decided.shards):
            written += shard.size
            requests += -(-shard.size // part_size(shard.size))
            for name in shard.names:
                for size in _reads(decided, steps[name]):
                    read += size
                    requests += max(1, -(-size // BLOCK))
        found.append(Share(read, written, requests))
    return found


def _reads(decided: Plan, step) -> list[int]:  # type: ignore[no-untyped-def]
    used: tuple[Source, ...] = (step.source,)
    if step.action == "merge":
        streamed = decided.streamed(step)
        used = (Source(BASE, step.source.name), *(streamed.sources if streamed else step.specialists))
    return [decided.inputs[one.label].tensors[one.name].nbytes for one in used]


def measured_costs(folder: Path, specialists: int, method: str, options: str, size: int) -> Costs:
    """Processor time of a real merge of random numbers, on this machine, whatever else it does meanwhile."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = size // (2 * 2048 * 16)
    base = {f"model.layers.{i}.mlp.weight": rng.standard_normal((rows, 2048)).astype(np.float16) for i in range(16)}
    for number, label in enumerate(["base", *(f"s{i}" for i in range(specialists))]):
        held = {name: value + np.float16(1e-3 * number) for name, value in base.items()}
        (folder / label).mkdir(exist_ok=True)
        save_file(held, folder / label / "model.safetensors")
    recipe = recipes.load(write_recipe(folder, specialists, method, options))
    decided = plan(recipe)
    execute(decided, recipe, folder / "warm", fresh=True)
    before = resource.getrusage(resource.RUSAGE_SELF)
    written = execute(decided, recipe, folder / "out", fresh=True)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Costs(seconds / written.bytes, written.bytes, method)


def predicted(costs: Costs, share: Share, bandwidth: float, cores: int, latency: float) -> float:
    """Seconds of one part: the network or the processor, whichever takes longer."""
    network = (share.read + share.written) / bandwidth + share.requests * latency / 12  # twelve at a time
    return max(network, share.written * costs.seconds_per_byte / cores)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--specialists", type=int, default=4)
    parser.add_argument("--method", default="ties")
    parser.add_argument("--options", default="density: 0.2")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--cores", type=int, default=16)
    parser.add_argument("--bandwidth", type=float, default=1e9, help="bytes a second of one worker")
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--measured", type=int, default=128 << 20, help="bytes of the model that costs are measured on")
    said = parser.parse_args()
    labels: Sequence[str] = ["base", *(f"s{number}" for number in range(said.specialists))]
    for label in labels:
        if not (said.work / label).exists():
            write_sparse(said.work / label, mixture(said.layers, said.experts, 7168, 2048))
    recipe = recipes.load(write_recipe(said.work, said.specialists, said.method, said.options))
    began = time.process_time()
    decided = plan(recipe)
    planned = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    costs = measured_costs(said.work / "measured", said.specialists, said.method, said.options, said.measured)
    rows = []
    for of in said.workers:
        found = shares(decided, of)
        times = [predicted(costs, share, said.bandwidth, said.cores, said.latency) for share in found]
        rows.append({
            "workers": of, "read": sum(share.read for share in found), "written": sum(share.written for share in found),
            "requests": sum(share.requests for share in found), "seconds": max(times),
            "bound": (decided.bytes_read + decided.bytes_written) / said.bandwidth / of,
            "seconds_of_the_plan": planned,
        })  # fmt: skip
    table = {
        "tensors": len(decided.steps), "files": len(decided.shards), "specialists": said.specialists,
        "method": said.method, "bytes_read": decided.bytes_read, "bytes_written": decided.bytes_written,
        "plan": {"processor_seconds": planned, "peak_memory": memory},
        "costs": asdict(costs), "cores": said.cores, "bandwidth": said.bandwidth, "latency": said.latency,
        "memory_of_a_worker": {"blocks": BUDGET, "upload": 6 * part_size(decided.shards[0].size)}, "workers": rows,
    }  # fmt: skip
    leave(table, said.out)


if __name__ == "__main__":
    main()
