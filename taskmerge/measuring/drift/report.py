"""Result of a diagnosis as one object, for people, for programs, and for the exit code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.measuring.drift.comparison import DepthChange, ProjectorControl
from taskmerge.measuring.drift.examples import EmbeddingPlane, Example
from taskmerge.measuring.drift.forecast import Forecast
from taskmerge.measuring.drift.null_band import Band
from taskmerge.measuring.drift.verdict import Verdict
from taskmerge.metrics.bootstrap import Interval
from taskmerge.words.json_text import check_json
from taskmerge.words.system_errors import writing
from taskmerge.words.tables import Shown, Table

EXIT_DRIFTED = 3
EXIT_CANNOT_TELL = 4


@dataclass(frozen=True)
class ModalityDrift:
    """One grafted projector, one set of probes.

    intervals, bands: of every per-probe statistic (see `probe_changes`).  scores: "specialist" and "fused" -> metric ->
    mean. control, depths: levels 1 and 2.  explanations: statistics of the final embeddings that explain, and never
    decide.  notes: what the probes leave open, in words; see `probe_notes`.
    examples: items whose nearest texts changed.  plane: where items and texts lie; None where there is no map.
    precisions: what each side was run in.
    """

    modality: str
    source: str
    probes: int
    distinct_texts: int
    verdict: Verdict
    scores: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Interval]
    bands: Mapping[str, Band]
    control: ProjectorControl
    depths: tuple[DepthChange, ...]
    explanations: Mapping[str, float]
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    plane: EmbeddingPlane | None = None
    precisions: Mapping[str, str] = field(default_factory=dict)

    @property
    def computed_in(self) -> str:
        """A phrase on the precision of what was measured; "" where it is not known."""
        names = list(dict.fromkeys(self.precisions.values()))
        if len(names) > 1:
            return ", ".join(f"{side} in {name}" for side, name in self.precisions.items())
        return f"in {names[0]}" if names else ""

    @property
    def onset(self) -> int | None:
        """The first depth at which the mean cosine of the projected tokens is below 0.99; None when there is none."""
        return next((change.depth for change in self.depths if change.cosine < 0.99), None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "onset": self.onset}


@dataclass(frozen=True, repr=False)
class DriftReport(Shown):
    """The result of `diagnose_drift`.

    Attributes:
        modalities: modality -> verdict and statistics.
        forecasts: modality -> forecast from the weights alone, if a base was given.
    """

    modalities: Mapping[str, ModalityDrift]
    forecasts: Mapping[str, Forecast]

    @property
    def drifted(self) -> tuple[str, ...]:
        """The modalities whose verdict is "drifted"."""
        return tuple(name for name, found in self.modalities.items() if found.verdict.outcome == "drifted")

    @property
    def beyond_limit(self) -> tuple[str, ...]:
        """The modalities that drifted by more than the limit."""
        return tuple(name for name, found in self.modalities.items() if found.verdict.beyond_limit)

    @property
    def open(self) -> tuple[str, ...]:
        """The modalities whose verdict is "cannot tell"."""
        return tuple(name for name, found in self.modalities.items() if found.verdict.outcome == "cannot tell")

    @property
    def exit_code(self) -> int:
        """The exit code: 3 if a modality drifted beyond its limit, else 4 if a verdict is "cannot tell", else 0."""
        return EXIT_DRIFTED if self.beyond_limit else EXIT_CANNOT_TELL if self.open else 0

    def in_one_line(self) -> str:
        """Return the verdict on each modality, see `Shown`."""
        found = [f"{name} {one.verdict.outcome}" for name, one in self.modalities.items()]
        only = [f"{name} forecast" for name in self.forecasts if name not in self.modalities]
        return ", ".join([*found, *only]) or "of nothing"

    def as_table(self) -> Table:
        """Return one row per modality: R@1 of the specialist and of the fused model, and the loss; see `Shown`."""
        columns = ("modality", "source", "verdict", "beyond_limit", "loss", "low", "high", "limit", "probes",
                   "probes_needed", "onset", "specialist", "fused")  # fmt: skip
        rows = (
            (
                name, one.source, one.verdict.outcome, one.verdict.beyond_limit, one.verdict.loss.estimate,
                one.verdict.loss.low, one.verdict.loss.high, one.verdict.limit, one.probes, one.verdict.probes_needed,
                one.onset, *(one.scores.get(who, {}).get("recall_at_1") for who in ("specialist", "fused")),
            )
            for name, one in self.modalities.items()
        )  # fmt: skip
        return Table(columns, rows, len(self.modalities))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; NaN and infinity become None."""
        table = {
            "drifted": list(self.drifted),
            "beyond_limit": list(self.beyond_limit),
            "cannot_tell": list(self.open),
            "modalities": {name: found.as_dict() for name, found in self.modalities.items()},
            "forecasts": {name: found.as_dict() for name, found in self.forecasts.items()},
        }
        plain: dict[str, Any] = plain_data(table)
        return plain

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> DriftReport:
        """Read a report from the data that `as_dict` returned; resumed runs use it.

        Raises:
            CheckpointError: if the data is not a drift report.
        """
        report: DriftReport = check_json(table, cls, "a drift report")
        return report

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        with writing(path):
            Path(path).write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        lines = [
            " ".join([f"{name}: {found.verdict}", *found.notes, *_measured_in(found)])
            for name, found in self.modalities.items()
        ]
        for name, forecast in self.forecasts.items():
            lines.append(f"{name}, weights alone: {forecast} (a forecast; only probes can decide).")
        return "\n".join(lines)


def _measured_in(found: ModalityDrift) -> list[str]:
    """A sentence on precisions other than float32."""
    return [f"Measured {found.computed_in}."] if set(found.precisions.values()) - {"float32"} else []


def plain_data(value: Any) -> Any:
    """Return `value` as JSON can represent it: keys as text, tuples as lists, NaN as None, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
