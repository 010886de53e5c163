"""The README's picture: what fusing breaks and what recovery and rehearsal give back, from the committed results.

    python benchmarks/miniature/picture.py

Reads results/seed_*.json and writes docs/images/drift_and_repair.svg: medians over the seeds, whiskers from the lowest
to the highest.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import matplotlib
from table import COLUMNS, cells

HERE = Path(__file__).parent
ROWS = {
    "specialists": ("the specialist", "#8c8c8c"),
    "sum": ("fused: sum of task vectors", "#d1495b"),
    "sum_recovered": ("+ projector recovery", "#edae49"),
    "sum_recovered_rehearsed": ("+ rehearsal", "#30638e"),
}


def main() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "taskmerge", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot

    results = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("seed_*.json"))]
    order = ("audio", *(name for name in COLUMNS if name != "audio"))
    figure, axes = pyplot.subplots(figsize=(7.6, 2.9))
    width = 0.8 / len(ROWS)
    for place, (row, (title, color)) in enumerate(ROWS.items()):
        values = [[cells(result, row)[name] for result in results] for name in order]
        middle = [statistics.median(own) for own in values]
        spread = [[m - min(own) for m, own in zip(middle, values, strict=True)],
                  [max(own) - m for m, own in zip(middle, values, strict=True)]]  # fmt: skip
        at = [number + (place - (len(ROWS) - 1) / 2) * width for number in range(len(order))]
        axes.bar(at, middle, width * 0.92, yerr=spread, color=color, label=title,
                 error_kw={"lw": 0.8, "ecolor": "#444444"})  # fmt: skip
    axes.set_xticks(range(len(order)), order)
    axes.set_ylim(0, 1)
    axes.set_ylabel("recall@1, item to text")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.2, fontsize=8)
    figure.tight_layout()
    out = HERE.parents[1] / "docs" / "images" / "drift_and_repair.svg"
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(out)


if __name__ == "__main__":
    main()
