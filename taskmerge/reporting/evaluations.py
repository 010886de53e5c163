"""From scores to sections: every variant, paired differences, mteb's tasks, and how it was all run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from taskmerge.measuring.evaluation.table import Evaluated, EvaluationTable, MtebScores
from taskmerge.metrics.bootstrap import Interval, mean_interval
from taskmerge.reporting.content import Block, Cell, Section, Table
from taskmerge.words.statistics import title as title_of

Row = Sequence[Cell | str]

DIRECTIONS = {"to_text": "item to text", "from_text": "text to item"}
METRICS = ("recall_at_1", "ndcg_at_10")


def evaluated_sections(evaluated: Evaluated) -> list[Section]:
    """Return the sections of an evaluation."""
    sections = []
    if "retrieval" in evaluated:
        sections.append(evaluation_section(evaluated["retrieval"]))
    if "mteb" in evaluated:
        sections.append(mteb_section(evaluated["mteb"]))
    return sections


def evaluation_section(
    table: EvaluationTable, metrics: Sequence[str] = METRICS, title: str = "Every variant"
) -> Section:
    """Return a table per metric and direction: variants down, sets across, the best of each set in bold.

    Below each its paired differences, where there are any; last the conditions.
    """
    blocks: list[Block] = []
    for direction, words in DIRECTIONS.items():
        for metric in metrics:
            cells = {
                (_called(row.variant, row.dimension), row.set_name): row.intervals[metric]
                for row in table.results
                if row.direction == direction and metric in row.intervals
            }
            if cells:
                blocks.append(_variants_table(table.sets, cells, f"{title_of(metric)}, {words}"))
                blocks += _differences(table, metric, direction)
    if table.conditions:
        blocks.append(_conditions(table))
    return Section(title, tuple(blocks))


def _called(variant: str, dimension: int | None) -> str:
    return variant if dimension is None else f"{variant}, {dimension} dimensions"


def _variants_table(sets: Sequence[str], cells: Mapping[tuple[str, str], Interval], title: str) -> Table:
    best = {name: max((cell.estimate for (_, own), cell in cells.items() if own == name), default=0.0) for name in sets}

    def shown(variant: str, name: str) -> Cell:
        cell = cells.get((variant, name))
        if cell is None:
            return Cell("–")
        detail = f"{cell.low:.3f}-{cell.high:.3f}"
        return Cell(f"{cell.estimate:.3f}", detail, cell.estimate, strong=cell.estimate == best[name])

    variants = dict.fromkeys(variant for variant, _ in cells)
    rows: list[Row] = [[variant, *(shown(variant, name) for name in sets)] for variant in variants]
    return Table(
        title, ["variant", *sets], rows, "95 % bootstrap intervals; – : this variant does not support the modality."
    )


def _differences(table: EvaluationTable, metric: str, direction: str) -> list[Block]:
    cells = {
        (f"{_called(row.variant, row.dimension)} − {row.reference}", row.set_name): row.intervals[metric]
        for row in table.differences
        if row.direction == direction and metric in row.intervals
    }
    if not cells:
        return []
    pairs = dict.fromkeys(pair for pair, _ in cells)
    rows: list[Row] = [[pair, *(_change(cells.get((pair, name))) for name in table.sets)] for pair in pairs]
    return [
        Table(
            f"{title_of(metric)}, {DIRECTIONS[direction]}: paired differences",
            ["difference", *table.sets],
            rows,
            "Mean over the same queries, 95 % bootstrap intervals of the differences per query; bold: the "
            "interval excludes zero.",
        )
    ]


def _change(interval: Interval | None) -> Cell:
    if interval is None:
        return Cell("–")
    detail = f"{interval.low:+.3f} to {interval.high:+.3f}"
    return Cell(f"{interval.estimate:+.3f}", detail, strong=interval.excludes(0))


def _conditions(table: EvaluationTable) -> Table:
    rows: list[Row] = [
        [
            row.variant,
            row.set_name,
            _prompts(row.item_prompts),
            _prompts(row.text_prompts),
            row.similarity,
            row.dtype,
            str(row.spellings or "–"),
        ]
        for row in table.conditions
    ]
    columns = [
        "variant",
        "set",
        "prompt before items",
        "prompt before texts",
        "ranked by",
        "precision",
        "spellings merged",
    ]
    return Table("Settings of the evaluation", columns, rows, _mixed(table))


def _mixed(table: EvaluationTable) -> str:
    """A warning where variants were run in several precisions."""
    precisions = list(dict.fromkeys(row.dtype for row in table.conditions))
    if len(precisions) < 2:
        return ""
    return (
        f"Variants were run in {' and '.join(precisions)}, each in its own: differences between them include rounding; "
        "`precision` runs all in one."
    )


def _prompts(prompts: Mapping[str, str | None]) -> str:
    """Prompts by role; one that both roles share is written once."""
    said = {
        role: "as its class adds it" if text is None else repr(text) if text else "–" for role, text in prompts.items()
    }
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{role} {text}" for role, text in said.items())


def mteb_section(found: MtebScores) -> Section:
    """Return the table with tasks down, variants across, means, and paired differences over common tasks."""
    variants = list(found.scores)
    tasks = list(dict.fromkeys(task for scores in found.scores.values() for task in scores))
    if not tasks:
        return Section("mteb", _left_out(found))
    rows: list[Row] = []
    for task in tasks:
        scores = [found.scores[variant].get(task) for variant in variants]
        best = max(score for score in scores if score is not None)
        rows.append([task, *(_score(score, strong=score == best and len(variants) > 1) for score in scores)])
    shared = [task for task in tasks if all(task in found.scores[variant] for variant in variants)]
    if len(tasks) > 1 and shared:
        means = [float(np.mean([found.scores[variant][task] for task in shared])) for variant in variants]
        rows.append([Cell(f"mean of {len(shared)}", strong=True), *(_score(mean) for mean in means)])
    note = "Main scores as mteb defines them."
    if found.folder:
        revisions = ", ".join(f"{name} {revision[:12]}" for name, revision in found.revisions.items())
        note += f" Results in {found.folder}; revisions: {revisions}."
    return Section(
        "mteb", (Table("mteb", ["task", *variants], rows, note), *_task_differences(found), *_left_out(found))
    )


def _score(value: float | None, strong: bool = False) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.4f}", share=value, strong=strong)


def _task_differences(found: MtebScores) -> list[Block]:
    """Each variant against the one before it and the first, over the tasks that both ran."""
    variants = list(found.scores)
    rows: list[Row] = []
    for place, variant in enumerate(variants[1:], start=1):
        for reference in dict.fromkeys([variants[place - 1], variants[0]]):
            own, other = found.scores[variant], found.scores[reference]
            shared = [task for task in own if task in other]
            if len(shared) > 1:
                change = mean_interval(np.array([own[task] - other[task] for task in shared]))
                rows.append([f"{variant} − {reference}", _change(change), str(len(shared))])
    note = "95 % bootstrap intervals over tasks: they show the variation between tasks, not between queries."
    title = "mteb: paired differences"
    return [Table(title, ["difference", "mean over tasks", "tasks"], rows, note)] if rows else []


def _left_out(found: MtebScores) -> tuple[Block, ...]:
    rows: list[Row] = [[variant, task, why] for variant, tasks in found.left_out.items() for task, why in tasks.items()]
    return (Table("mteb: left out", ["variant", "task", "why"], rows),) if rows else ()
