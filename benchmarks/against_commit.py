"""Fuse with this checkout and with another one, alternating: processor time and bits, side by side.

    git worktree add ../before COMMIT
    python benchmarks/against_commit.py .bench --before ../before

Writes against_commit.json and .md into --results, after every method; --limit makes it a gate. Both run as whole
processes on the same inputs, made when they are missing, with kernels and sha256 of inputs in a cache of their own that
a first run fills. Only ratios count: the clock of a machine changes from minute to minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

from fuse_vs_peers import METHODS, WEIGHTS
from processes import Cost, machine, run
from synthetic import make

HERE = Path(__file__).parent
HEADLINE = ("linear", "task_arithmetic", "dare_ties", "ties", "breadcrumbs", "della")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the other commit")
    parser.add_argument("--billions", type=float, default=0.494)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=HEADLINE)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for what was measured")
    parser.add_argument("--limit", type=float, help="fail when the best run takes more than this times as long")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    inputs = make(given.work / "inputs", "qwen2", given.billions, 3)
    checkouts = {"before": given.before.resolve(), "now": HERE.parent.resolve()}
    rows = []
    for method in given.methods:
        costs = measured(given.work.resolve(), inputs, method, checkouts, given.rounds)
        rows.append(row(given.work.resolve(), method, costs))
        write(rows, {name: revision(path) for name, path in checkouts.items()}, given)
        print(rows[-1], flush=True)
    slower = [r["method"] for r in rows if given.limit and float(str(r["ratio_of_best"])) > given.limit]
    if slower:
        raise SystemExit(f"slower than {given.limit} x the other commit: {', '.join(map(str, slower))}")


def measured(
    work: Path, inputs: list[Path], method: str, checkouts: dict[str, Path], rounds: int
) -> dict[str, list[Cost]]:
    """Each checkout in turn, round after round, after one run that fills its caches."""
    costs: dict[str, list[Cost]] = {name: [] for name in checkouts}
    for number in range(-1, rounds):
        for name, checkout in checkouts.items():
            recipe = work / f"{name}-{method}.yaml"
            base, *specialists = [str(path.resolve()) for path in inputs]
            named = {f"s{i}": {"model": path, "weight": WEIGHTS[i]} for i, path in enumerate(specialists)}
            merge = {"method": method, **METHODS[method]}
            output = {"path": str(work / f"{name}-out"), "dtype": "bfloat16"}
            recipe.write_text(json.dumps({"base": base, "specialists": named, "merge": merge, "output": output}))
            command = [sys.executable, "-m", "taskmerge", "fuse", str(recipe), "--fresh"]
            cost = run(
                ["env", "-C", str(checkout), *command],
                {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(work / f"{name}-cache")},
                work / f"{name}.log",
            )
            if number >= 0:
                costs[name].append(cost)
    return costs


def row(work: Path, method: str, costs: dict[str, list[Cost]]) -> dict[str, object]:
    cpu = {name: statistics.median(cost.cpu for cost in own) for name, own in costs.items()}
    best = {name: min(cost.cpu for cost in own) for name, own in costs.items()}
    digests = {name: digest(work / f"{name}-out") for name in costs}
    return {
        "method": method,
        **{f"cpu_{name}": round(seconds, 2) for name, seconds in cpu.items()},
        "ratio": round(cpu["now"] / cpu["before"], 3),
        "ratio_of_best": round(best["now"] / best["before"], 3),
        "same_bits": digests["now"] == digests["before"],
    }


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def revision(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write(rows: list[dict[str, object]], revisions: dict[str, str], given: argparse.Namespace) -> None:
    head = {"machine": machine(), "commits": revisions, "billions": given.billions, "rounds": given.rounds}
    (given.results / "against_commit.json").write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    lines = [
        f"Processor seconds of a whole `fuse`, {given.billions} B x 3 bf16 specialists, median of {given.rounds} "
        f"alternating runs; before: {revisions['before']}, now: {revisions['now']}.",
        "",
        "| method | before | now | ratio | of the best runs | same bits |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['method']} | {r['cpu_before']} | {r['cpu_now']} | {r['ratio']} | {r['ratio_of_best']} | "
            f"{'yes' if r['same_bits'] else 'no'} |"
            for r in rows
        ),
    ]
    (given.results / "against_commit.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
