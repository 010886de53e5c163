"""From an outcome to the sections of its report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal

from taskmerge.metrics.bootstrap import Interval
from taskmerge.recipes.axes import WEIGHT, Axis
from taskmerge.reporting.content import (
    Banner,
    Block,
    Cell,
    Dot,
    HeatMap,
    Line,
    LineChart,
    ScatterChart,
    Section,
    Table,
    Texts,
    Tone,
)
from taskmerge.searching.findings import Confirmed, Curve, cells
from taskmerge.searching.outcome import Outcome
from taskmerge.searching.points import Point
from taskmerge.searching.references import OWN
from taskmerge.searching.setting import Setting

BEST = "best.yaml"
"""The best point's recipe, in the study's folder."""
COPIED = 400
"""Recipes to copy from the page, more than most searches have points; the JSON has those of all."""
Row = Sequence[Cell | str]


def lead(outcome: Outcome, setting: Setting) -> str:
    """Return the sentence under the title."""
    trials = sum(not point.name.startswith("only ") for point in outcome.points)
    pairs = ", ".join(f"{len(found)} {name}" for name, found in setting.pairs.items())
    on = f" on {pairs} pairs" if pairs else ""
    return f"{trials} merges, {' and '.join(outcome.objectives)}{on}."


def sections(outcome: Outcome, setting: Setting) -> list[Section]:
    """Return the sections of the page."""
    found = [Section("Findings", tuple(_banners(outcome)))]
    if outcome.confirmed:
        found.append(Section("On new pairs", (_confirmed(outcome, setting),)))
    found.append(Section("All numbers together", tuple(_planes(outcome, setting))))
    found.append(Section("One number at a time", tuple(_curves(outcome))))
    found.append(Section("Importance", tuple(_importances(outcome))))
    found.append(Section("All points", (_points(outcome, setting), *_recipes(outcome))))
    return found


def _banners(outcome: Outcome) -> list[Block]:
    blocks: list[Block] = []
    if outcome.best is None:
        blocks.append(Banner("bad", "No point meets the floors", "The table lists by how much each point misses them."))
    else:
        said = ", ".join(f"{name} {_text(value)}" for name, value in outcome.best.values.items())
        moves = [f"taskmerge fuse {shlex.quote(str(outcome.folder / BEST))}"]
        tone, head = verdict_of(
            outcome.best.name, outcome.confirmed[0] if outcome.confirmed else None, outcome.objectives
        )
        blocks.append(Banner(tone, head, said or "the unchanged recipe", moves))
    for one in outcome.confirmed[:1]:
        blocks.append(Banner("plain", "Against the recipe's own weights", one.sentence()))
        blocks += [Banner("bad", "A floor is not met", line) for line in one.floor_sentences()]
    lines = [*(curve.sentence() for curve in outcome.curves), *(one.sentence() for one in outcome.correlations)]
    rows: list[Row] = [[line] for line in (*lines, *outcome.notes)]
    return [*blocks, *([Table("Notes", [""], rows)] if rows else [])]


def verdict_of(best: str, confirmed: Confirmed | None, objectives: Sequence[str]) -> tuple[Tone, str]:
    """Whether to use the best point, as new pairs decide. Of several objectives only the first is confirmed, which
    decides nothing about the others."""
    if confirmed is None or best == OWN:
        return "plain", f"Best: {best}"
    gain = f"{confirmed.gain.estimate:+.3f} ({confirmed.gain.low:+.3f} to {confirmed.gain.high:+.3f}) on new pairs"
    if len(objectives) > 1:
        return "plain", f"Best over all objectives: {best}; {objectives[0]} {gain}"
    if confirmed.gain.low > 0:
        return "good", f"Use {best}: {gain}"
    if confirmed.gain.high < 0:
        return "bad", f"Keep your own weights: {best} changes {gain}"
    return "open", f"Best, but not significantly better than your own weights: {best}, {gain}"


def _confirmed(outcome: Outcome, setting: Setting) -> Table:
    names = [name for name in outcome.confirmed[0].scores if name.endswith(".mrr") and name != outcome.objectives[0]]
    rows: list[Row] = []
    for one in outcome.confirmed:
        floors = [_above(one.floors[name]) for name in setting.section.floor]
        own = [Cell(f"{one.scores[name]:.4f}") for name in names]
        rows.append([one.point, _with(one.result), _change(one.gain), _change(one.dev_gain), *own, *floors])
    columns = ["point", outcome.objectives[0], "gain over own weights", "gain on search pairs", *names]
    columns += [f"above floor {name}" for name in setting.section.floor]
    note = (
        "95 % paired bootstrap intervals over the same queries; bold: the interval excludes zero. Own "
        "weights: those of the recipe."
    )
    return Table("The best points", columns, rows, note)


def _planes(outcome: Outcome, setting: Setting) -> list[Block]:
    """Points in the plane of two objectives or modalities, and heat maps of the two numbers, and of the two weights,
    that matter most."""
    blocks: list[Block] = []
    scored = [point for point in outcome.points if point.state == "scored"]
    names, places = _plane(outcome, setting, scored)
    if names:
        on_front = {point.name for point in outcome.front}
        dots = [
            Dot(point.name, *places[point.name], _kind(point, on_front)) for point in scored if point.name in places
        ]
        note = "Corners: each specialist alone, and the recipe's own weights. Orange: no point is better in both."
        blocks.append(ScatterChart("Pareto front", names[0], names[1], _joined(dots), note))
    weight = outcome.importances[0] if outcome.importances else {}
    numbers = [axis for axis in setting.axes if axis.bounds is not None]
    numbers.sort(key=lambda axis: -weight.get(axis.name, 0.0))
    weights = [axis for axis in numbers if axis.option == WEIGHT]
    pairs = [axes[:2] for axes in (numbers, weights) if len(axes) > 1]
    for across, down in pairs if pairs[1:] != pairs[:1] else pairs[:1]:
        blocks += [_heat(scored, across, down, at, text) for at, text in enumerate(outcome.objectives)]
    return blocks


def _plane(
    outcome: Outcome, setting: Setting, scored: Sequence[Point]
) -> tuple[tuple[str, str] | None, dict[str, tuple[float, float]]]:
    """The two axes, and the place of each point: two objectives, else the scores of two modalities."""
    if len(outcome.objectives) > 1:
        found = {point.name: (point.results[0], point.results[1]) for point in scored}
        return (outcome.objectives[0], outcome.objectives[1]), found
    names = [f"retrieval.{name}.mrr" for name in setting.pairs]
    if len(names) < 2:
        return None, {}
    having = [point for point in scored if set(names[:2]) <= point.scores.keys()]
    return (names[0], names[1]), {one.name: (one.scores[names[0]], one.scores[names[1]]) for one in having}


def _kind(point: Point, on_front: set[str]) -> Literal["front", "corner", "plain"]:
    if point.name == OWN or point.name.startswith("only "):
        return "corner"
    return "front" if point.name in on_front else "plain"


def _joined(dots: Sequence[Dot]) -> list[Dot]:
    """The dots, with those on the front of this plane marked so."""
    shown = []
    for dot in dots:
        beaten = any(
            other.x >= dot.x and other.y >= dot.y and (other.x, other.y) != (dot.x, dot.y)
            for other in dots
            if other.kind != "corner"
        )
        kind = dot.kind if dot.kind == "corner" else "plain" if beaten else "front"
        shown.append(Dot(dot.name, dot.x, dot.y, kind))
    return shown


def _heat(scored: Sequence[Point], across: Axis, down: Axis, objective: int, text: str) -> HeatMap:
    x_edges, y_edges, rows = cells(scored, across, down, objective)
    note = (
        "The mean of all trials in each cell, whatever the values of the other numbers; outlined cells have no trials."
    )
    kind = "weights" if across.option == down.option == WEIGHT else "numbers"
    return HeatMap(f"{text} by two {kind}", across.name, down.name, x_edges, y_edges, rows, note)


def _curves(outcome: Outcome) -> list[Block]:
    """One chart an axis, with a line an objective."""
    by_axis: dict[str, list[Curve]] = {}
    for curve in outcome.curves:
        by_axis.setdefault(curve.axis, []).append(curve)
    return [block for curves in by_axis.values() for block in _axis(curves, outcome)]


def _axis(curves: Sequence[Curve], outcome: Outcome) -> list[Block]:
    axis, only = curves[0].axis, outcome.objectives[0]
    note = (
        f"{'. '.join(curve.sentence() for curve in curves)}. All other numbers as in the best trial; 95 % "
        "bootstrap intervals."
    )
    numbers = [point for point in curves[0].points if not isinstance(point.value, str)]
    if len(numbers) == len(curves[0].points):
        lines = [
            Line(
                curve.objective or only,
                [(float(point.value), point.result) for point in curve.points],
                [(point.interval.low, point.interval.high) for point in curve.points],
            )
            for curve in curves
        ]
        label = only if len(curves) == 1 else ""
        return [LineChart(axis, axis, label, lines, note=note)]
    tables: list[Block] = []
    for curve in curves:
        rows: list[Row] = [[str(row.value), _with(row.interval), _change(row.difference)] for row in curve.points]
        title = f"{axis}, {curve.objective}" if curve.objective else axis
        columns = [axis, curve.objective or only, "against the best"]
        tables.append(Table(title, columns, rows, note if curve is curves[-1] else ""))
    return tables


def _importances(outcome: Outcome) -> list[Block]:
    blocks: list[Block] = []
    for text, shares in zip(outcome.objectives, outcome.importances, strict=True):
        rows: list[Row] = [[name, Cell(f"{share:.2f}", share=share)] for name, share in shares.items()]
        if rows:
            note = "Share of the difference between the better trials and the others (PED-ANOVA, arXiv 2304.10255)."
            blocks.append(Table(text, ["varied", "share"], rows, note))
    return blocks


def _points(outcome: Outcome, setting: Setting) -> Table:
    names = list(dict.fromkeys(name for point in outcome.points for name in point.scores))
    names = [name for name in names if not name.startswith("retrieval.") or name.endswith(".mrr")]
    axes = [axis.name for axis in setting.axes]
    rows: list[Row] = []
    for point in sorted(outcome.points, key=_rank):
        if point.state == "scored":
            results = [Cell(f"{value:.4f}", strong=point == outcome.best) for value in point.results]
            short = ", ".join(f"{name} -{value:.4f}" for name, value in point.short.items())
        else:
            results = [Cell(f"{point.state} {point.why}".strip()), *[Cell("") for _ in outcome.objectives[1:]]]
            short = ""
        scores = [Cell(f"{point.scores[name]:.4f}") if name in point.scores else Cell("–") for name in names]
        floors = [short] if setting.section.floor else []
        rows.append([point.name, *results, *floors, *(_text(point.values.get(name)) for name in axes), *scores])
    below = ["below floor"] if setting.section.floor else []
    return Table("Points", ["point", *outcome.objectives, *below, *axes, *names], rows)


def _rank(point: Point) -> tuple[bool, float]:
    return point.state != "scored", -sum(point.results)


def _recipes(outcome: Outcome) -> list[Block]:
    order = sorted((point for point in outcome.points if point.name in outcome.recipes), key=_rank)
    front = [point.name for point in outcome.front]
    names = list(dict.fromkeys([*front, *(point.name for point in order)]))[:COPIED]
    note = "Save them next to the recipe that was searched: paths are relative to its folder."
    if len(order) > COPIED:
        note += " These are the best; the JSON next to this page has the recipes of all points."
    return [
        Texts("Recipes to copy", [(name, outcome.recipes[name]) for name in names if name in outcome.recipes], note)
    ]


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _with(interval: Interval) -> Cell:
    return Cell(f"{interval.estimate:.4f}", f"{interval.low:.4f}-{interval.high:.4f}")


def _change(interval: Interval) -> Cell:
    detail = f"{interval.low:+.4f} to {interval.high:+.4f}"
    return Cell(f"{interval.estimate:+.4f}", detail, strong=interval.excludes(0))


def _above(interval: Interval) -> Cell:
    return _change(interval)
