"""The user's settings for the rows of the output's token tables: the tokenizer, and the sources of single rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from taskmerge.errors import MergeError, Problem, did_you_mean


@dataclass(frozen=True)
class RowSource:
    """The source of the row of one token.

    source: label of an input, "zero" for a row of zeros, or None: as for any other token. token, row: the source's row,
    by its token or its number; default: the token itself. force: for all inputs, also for those that have the token.
    """

    source: str | None = None
    token: str | None = None
    row: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Vocabularies:
    """The settings of the output's vocabulary.

    tokenizer: "base", "union" or a label. tokens: settings of single rows. multiple: the number of rows is rounded up
    to a multiple of it. own_rows: a token that the base lacks has, in each input that has it, that input's own row, so
    that weights decide; False: the mean of their rows in every input.
    """

    tokenizer: str = "union"
    tokens: Mapping[str, RowSource] = field(default_factory=dict)
    multiple: int | None = None
    own_rows: bool = False

    @property
    def asks(self) -> bool:
        """True if there is a setting that matters even if the rows are the same in all inputs."""
        return bool(self.tokens) or self.multiple is not None


@dataclass(frozen=True)
class GivenRow:
    """A row that the user gave. label: of the input it is taken from, None for zeros.  row: of that input."""

    label: str | None
    row: int
    force: bool


class _Known(Protocol):
    @property
    def ids(self) -> Mapping[str, int]: ...


def given_rows(
    tokens: Mapping[str, RowSource], known: Mapping[str, _Known], tables: Mapping[str, int], ids: Mapping[str, int]
) -> dict[int, GivenRow]:
    """Output row -> where it comes from. known: vocabularies by label.  tables: rows by label.  ids: the output's.

    Raises MergeError for sources that have no such row.
    """
    problems: list[Problem] = []
    found: dict[int, GivenRow] = {}
    for token, said in tokens.items():
        if said.source == "zero":
            found[ids[token]] = GivenRow(None, 0, said.force)
        elif said.source is not None:
            row = _row(token, said, said.source, known, tables, problems)
            found[ids[token]] = GivenRow(said.source, row, said.force)
    if problems:
        raise MergeError(problems)
    return found


def _row(
    token: str,
    said: RowSource,
    label: str,
    known: Mapping[str, _Known],
    tables: Mapping[str, int],
    problems: list[Problem],
) -> int:
    what = f"output: tokens: {token!r}"
    if label not in known:
        problems.append(Problem(f"{what}: {label} has no tokenizer that can be read", None, did_you_mean(label, known)))
        return 0
    wanted = token if said.token is None else said.token
    row = known[label].ids.get(wanted) if said.row is None else said.row
    if row is None:
        move = f"name one that it has: {{source: {label}, token: …}}"
        problems.append(Problem(f"{what}: {label} has no token {wanted!r}", None, move))
    elif row >= tables[label]:
        problems.append(Problem(f"{what}: {label} has {tables[label]} rows, not {row + 1}", None, "count from 0"))
    return row or 0


def new_to(tokens: Mapping[str, RowSource], ids: Mapping[str, int]) -> Iterator[str]:
    """Yield the tokens that a vocabulary lacks."""
    return (token for token in tokens if token not in ids)
