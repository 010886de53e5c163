"""What the plan of a mixture of 61 x 256 experts takes, here and in another checkout: processor time and memory.

    python benchmarks/scale/planning.py WORK --against ../taskmerge-before --out results.json

Every case is planned by both in turn, each time in a process of its own, which imports nothing else; of all rounds the
least processor time counts, since others work on the machine too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from results import arguments

HERE = Path(__file__).parents[2]
PLAN = """\
import json, resource, sys, time
from taskmerge import recipes
from taskmerge.merging import plan
recipe = recipes.load(sys.argv[1])
began = time.process_time()
decided = plan(recipe)
seconds = time.process_time() - began
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_memory": memory, "tensors": len(decided.steps)}))
"""
CASES = {"fp8, 2 specialists": (2, 0), "fp8, 4 specialists": (4, 0), "fp8, 2 specialists, 64 groups": (2, 64),
         "fp8, 2 specialists, 256 groups": (2, 256)}  # fmt: skip


def write_recipe(work: Path, specialists: int, groups: int) -> Path:
    """A recipe of `specialists`, with other weights for every one of `groups` groups of experts."""
    rows = "\n".join(f"  s{number}: {{model: s{number}, weight: 0.5}}" for number in range(specialists))
    size = 256 // max(groups, 1)
    rules = "\n".join(
        f"    - {{match: '*.mlp.experts.{{{at}..{at + size - 1}}}.*', weight: {0.1 + at / 1000:.3f}}}"
        for at in range(0, size * groups, size)
    )
    path = work / f"recipe-{specialists}-{groups}.yaml"
    path.write_text(
        f"base: base\nspecialists:\n{rows}\nmerge:\n  method: ties\n  density: 0.2\n"
        + (f"  rules:\n{rules}\n" if groups else "")
        + "output: {path: out, quantized: true}\n"
    )
    return path


def planned(checkout: Path, recipe: Path) -> dict[str, Any]:
    """What the plan takes in a process that imports one checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.absolute())}
    words = [sys.executable, "-c", PLAN, str(recipe.absolute())]
    done = subprocess.run(words, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--against", type=Path, help="another checkout; left out: this one alone")
    parser.add_argument("--rounds", type=int, default=2)
    said = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from shapes import mixture, write_sparse

    stored = 0
    for label in ("base", "s0", "s1", "s2", "s3"):
        if not (said.work / label).exists():
            stored, _ = write_sparse(said.work / label, mixture(61, 256, 7168, 2048, "F8_E4M3", scales=True))
    stored = stored or len(json.loads((said.work / "base" / "model.safetensors.index.json").read_text())["weight_map"])
    rows = []
    for case, (specialists, groups) in CASES.items():
        recipe = write_recipe(said.work, specialists, groups)
        sides = {"here": HERE} | ({"against": said.against} if said.against else {})
        best: dict[str, dict[str, Any]] = {}
        for _ in range(said.rounds):
            for side, checkout in sides.items():
                found = planned(checkout, recipe)
                if side not in best or found["seconds"] < best[side]["seconds"]:
                    best[side] = found
        row: dict[str, Any] = {"case": case, **best}
        if said.against:
            assert best["here"]["tensors"] == best["against"]["tensors"]
            row["of_before"] = {what: round(best["here"][what] / best["against"][what], 3)
                                for what in ("seconds", "peak_memory")}  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
        table = {"tensors_stored_by_each_model": stored, "load": os.getloadavg()[0], "rows": rows}
        if said.out:
            said.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
