"""Result of an evaluation: scores of every variant, paired differences, and the conditions of the measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from taskmerge.errors import UsageError
from taskmerge.metrics.bootstrap import Interval
from taskmerge.metrics.retrieval import collapse
from taskmerge.words.json_text import as_read, check_json
from taskmerge.words.tables import Shown, Table, counted


@dataclass(frozen=True)
class RetrievalResult:
    """One variant on one set in one direction.

    intervals: by metric.  queries, gallery: how many there were.  dimension: what embeddings were cut to; None: nothing
    was cut.
    """

    variant: str
    set_name: str
    modality: str
    direction: str
    queries: int
    gallery: int
    intervals: Mapping[str, Interval]
    dimension: int | None = None


@dataclass(frozen=True)
class Difference:
    """Variant minus reference on the same queries.

    intervals: by metric, of the mean difference, from a bootstrap of the queries' own differences.
    """

    variant: str
    reference: str
    set_name: str
    direction: str
    intervals: Mapping[str, Interval]
    dimension: int | None = None


@dataclass(frozen=True)
class Condition:
    """The settings under which one variant was run on one set.

    item_prompts, text_prompts: role -> the text before items and texts of that role; "" for nothing; None if the model
    does not state it.  similarity: the measure of the ranking.  spellings: texts that counted as another spelling of
    one in the set.
    """

    variant: str
    set_name: str
    item_prompts: Mapping[str, str | None]
    text_prompts: Mapping[str, str | None]
    similarity: str
    dtype: str
    spellings: int = 0


@dataclass(frozen=True, repr=False)
class EvaluationTable(Shown):
    """All results of `evaluate_retrieval`, in the order of measurement: variants within sets.

    Attributes:
        results: the scores of each variant on each set.
        differences: the paired differences between variants.
        conditions: the settings under which each variant was measured.

    >>> EvaluationTable(())
    <EvaluationTable of 0 variants on 0 sets: 0 results>
    """

    results: tuple[RetrievalResult, ...]
    differences: tuple[Difference, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def get(
        self,
        variant: str,
        set_name: str,
        metric: str = "recall_at_1",
        direction: str = "to_text",
        dimension: int | None = None,
    ) -> Interval:
        """Return the score of one variant on one set.

        Args:
            variant, set_name: names as given to `evaluate_retrieval`.
            metric: name of the metric.
            direction: one of `DIRECTIONS`.
            dimension: length that embeddings were truncated to; None: the full length.

        Returns:
            The estimate with its interval.

        Raises:
            UsageError: if it was not measured.
        """
        wanted = (variant, set_name, direction, dimension)
        for row in self.results:
            if (row.variant, row.set_name, row.direction, row.dimension) == wanted and metric in row.intervals:
                return row.intervals[metric]
        cut = "" if dimension is None else f", {dimension} dimensions"
        raise UsageError(
            f"{metric} of {variant!r} on {set_name!r} ({direction}{cut}) was not measured",
            next_move=".variants, .sets and .to_pandas() list what was measured",
        )

    def difference(
        self,
        variant: str,
        reference: str,
        set_name: str,
        metric: str = "recall_at_1",
        direction: str = "to_text",
        dimension: int | None = None,
    ) -> Interval:
        """Return the paired difference between two variants on one set.

        Args:
            variant, reference: the difference is the score of `variant` minus the score of `reference`.
            set_name, metric, direction, dimension: as for `get`.

        Returns:
            The estimate with its interval.

        Raises:
            UsageError: if it was not measured.
        """
        wanted = (variant, reference, set_name, direction, dimension)
        for row in self.differences:
            own = (row.variant, row.reference, row.set_name, row.direction, row.dimension)
            if own == wanted and metric in row.intervals:
                return row.intervals[metric]
        pair = f"{variant!r} against {reference!r} on {set_name!r}"
        raise UsageError(
            f"{metric} of {pair} ({direction}) was not measured", next_move=".differences lists what was measured"
        )

    @property
    def variants(self) -> list[str]:
        """The names of the variants, in order."""
        return collapse([row.variant for row in self.results])[0]

    @property
    def sets(self) -> list[str]:
        """The names of the sets, in order."""
        return collapse([row.set_name for row in self.results])[0]

    @property
    def dimensions(self) -> list[int | None]:
        """The lengths of embeddings that were scored, in order; None is the full length."""
        return collapse([row.dimension for row in self.results])[0]

    def __add__(self, other: EvaluationTable) -> EvaluationTable:
        return EvaluationTable(
            (*self.results, *other.results),
            (*self.differences, *other.differences),
            (*self.conditions, *other.conditions),
        )

    def in_one_line(self) -> str:
        """Return the numbers of variants, sets and results, see `Shown`."""
        measured = f"{counted(len(self.variants), 'variant')} on {counted(len(self.sets), 'set')}"
        paired = f", {counted(len(self.differences), 'paired difference')}" if self.differences else ""
        return f"of {measured}: {counted(len(self.results), 'result')}{paired}"

    def as_table(self) -> Table:
        """Return one row per metric of each result, then one per metric of each difference; see `Shown`.

        A row of a difference has the name of its reference.
        """
        columns = ("variant", "reference", "set", "modality", "direction", "dimension", "metric", "estimate", "low",
                   "high", "count")  # fmt: skip
        found = [
            ((row.variant, None, row.set_name, row.modality, row.direction, row.dimension), row.intervals)
            for row in self.results
        ] + [
            ((row.variant, row.reference, row.set_name, None, row.direction, row.dimension), row.intervals)
            for row in self.differences
        ]
        rows = [
            (*where, metric, one.estimate, one.low, one.high, one.count)
            for where, intervals in found
            for metric, one in intervals.items()
        ]
        return Table(columns, rows, len(rows))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        table: dict[str, Any] = as_read(asdict(self))
        return table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> EvaluationTable:
        """Read a table from the data that `as_dict` returned; resumed runs use it.

        Raises:
            CheckpointError: if the data is not an evaluation table.
        """
        found: EvaluationTable = check_json(table, cls, "an evaluation table")
        return found


@dataclass(frozen=True)
class MtebScores:
    """Main scores of mteb tasks.

    scores: variant -> task -> score.  left_out: variant -> task -> why it was not run.  folder: where mteb's results
    lie.  revisions: variant -> the revision they are filed under.  precisions: variant -> what it was run in.
    """

    scores: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    folder: str = ""
    revisions: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        table: dict[str, Any] = as_read(asdict(self))
        return table


class Evaluated(TypedDict, total=False):
    """The results of an evaluation.

    retrieval: of local sets. mteb: of mteb's tasks. models: variant -> hash of its weight files, for models that
    taskmerge made.
    """

    retrieval: EvaluationTable
    mteb: MtebScores
    models: dict[str, str]
