"""Soups: the mean of several checkpoints of one run, as one model.

Uniform (arXiv 2203.05482), or an exponential moving average over the checkpoints, oldest first: e₁ = θ₁,
e_k = decay · e_(k-1) + (1 - decay) · θ_k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.output.layout import natural
from taskmerge.checkpoints.output.saving import stored_format
from taskmerge.checkpoints.state_dict import StateDict, entries
from taskmerge.errors import CheckpointError, Problem, UsageError, few
from taskmerge.numbers.rounding import encode


def checkpoints_of(text: str, folder: Path | None = None, last: int | None = None) -> list[Path]:
    """Return the folders or files that match a pattern (`run/checkpoint-*`), oldest (lowest number) first.

    Args:
        text: the pattern; `~` is the home folder.
        folder: where relative ones start, before the current folder.
        last: how many of them, the latest; None for all.

    Raises: CheckpointError when there are none, or fewer than `last`.
    """
    pattern = Path(text).expanduser()
    starts = [folder or Path(), Path()]
    if pattern.is_absolute():
        starts, pattern = [Path(pattern.anchor)], pattern.relative_to(pattern.anchor)
    found: list[Path] = []
    for start in starts:
        found = found or sorted(start.glob(str(pattern)), key=_number)
    if not found:
        raise CheckpointError(
            f"no folder or file matches {text!r}",
            text,
            "check the pattern; relative patterns are looked up in the recipe's folder, then in the current one",
        )
    if last is not None and last > len(found):
        raise CheckpointError(
            f"last: {last}, but there are {len(found)} checkpoints: {_named(found)}",
            text,
            "use a smaller number, or leave it out",
        )
    return found if last is None else found[-last:]


def _number(path: Path) -> list[str]:
    return natural(str(path))


def _named(paths: Sequence[Path]) -> str:
    return few([path.name for path in paths], 6)


def shares(count: int, decay: float | None = None) -> tuple[float, ...]:
    """Return the factor of each of `count` checkpoints, oldest first: equal shares, or an average with a decay."""
    if decay is None:
        return (1 / count,) * count
    return (decay ** (count - 1), *((1 - decay) * decay ** (count - 1 - place) for place in range(1, count)))


class Averaged(StateDict):
    """A `StateDict` of the weighted mean of others: float64, rounded once when it is read.

    members: of equal names and shapes, oldest first. factors: what each is multiplied by; their sum is 1. Integers and
    bools are the last one's. Raises CheckpointError with every tensor that they do not share.
    """

    def __init__(self, members: Sequence[StateDict], factors: Sequence[float], label: str) -> None:
        if not members:
            raise UsageError("a soup needs checkpoints", label, "name at least one")
        self.members, self.factors = tuple(members), tuple(factors)
        self.label = label
        newest = self.members[-1]
        _check_alike(self.members)
        self.tensors = dict(newest.tensors)
        files = {
            f"{place}/{name}": file for place, one in enumerate(members) for name, file in one.beside.files.items()
        }
        whole = all(one.beside.files for one in members)
        kind = "mean" if len(set(self.factors)) == 1 else "moving average"
        names = few([Path(one.label).name for one in members], 8)
        notes = [note for one in members for note in one.beside.notes]
        said = f"the {kind} of {len(members)} checkpoints: {names}"
        self.beside = replace(newest.beside, files=files if whole else {}, notes=(said, *dict.fromkeys(notes)))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        info = self.tensors[name]
        if not info.format.mergeable:
            return self.members[-1].read(name, start, stop)
        return encode(self._mean(name, start, info.count if stop is None else min(stop, info.count)), info.dtype)

    def unrounded(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.unrounded`."""
        if not self.tensors[name].format.mergeable:
            return None
        return lambda start, stop: self._mean(name, start, stop)

    def delta(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.delta`: of adapters over one base, the mean of their products."""
        products = [one.delta(name) for one in self.members]
        known = [product for product in products if product is not None]
        if len(known) < len(products):
            return None

        def mean(start: int, stop: int) -> np.ndarray:
            return self._sum([product(start, stop) for product in known])

        return mean

    def in_dtype(self, dtype: str) -> Averaged:
        """See `StateDict.in_dtype`."""
        other = Averaged(self.members, self.factors, self.label)
        other.tensors = {name: stored_format(info, dtype) for name, info in self.tensors.items()}
        return other

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        return self.members[-1].stored_name(name)

    def sources(self) -> dict[str, StateDict]:
        """See `StateDict.sources`."""
        return {one.label: one for one in self.members}

    def _mean(self, name: str, start: int, stop: int) -> np.ndarray:
        """The first, and what the others differ from it: where all are equal, that value to the last bit."""
        first, *others = (entries(one, name, start, stop) for one in self.members)
        with np.errstate(invalid="ignore"):  # a bound of ±inf that all share differs by nothing
            return first + self._sum([np.where(row == first, 0.0, row - first) for row in (first, *others)])

    def _sum(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        total = np.zeros(rows[0].shape)
        for factor, row in zip(self.factors, rows, strict=True):
            if factor:
                total += factor * row
        return total


def _check_alike(members: Sequence[StateDict]) -> None:
    newest, problems = members[-1], []
    for one in members[:-1]:
        names = [*newest.tensors, *(name for name in one.tensors if name not in newest.tensors)]
        odd = [
            name
            for name in names
            if name not in one.tensors
            or name not in newest.tensors
            or one.tensors[name].shape != newest.tensors[name].shape
            or one.tensors[name].format.mergeable != newest.tensors[name].format.mergeable
        ]
        if odd:
            what = f"not from the same run as {newest.label}: {few(map(repr, odd), 3)} differ in name, shape or kind"
            problems.append(Problem(what, one.label, "name checkpoints of one run, saved in the same way"))
    if problems:
        raise CheckpointError(problems)
