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
    """What the design expects of the system, beside what was measured: a line a seed, and the medians."""
    measured = [numbers for result in results if (numbers := _measured(result)) is not None]
    if not measured:
        return []
    names = list(EXPECTED)
    lines = ["| seed | " + " | ".join(EXPECTED.values()) + " |", "|---|" + "---|" * len(names)]
    for numbers in measured:
        lines.append(f"| {numbers['seed']:.0f} | " + " | ".join(_number(numbers.get(name)) for name in names) + " |")
    found = {name: [numbers[name] for numbers in measured if name in numbers] for name in names}
    medians = [_number(statistics.median(values) if values else None) for values in found.values()]
    return [*lines, "| median | " + " | ".join(medians) + " |"]


EXPECTED = {
    "audio": "audio specialist (>= 0.85)",
    "lost": "lost by the sum (>= 0.15)",
    "back": "share brought back (>= 0.97)",
    "moved": "visual scores moved by recovery (0)",
    **{f"gap_{name}": f"{name}: specialist - rehearsed (<= 0.03)" for name in COLUMNS},
}


def _measured(result: dict) -> dict[str, float] | None:
    own, fused, recovered = (cells(result, row) for row in ("specialists", "sum", "sum_recovered"))
    if not recovered or "audio" not in own:
        return None
    rehearsed = cells(result, "sum_recovered_rehearsed")
    return {
        "seed": result["seed"],
        "audio": own["audio"],
        "lost": own["audio"] - fused["audio"],
        "back": recovered["audio"] / own["audio"],
        "moved": max(abs(recovered[name] - fused[name]) for name in COLUMNS if name != "audio"),
        **{f"gap_{name}": own[name] - score for name, score in rehearsed.items() if name in own},
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
