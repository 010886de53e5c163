"""Weights that `search` finds on the real weights, against the paper's 0.3 / 0.3 / 0.5: before and after recovery.

    python benchmarks/real/search.py --seeds 0 1 2 --work .bench/real

Takes the models that `run.py` made, and makes none of them. The search looks at views of pictures that were trained on
and at the captions of validation, of audio at the recordings that recovery is not given; other views and the captions
of the test confirm. Writes results/search_seed_N.json and results/search.md;
`run.py --only tables` takes the models of the weights found into its own table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

from experiment import PAPER_WEIGHTS, REPAIR_PAIRS, Seed
from run import RESULTS, _say
from weights_found import SEARCHES, WIDE_FLOOR, Specialists, merge_of, page, row, specialists_row

ROWS = {
    "specialists": "specialists, each on its own",
    "sum": "sum, 0.3 / 0.3 / 0.5",
    "sum_recovered": "sum, recovered with 100 new recordings: what the tool keeps",
    "sum_recovered_own": "sum, recovered with the specialist's own recordings",
    **{one.name: one.said for one in SEARCHES},
    "found_recovered": "weights found, recovered with 100 new recordings: what the tool keeps",
    "found_recovered_own": "weights found, recovered with the specialist's own recordings",
}
STEPS = {
    "sum": (),
    "sum_recovered": ("sum",),
    "sum_recovered_own": ("sum",),
    "found_recovered": ("sum", "weights", "sum_recovered"),
    "found_recovered_own": ("sum", "weights", "sum_recovered_own"),
    "weights": ("sum", "sum_recovered", "sum_recovered_own"),
}
"""Model -> those that it is compared with; the others with the sum."""
ABOUT = (
    "Printed by `python benchmarks/real/search.py`: image, document and audio specialists of MiniLM, item to text. "
    "A search is told nothing but its own sets: new views of pictures that were trained on, pages and recordings of "
    "captions that nothing was trained on. The test has other views of those pictures, and pages and recordings of "
    "captions that neither the search nor any training has seen; with more views and pages than the table of the "
    f"paper, since the models compared differ by little. The {REPAIR_PAIRS} recordings that recovery is given are not "
    "among them; the other voice of their captions may be."
)


def specialists(seed: Seed) -> Specialists:
    """What is searched over; stops where `run.py` has not been yet."""
    names = tuple(PAPER_WEIGHTS)
    _there(seed, "base", *(f"specialist_{name}" for name in names))
    folder = seed.folder / "search"
    folder.mkdir(exist_ok=True)
    for name in names:
        seed.statistics(name)
    dev = {**seed.searched("search"), "audio": _audio(seed, folder)}
    test = {**seed.searched("confirm"), "audio": seed.path("audio", "test")}
    models = {name: seed.specialist(name) for name in names}
    return Specialists(folder, seed.seed, seed.base(), models, PAPER_WEIGHTS, dev, test, seed.say)


def _there(seed: Seed, *names: str) -> None:
    for name in names:
        if not (seed.folder / f"{name}.done.json").is_file():
            raise SystemExit(f"seed {seed.seed}: {name} is missing: run.py --seeds {seed.seed} --only rows makes it")


def _audio(seed: Seed, folder: Path) -> Path:
    """The validation's recordings without those that recovery is given."""
    out = folder / "audio_dev.jsonl"
    given = {str(item) for item in seed.repair_pairs(REPAIR_PAIRS).items}
    lines = seed.path("audio", "validation").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["audio"] not in given)
    if not out.is_file() or out.read_text() != kept:  # a file with a new time is another one to a search taken up again
        out.write_text(kept)
    return out


def run_seed(seed: Seed, names: Sequence[str], trials: int, recovery: bool) -> dict[str, Any]:
    """Searches of one seed, and recovery on top of the paper's sum and of the weights found."""
    own = specialists(seed)
    searches = {one.name: own.found(one, trials) for one in SEARCHES if one.name in names}
    scored = own.found_points(searches)
    if found := searches.get("weights"):
        _forget_others(seed, own.folder, found["weights"])
        seed.fused("found", merge_of(found), found["weights"])
        seed.scores("found")
    if found and recovery:
        _there(seed, "sum", "sum_recovered")
        next(seed.recovered("found"))
        seed.scores("found_recovered")
        for name in ("sum", "found"):
            seed.recovered_with_own(name)
            for model in (f"{name}_recovered", f"{name}_recovered_own"):
                scored[model] = own.measured(seed.folder / model)
    rows = {
        name: row(one, {other: scored[other] for other in STEPS.get(name, ("sum",)) if other in scored})
        for name, one in scored.items()
    }
    return {"seed": seed.seed, "rows": {"specialists": specialists_row(own), **rows}, "searches": searches}


def _forget_others(seed: Seed, folder: Path, weights: dict[str, float]) -> None:
    """Remove the models of weights that an earlier search found, and their scores."""
    kept = folder / "found_weights.json"
    if kept.is_file() and json.loads(kept.read_text()) == weights:
        return
    for path in (*seed.folder.glob("found*"), *(folder / "measured").glob("found*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept.write_text(json.dumps(weights))


def write_page() -> str:
    """search.md of all seeds there are."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("search_seed_*.json"))]
    text = page({found["seed"]: found for found in results}, ROWS, "Weights found on real weights and data", ABOUT)
    (RESULTS / "search.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench/real"))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    names = [one.name for one in SEARCHES if one.floor != WIDE_FLOOR]
    parser.add_argument("--searches", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--no-recovery", action="store_true", help="the searches alone")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    for number in options.seeds:
        seed = Seed(number, options.work, _say)
        found = run_seed(seed, options.searches, options.trials, not options.no_recovery)
        (RESULTS / f"search_seed_{number}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(write_page())


if __name__ == "__main__":
    main()
