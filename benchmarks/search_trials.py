"""Trials of a search an hour, on models of MiniLM's size: merging in place alone, and with probes.

`python benchmarks/search_trials.py` writes benchmarks/results/search_trials.json and .md. Weights differ in every
trial, so that every tensor is merged again; "through the disk" is `execute` into a folder and opening it, to compare.
Seconds of processor are told beside those on the clock: the machine may have other work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from taskmerge.demo.unpacking import minilm
from taskmerge.embedders import open_embedder
from taskmerge.embedders.pairs import Pairs
from taskmerge.kernels import threads
from taskmerge.merging import execute, plan
from taskmerge.merging.bench import Bench
from taskmerge.recipes import Recipe, from_dict
from taskmerge.searching.live import LiveModel
from taskmerge.searching.scorer import Scorer

RESULTS = Path(__file__).parent / "results"
ASKED = {"sum": 5000, "ties": 2000}
CASES: dict[str, dict[str, Any]] = {
    "sum": {"method": "task_arithmetic"},
    "ties": {"method": "ties", "density": 0.2},
    "ties, density varied": {"method": "ties"},
    "actmat, scale varied": {"method": "actmat"},
}


def models(folder: Path) -> Path:
    """MiniLM and two specialists near it: real shapes, random task vectors."""
    base = minilm()
    shutil.copytree(base, folder / "base")
    tensors = load_file(base / "model.safetensors")
    for seed, name in enumerate(("a", "b"), start=1):
        generator = torch.Generator().manual_seed(seed)
        shutil.copytree(base, folder / name)
        moved = {
            key: value + 0.02 * value.std().nan_to_num() * torch.randn(value.shape, generator=generator)
            if value.is_floating_point() and value.numel() > 1
            else value
            for key, value in tensors.items()
        }
        save_file(moved, folder / name / "model.safetensors", {"format": "pt"})
    return folder


def recipes(folder: Path, case: str, merge: dict[str, Any]) -> Iterator[Recipe]:
    """One trial after the other, each with other numbers."""
    for number in itertools.count():
        share = 0.1 + 0.8 * ((number * 0.618) % 1)
        own = dict(merge)
        weights = {"a": share, "b": 1.0 - share}
        if "density" in case:
            own["density"] = share
        if "scale" in case:
            own["scale"], weights = share, {"a": 0.5, "b": 0.5}
        specialists = {name: {"model": name, "weight": weight} for name, weight in weights.items()}
        yield from_dict({"base": "base", "specialists": specialists, "merge": own, "output": {"path": "fused"}}, folder)


WORDS = (
    "a man woman dog bird house river city stone light red green small old quiet heavy runs sees holds under over near "
    "before after with from table window door road hill night morning paper water bread"
).split()


def words(count: int) -> Pairs:
    """Probes as long as a caption, eleven words, that look for the six words they begin with and one of their own."""
    rng = np.random.default_rng(0)
    rows = [[WORDS[place] for place in rng.integers(0, len(WORDS), 11)] for _ in range(count)]
    texts = [f"{' '.join(row[:6])} {number}" for number, row in enumerate(rows)]
    return Pairs("probes", "query", texts, [" ".join(row) for row in rows])


def timed(run: Callable[[], object], most: int, seconds: float) -> dict[str, float]:
    """Seconds a run, on the clock and of the processor, of as many as fit."""
    run()
    began, used, done = time.monotonic(), time.process_time(), 0
    while done < most and time.monotonic() - began < seconds:
        run()
        done += 1
    wall, processor = time.monotonic() - began, time.process_time() - used
    return {"trials": done, "seconds": wall / done, "processor": processor / done}


def measure(folder: Path, probes: int, seconds: float) -> dict[str, dict[str, float]]:
    """Case -> figures."""
    found: dict[str, dict[str, float]] = {}
    for case, merge in CASES.items():
        for name, row in measure_case(folder, case, merge, probes, seconds):
            found[name] = row
            print(name, row, flush=True)
    return found


def measure_case(
    folder: Path, case: str, merge: dict[str, Any], probes: int, seconds: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """(name, figures): in place, with probes, and through the disk."""
    trials = recipes(folder, case, merge)
    bench = Bench(next(trials))
    execute(bench.plan, bench.recipe, folder / "fused", fresh=True)
    live = LiveModel(bench, open_embedder(folder / "fused"), own=True)
    yield case, timed(lambda: live.become(bench.planned(next(trials))), 200, seconds)
    if case not in ASKED:
        return
    scorer = Scorer(live, {"probes": words(probes)}, ["to_text"], 32)

    def scored() -> None:
        scorer.moved(live.become(bench.planned(next(trials))))
        scorer.score()

    yield f"{case}, {probes} probes", timed(scored, 50, seconds)

    def through_the_disk() -> None:
        one = next(trials)
        execute(plan(one), one, folder / "fused", fresh=True)
        open_embedder(folder / "fused")

    yield f"{case}, through the disk", timed(through_the_disk, 20, seconds)


def table(found: dict[str, dict[str, float]], load: float) -> str:
    """The page of results."""
    rows = ["| trial | trials an hour | s a trial | s of processor | asked |", "|---|---|---|---|---|"]
    for case, row in found.items():
        asked = f"{ASKED[case]:,}" if case in ASKED else ""
        rows.append(
            f"| {case} | {3600 / row['seconds']:,.0f} | {row['seconds']:.3f} | {row['processor']:.3f} | {asked} |"
        )
    head = (
        "# Trials of a search an hour\n\nPrinted by `python benchmarks/search_trials.py`: two specialists of "
        f"all-MiniLM-L6-v2 (22.7 M entries, float32), {threads()} threads on {os.cpu_count()} cores. A load of "
        f"{load:.1f} stood on the machine when it began; seconds of the processor are of all threads together.\n"
    )
    return head + "\n" + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(models(Path(scratch)), options.probes, options.seconds)
    about = {"machine": platform.processor(), "cores": os.cpu_count(), "threads": threads(), "load": load}
    (RESULTS / "search_trials.json").write_text(json.dumps({"about": about, "trials": found}, indent=1) + "\n")
    (RESULTS / "search_trials.md").write_text(table(found, load))


if __name__ == "__main__":
    main()
