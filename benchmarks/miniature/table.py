"""The results of all seeds as one table: medians, and the range from the worst seed to the best."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

COLUMNS = ("image", "document", "video", "audio")
ROWS = {
    "base": "base (MiniLM + picture tower)",
    "joint_visual": "joint training I+D+V",
    "joint_all": "joint training I+D+V+A",
    "specialists": "specialists, each on its own",
    "sum": "direct fusion: sum, 0.3/0.3/0.3/0.5",
    "ties": "direct fusion: TIES",
    "dare": "direct fusion: DARE",
    "sum_recovered": "sum + projector recovery, gradient",
    "sum_closed_form": "sum + projector recovery, closed form with pairs",
    "sum_label_free": "sum + projector recovery, closed form without labels",
    "sum_recovered_rehearsed": "sum + recovery + rehearsal",
    "regmean": "regmean",
    "regmean_recovered": "regmean + recovery",
    "actmat": "actmat",
    "actmat_recovered": "actmat + recovery",
    "protect": "protect audio",
    "protect_recovered": "protect audio + recovery",
}


def cells(result: dict, row: str) -> dict[str, float]:
    """Recall@1 by modality of one row in one seed; the specialists' row takes each from its own specialist."""
    if row != "specialists":
        return {name: score["recall_at_1"]["estimate"] for name, score in result["scores"].get(row, {}).items()}
    return {
        name: result["scores"][f"specialist_{name}"][name]["recall_at_1"]["estimate"]
        for name in COLUMNS
        if f"specialist_{name}" in result["scores"]
    }


def write_table(folder: Path) -> str:
    """Markdown of all seeds in a folder; also written to table.md there."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("seed_*.json"))]
    lines = [
        f"Recall@1, item to text, {len(results)} seed(s): median (lowest-highest).",
        "",
        "| variant | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for row, title in ROWS.items():
        found = [cells(result, row) for result in results]
        if not any(found):
            continue
        lines.append(
            f"| {title} | "
            + " | ".join(_cell([cell[name] for cell in found if name in cell]) for name in COLUMNS)
            + " |"
        )
    lines += ["", *findings(results)]
    text = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(text)
    return text


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def findings(results: list[dict]) -> list[str]:
    """What the design expects of the system, beside what was measured, one line a seed."""
    lines = [
        "| seed | audio specialist (>= 0.85) | lost by the sum (>= 0.15) | brought back (>= 97 %) "
        "| visual scores after recovery | largest gap to a specialist after rehearsal (<= 0.03) |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        own, fused, recovered = (cells(result, row) for row in ("specialists", "sum", "sum_recovered"))
        rehearsed = cells(result, "sum_recovered_rehearsed")
        if not recovered or "audio" not in own:
            continue
        same = all(recovered[name] == fused[name] for name in COLUMNS if name != "audio")
        gaps = {name: own[name] - score for name, score in rehearsed.items() if name in own}
        worst = max(gaps, key=lambda name: gaps[name]) if gaps else None
        lines.append(
            f"| {result['seed']} | {own['audio']:.3f} | {own['audio'] - fused['audio']:.3f} "
            f"| {100 * recovered['audio'] / own['audio']:.1f} % | {'unchanged' if same else 'changed'} "
            f"| {f'{gaps[worst]:.3f} ({worst})' if worst else 'not run'} |"
        )
    return lines
