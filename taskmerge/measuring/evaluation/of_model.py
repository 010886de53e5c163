"""The scores of one very model: which models an evaluation was of, and what it found of the one in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from taskmerge.checkpoints.cards.card import Score
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.output.record import is_made_here, weights_digest
from taskmerge.errors import UsageError
from taskmerge.measuring.evaluation.table import Evaluated, EvaluationTable
from taskmerge.words.json_text import check_json

_METRICS = ("recall_at_1", "mrr", "ndcg_at_10")
_STAGES = ("-recovered", "-rehearsed")
_WAYS = {"to_text": "item to text", "from_text": "text to item"}


def digests(models: Mapping[str, str | Path]) -> dict[str, str]:
    """Return variant -> hash of its weight files, of every model here that taskmerge made."""
    found = {name: weights_digest(Path(place)) for name, place in models.items() if Path(place).is_dir()}
    return {name: digest for name, digest in found.items() if digest is not None}


class _Report(TypedDict, total=False):
    stages: dict[str, Any]


def scores_of(folder: Path, report: Path | None = None) -> list[Score]:
    """Return what was scored of the very model in a folder made here.

    Args:
        folder: of the model.
        report: JSON of an evaluation (`evaluate --html`, `evaluate --json`, OUT-report/report.json); None: the report
            of the run that made the model, if it is next to it.

    Returns:
        Scores of the variant whose weights are these, bit for bit; [] where the report next to it is of other models.

    Raises:
        UsageError: for a report that was asked for and is not of this model. CheckpointError: for one that makes no
            sense.
    """
    place = _beside(folder) if report is None else report
    if place is None:
        return []
    table: Any = read_json(place, dict[str, Any], "give the JSON that `evaluate` wrote")
    if "stages" in table:
        table = check_json(table, _Report, str(place)).get("stages", {}).get("evaluate", {})
    evaluated: Evaluated = check_json(table, Evaluated, str(place), "give the JSON that `evaluate` wrote")
    own = weights_digest(folder)
    variant = next((name for name, digest in evaluated.get("models", {}).items() if digest == own), None)
    if variant is None:
        if report is None:
            return []
        what = "contains no scores of this model: other weights were scored"
        raise UsageError(what, str(place), f"`taskmerge evaluate {folder} … --html PAGE` scores it")
    return list(_found(evaluated, variant))


def _found(evaluated: Evaluated, variant: str) -> Iterator[Score]:
    table = evaluated.get("retrieval", EvaluationTable(()))
    for row in table.results:
        if row.variant == variant and row.dimension is None:
            for metric in _METRICS:
                if metric in row.intervals:
                    words = f"{metric}, {_WAYS.get(row.direction, row.direction)}"
                    yield Score(row.set_name, metric, row.intervals[metric].estimate, words)
    if "mteb" in evaluated:
        for task, value in evaluated["mteb"].scores.get(variant, {}).items():
            yield Score(f"MTEB {task}", "main_score", value, "main score")


def _beside(folder: Path) -> Path | None:
    """The report of the run that left this model: OUT-report/report.json."""
    folder = folder.absolute()
    stem = next((folder.name.removesuffix(end) for end in _STAGES if folder.name.endswith(end)), folder.name)
    place = folder.with_name(f"{stem}-report")
    return place / "report.json" if is_made_here(place, "report") and (place / "report.json").is_file() else None
