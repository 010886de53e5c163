"""The results of all seeds as one table: medians, and the range from the worst seed to the best."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

COLUMNS = ("image", "document", "audio", "audio, unheard language", "image, unseen captions")
ROWS = {
    "base": "base (MiniLM + picture tower)",
    "joint_all": "joint training I+D+A",
    "specialists": "specialists, each on its own",
    "sum": "direct fusion: sum, 0.3/0.3/0.5",
    "found": "direct fusion: sum, weights that search found",
    "ties": "direct fusion: TIES",
    "dare": "direct fusion: DARE",
    "protect": "protect audio",
    "regmean": "regmean",
    "actmat": "actmat",
    "sum_recovered_closed_form": "sum + recovery, closed form with pairs",
    "sum_recovered_label_free": "sum + recovery, closed form without labels",
    "sum_recovered_gradient": "sum + recovery, gradient",
    "sum_recovered_warm": "sum + recovery, gradient from the closed form",
    "sum_recovered": "sum + recovery, what the tool keeps",
    "found_recovered": "weights that search found + recovery, what the tool keeps",
    "sum_recovered_rehearsed": "sum + recovery + rehearsal",
}


def cells(result: dict[str, Any], row: str, metric: str) -> dict[str, float]:
    """A metric by set of one row in one seed; the specialists' row takes each from its own specialist."""
    if row != "specialists":
        return {name: score[metric]["estimate"] for name, score in result["scores"].get(row, {}).items()}
    found = {}
    for name in COLUMNS:
        own = result["scores"].get(f"specialist_{name.partition(',')[0]}", {})
        if name in own:
            found[name] = own[name][metric]["estimate"]
    return found


def write_table(folder: Path) -> str:
    """Markdown of all seeds in a folder; also written to table.md there."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("seed_*.json"))]
    text = (
        "\n\n".join(_table(results, metric, title) for metric, title in METRICS.items()) + "\n\n" + _findings(results)
    )
    (folder / "table.md").write_text(text)
    return text


METRICS = {"recall_at_1": "Recall@1", "recall_at_10": "Recall@10"}


def _table(results: list[dict[str, Any]], metric: str, title: str) -> str:
    seeds = ", ".join(str(result["seed"]) for result in results)
    spread = "median (lowest-highest)" if len(results) > 1 else "with the 95 % interval over texts"
    lines = [
        f"{title}, item to text, seed(s) {seeds}: {spread}.",
        "",
        "| variant | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for row, name in ROWS.items():
        found = [cells(result, row, metric) for result in results]
        if any(found):
            shown = [
                _cell(results, row, column, metric, [own[column] for own in found if column in own])
                for column in COLUMNS
            ]
            of = [str(result["seed"]) for result, own in zip(results, found, strict=True) if own]
            only = "" if len(of) == len(results) else f" (seed {', '.join(of)} only)"
            lines.append(f"| {name}{only} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _cell(results: list[dict[str, Any]], row: str, column: str, metric: str, values: list[float]) -> str:
    if not values:
        return ""
    if len(results) > 1:
        return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"
    own = f"specialist_{column.partition(',')[0]}" if row == "specialists" else row
    interval = results[0]["scores"][own][column][metric]
    return f"{values[0]:.3f} ({interval['low']:.3f}-{interval['high']:.3f})"


def _findings(results: list[dict[str, Any]]) -> str:
    """The paper's story in numbers, a line a seed."""
    lines = [
        "| seed | audio specialist | lost by the sum | share brought back | visual scores moved by recovery | "
        "specialist - rehearsed: image, document, audio |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        own, fused, recovered, rehearsed = (
            cells(result, row, "recall_at_1")
            for row in ("specialists", "sum", "sum_recovered", "sum_recovered_rehearsed")
        )
        if "audio" not in own or "audio" not in fused or "audio" not in recovered:
            continue
        moved = max(abs(recovered[name] - fused[name]) for name in COLUMNS if not name.startswith("audio"))
        gaps = ", ".join(
            f"{own[name] - rehearsed[name]:+.3f}" for name in COLUMNS[:3] if name in rehearsed and name in own
        )
        lines.append(
            f"| {result['seed']} | {own['audio']:.3f} | {own['audio'] - fused['audio']:+.3f} | "
            f"{recovered['audio'] / own['audio'] if own['audio'] else float('nan'):.2f} | {moved:.3f} | {gaps} |"
        )
    return "\n".join(lines) + "\n"
