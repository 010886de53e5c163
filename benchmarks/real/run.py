"""The paper's rows on real weights and real data, as far as two cores and a few minutes carry.

    python benchmarks/real/run.py --seeds 0 1 2 --work .bench/real

Needs pip and apt-get (download.py says what they fetch). Results go to benchmarks/real/results/: one JSON file a seed,
table.md with medians and ranges, trials.json and trials.md of recovery from few pairs.
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

from experiment import EVEN_WEIGHTS, PAPER_WEIGHTS, Seed
from table import write_table
from trials import run_trials, there_are, write_trials

from taskmerge.measuring.evaluation.table import EvaluationTable

RESULTS = Path(__file__).parent / "results"
FUSIONS = {
    "sum": {"method": "task_arithmetic"},
    "ties": {"method": "ties", "density": 0.2},
    "dare": {"method": "dare_linear", "density": 0.2},
    "protect": {"method": "task_arithmetic", "protect": ["audio_projector"]},
}
NOTED = (
    "seconds", "cpu_seconds", "steps", "trained", "frozen", "before", "after", "curves", "targets", "barred", "below",
    "arms", "kept", "reason",
)  # fmt: skip
"""What the results file says of a model, of what its stage reported: no paths."""
COVARIANCE_FUSIONS = {"regmean": {"method": "regmean"}, "actmat": {"method": "actmat"}}


def models(seed: Seed) -> Iterator[str]:
    """Makes every row's model in turn and yields its name."""
    seed.base()
    for modality in ("audio", "document", "image"):
        yield seed.specialist(modality).name
    yield seed.base().name
    yield seed.fused("sum", FUSIONS["sum"]).name
    yield from seed.recovered("sum")
    yield seed.rehearsed("sum_recovered").name
    for modality in PAPER_WEIGHTS:
        seed.statistics(modality)
    for name, merge in FUSIONS.items():
        yield seed.fused(name, merge).name
    for name, merge in COVARIANCE_FUSIONS.items():
        yield seed.fused(name, merge, EVEN_WEIGHTS).name
    yield seed.joint("joint_all", tuple(PAPER_WEIGHTS)).name


def run_seed(number: int, work: Path) -> None:
    """All rows of one seed, and its results file, rewritten after every row."""
    started = time.monotonic()
    seed = Seed(number, work, _say)
    for name in models(seed):
        seed.scores(name)
        write_results(seed)
    _say(f"seed {number}: all rows after {time.monotonic() - started:.0f} s")


def write_results(seed: Seed) -> None:
    """The results file of a seed, of the models that were scored."""
    scores = {
        path.name.removesuffix(".scores.json"): {
            row.set_name: {metric: interval.as_dict() for metric, interval in row.intervals.items()}
            for row in EvaluationTable.from_dict(json.loads(path.read_text())).results
        }
        for path in sorted(seed.folder.glob("*.scores.json"))
    }
    RESULTS.mkdir(exist_ok=True)
    made = {name: {key: facts[key] for key in NOTED if key in facts} for name, facts in seed.facts().items()}
    found = {"seed": seed.seed, "scores": scores, "made": made}
    (RESULTS / f"seed_{seed.seed}.json").write_text(json.dumps(found, indent=1) + "\n")


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench/real"), help="folder for downloads, data and models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draws", type=int, default=2, help="trials of recovery for each seed and number of pairs")
    parser.add_argument(
        "--only", choices=("rows", "trials", "tables"), help="a part of the work; tables: of what is there"
    )
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    seeds = [Seed(number, arguments.work, _say) for number in arguments.seeds]
    if arguments.only == "tables":
        for seed in seeds:
            write_results(seed)
        write_trials(there_are(seeds), RESULTS)
        print(write_table(RESULTS))
        return
    for number in arguments.seeds if arguments.only != "trials" else ():
        run_seed(number, arguments.work)
        print(write_table(RESULTS))
    if arguments.only != "rows":
        run_trials(seeds, arguments.draws, RESULTS)


if __name__ == "__main__":
    main()
