"""Scores of a point of a search: values of single queries, so that points can be compared in pairs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.errors import UsageError
from taskmerge.measuring.evaluation.local import Groups
from taskmerge.metrics.bootstrap import Interval, percentile_interval, resampled_means
from taskmerge.recipes.scores import Objective
from taskmerge.whole_files import unfinished_of, written_whole
from taskmerge.words.system_errors import writing


@dataclass(frozen=True)
class Scored:
    """Scores of one merged model.

    values: name of a score -> its queries' values (n,); a number from other code is one value.
    groups: name -> queries that are resampled together; the same for all points of a search.
    near: set -> the texts nearest to each item (n, k), for agreement.
    """

    values: Mapping[str, np.ndarray]
    groups: Mapping[str, Groups] = field(default_factory=dict)
    near: Mapping[str, np.ndarray] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Return the mean of each score by name."""
        return {name: float(values.mean()) for name, values in self.values.items()}

    def value(self, objective: Objective) -> float:
        """Compute an objective from the means. Raises UsageError if the result is not finite."""
        found = float(objective.of(self.means()))
        if not math.isfinite(found):
            bad = [name for name in objective.names(self.values) if not np.isfinite(self.values[name]).all()]
            raise UsageError(
                f"{objective.text} is {found}" + (f", for {', '.join(bad)}" if bad else ""),
                next_move="let the objective return a number for every point, or exclude the values for which it fails",
            )
        return found

    def interval(self, objective: Objective) -> Interval:
        """Return the objective with its bootstrap interval."""
        return percentile_interval(self.value(objective), self._draws(objective), self._count(objective))

    def minus(self, other: Scored, objective: Objective) -> Interval:
        """Return the objective of this point minus that of another, with a paired interval over the same queries."""
        draws = self._draws(objective) - other._draws(objective)
        return percentile_interval(self.value(objective) - other.value(objective), draws, self._count(objective))

    def _draws(self, objective: Objective) -> np.ndarray:
        """(resamples,) the objective on resampled queries; scores of one set and direction get the same draws."""
        return np.asarray(objective.of({
            name: resampled_means(self.values[name], groups=self.groups.get(name), seed=zlib.crc32(_drawn_as(name)))
            for name in objective.names(self.values)
        }))  # fmt: skip

    def _count(self, objective: Objective) -> int:
        return sum(len(self.values[name]) for name in objective.names(self.values))

    def save(self, path: Path) -> None:
        """Write values and neighbours; groups are those of the search's pairs."""
        table = {f"value {name}": values for name, values in self.values.items()}
        table |= {f"near {name}": rows for name, rows in self.near.items()}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path, unfinished_of(path)) as unfinished, unfinished.open("wb") as file:
                np.savez_compressed(file, **table)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, groups: Mapping[str, Groups]) -> Scored | None:
        """Read the scores that `save` wrote; None if the file is missing or cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as table:
                found = {name: table[name] for name in table.files}
        except (OSError, ValueError, KeyError, EOFError):
            return None
        return cls(_of_kind(found, "value "), groups, _of_kind(found, "near "))


def _of_kind(table: Mapping[str, Any], kind: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(kind): values for name, values in table.items() if name.startswith(kind)}


def _drawn_as(name: str) -> bytes:
    """What scores must share for their queries to be the same ones."""
    parts = name.split(".")
    direction = parts[-1] if parts[-1] == "from_text" else "to_text"
    return f"{parts[1] if len(parts) > 1 else name}:{direction}".encode()
