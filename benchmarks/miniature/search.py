"""Weights found on the miniature, against the paper's: before and after recovery, on test sets no search has seen.

    python benchmarks/miniature/search.py --seeds 0 1 2 --work .bench/miniature

Reuses the specialists that `run.py` left in the work folder, or trains them (twenty minutes of one core a seed). The
search looks at validation pairs alone; the test pairs confirm. Three searches vary weights alone; the two that also
vary method and density are run when `--searches` names them. Writes results/search_seed_N.json and results/search.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

from experiment import PAPER_WEIGHTS, Seed
from weights_found import SEARCHES, Specialists, merge_of, page, row, specialists_row

RESULTS = Path(__file__).parent / "results"
ROWS = {
    "specialists": "specialists, each on its own",
    "sum": "sum, 0.3 / 0.3 / 0.3 / 0.5",
    "sum_recovered": "sum, recovered",
    **{one.name: one.said for one in SEARCHES},
    "found_recovered": "weights found, recovered",
}
STEPS = {"sum": (), "weights": ("sum", "sum_recovered"), "found_recovered": ("sum", "weights", "sum_recovered")}
"""Model -> those that it is compared with; the others with the sum."""
ABOUT = (
    "Printed by `python benchmarks/miniature/search.py`: four specialists, item to text. A search is told nothing but "
    "the validation sets; recovery trains on the audio specialist's own recordings and keeps its best look at them."
)


def specialists(seed: Seed) -> Specialists:
    """What is searched over."""
    names = tuple(PAPER_WEIGHTS)
    models = {name: seed.specialist(name) for name in names}
    for name in names:
        seed.statistics(name)
    folder = seed.folder / "search"
    folder.mkdir(exist_ok=True)
    return Specialists(
        folder, seed.seed, seed.base(), models, PAPER_WEIGHTS, seed.sets(names, "validation"), seed.sets(names, "test"),
        seed.say,
    )  # fmt: skip


def run_seed(seed: Seed, trials: int, names: Sequence[str]) -> dict[str, Any]:
    """The searches of one seed, and recovery on top of the paper's sum and of the weights found."""
    own = specialists(seed)
    searches = {one.name: own.found(one, trials) for one in SEARCHES if one.name in names}
    scored = own.found_points(searches)
    found = searches["weights"]
    seed.fused("sum", {"method": "task_arithmetic"})
    seed.fused("found", merge_of(found), found["weights"])
    for name in ("sum", "found"):
        scored[f"{name}_recovered"] = own.measured(seed.recovered(name))
    rows = {name: row(one, {other: scored[other] for other in STEPS.get(name, ("sum",)) if other != name})
            for name, one in scored.items()}  # fmt: skip
    return {"seed": seed.seed, "rows": {"specialists": specialists_row(own), **rows}, "searches": searches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench/miniature"))
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument(
        "--searches",
        nargs="+",
        choices=[one.name for one in SEARCHES],
        default=["weights", "weights_floors", "weights_wide_floors"],
    )
    options = parser.parse_args()
    seeds = {}
    for number in options.seeds:
        seed = Seed(number, options.work / f"seed_{number}", lambda text: print(text, flush=True))
        seeds[number] = run_seed(seed, options.trials, options.searches)
        (RESULTS / f"search_seed_{number}.json").write_text(json.dumps(seeds[number], indent=1) + "\n")
        (RESULTS / "search.md").write_text(page(seeds, ROWS, "Weights found on the miniature", ABOUT))


if __name__ == "__main__":
    main()
