"""Weights found on the miniature, against the paper's: before and after recovery, on test sets no search has seen.

    python benchmarks/miniature/search.py --seeds 0 1 2 --work .bench/miniature

Takes up the specialists that `run.py` left in the work folder, or trains them. The search looks at validation pairs
alone; the test pairs confirm. Writes results/search_seed_N.json and results/search.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiment import PAPER_WEIGHTS, Seed

from taskmerge import search
from taskmerge.recipes import from_dict
from taskmerge.searching.outcome import Outcome

RESULTS = Path(__file__).parent / "results"
VARY = {
    "weights": {"specialists.*.weight": [0.1, 1.2]},
    "weights and method": {
        "specialists.*.weight": [0.1, 1.2],
        "merge.method": ["task_arithmetic", "ties", "actmat"],
        "merge.density": [0.1, 0.9],
    },
}
FLOOR = -0.1
"""Most MRR that a modality may lose against its specialist."""


def searched(seed: Seed, name: str, floors: bool, trials: int) -> Outcome:
    """One search over the four specialists, starting from the paper's weights."""
    recipe = from_dict(
        {
            "base": str(seed.base()),
            "specialists": {
                modality: {"model": str(seed.specialist(modality)), "weight": weight}
                for modality, weight in PAPER_WEIGHTS.items()
            },
            "output": {"path": str(seed.folder / "searched")},
            "seed": seed.seed,
        },
        folder=seed.folder,
    )
    modalities = tuple(PAPER_WEIGHTS)
    return search(
        recipe,
        vary=VARY[name],
        on={modality: str(path) for modality, path in seed.sets(modalities, "validation").items()},
        confirm={modality: str(path) for modality, path in seed.sets(modalities, "test").items()},
        floor=dict.fromkeys(modalities, FLOOR) if floors else None,
        trials=trials,
        out=seed.folder / f"search_{name.replace(' ', '_')}{'_floors' if floors else ''}",
        say=lambda text: print(text, flush=True),
    )


def run_seed(number: int, work: Path, trials: int) -> dict[str, Any]:
    """Every search of one seed, and recovery on top of the paper's sum and of the best found."""
    seed = Seed(number, work / f"seed_{number}", lambda text: print(text, flush=True))
    found: dict[str, Any] = {}
    for name in VARY:
        for floors in (False, True):
            outcome = searched(seed, name, floors, trials)
            confirmed = outcome.confirmed[0]
            found[f"{name}{', floors' if floors else ''}"] = {
                "best": dict(outcome.best.values) if outcome.best else None,
                "gain": confirmed.gain.as_dict(),
                "gain where searched": confirmed.dev_gain.as_dict(),
                "scores": dict(confirmed.scores),
                "floors": {key: left.as_dict() for key, left in confirmed.floors.items()},
                "sentences": outcome.sentences(),
            }
            if name == "weights" and not floors and outcome.recipe is not None:
                weights = {label: row.weight for label, row in outcome.recipe.specialists.items()}
                seed.fused("found", {"method": "task_arithmetic"}, weights)  # type: ignore[arg-type]
    seed.fused("sum", {"method": "task_arithmetic"})
    for name in ("sum", "found"):
        seed.recovered(name)
        for model in (name, f"{name}_recovered"):
            table = seed.scores(model)
            found[model] = {one: table.get(model, one, "mrr").as_dict() for one in PAPER_WEIGHTS}
    return found


def table(seeds: dict[int, dict[str, Any]]) -> str:
    """Medians over the seeds: models down, modalities across."""
    names = list(PAPER_WEIGHTS)
    rows = [f"| model | {' | '.join(names)} | mean |", "|---" * (len(names) + 2) + "|"]
    for model, said in {"sum": "0.3 / 0.3 / 0.3 / 0.5", "sum_recovered": "… recovered", "found": "weights found",
                        "found_recovered": "… recovered"}.items():  # fmt: skip
        means = [statistics.median(found[model][name]["estimate"] for found in seeds.values()) for name in names]
        rows.append(f"| {said} | {' | '.join(f'{mean:.3f}' for mean in means)} | {statistics.mean(means):.3f} |")
    lines = [
        f"- seed {number}, {name}: {row['sentences'][1] if len(row['sentences']) > 1 else row['sentences'][0]}"
        for number, found in seeds.items()
        for name, row in found.items()
        if "sentences" in row
    ]
    head = f"# Weights found on the miniature\n\nMRR on the test sets, medians of {len(seeds)} seeds.\n"
    return "\n".join([head, *rows, "", *lines]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench/miniature"))
    parser.add_argument("--trials", type=int, default=60)
    options = parser.parse_args()
    seeds = {}
    for number in options.seeds:
        seeds[number] = run_seed(number, options.work, options.trials)
        (RESULTS / f"search_seed_{number}.json").write_text(json.dumps(seeds[number], indent=1) + "\n")
        (RESULTS / "search.md").write_text(table(seeds))


if __name__ == "__main__":
    main()
