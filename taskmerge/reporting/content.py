"""Elements of a report, before it becomes a page or lines on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["good", "bad", "open", "plain"]


@dataclass(frozen=True)
class Banner:
    """A judgement that leads its section. tone: its colour and mark. moves: what to do next."""

    tone: Tone
    headline: str
    text: str
    moves: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """One entry of a table. detail: set smaller behind it; share: 0 to 1, drawn as a bar beneath."""

    text: str
    detail: str = ""
    share: float | None = None
    strong: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True)
class Table:
    """A table. rows: as many cells as there are columns; the first column names the row. words: whether its cells are
    sentences and not numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    words: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a chart. points: (x, y), y None where nothing was measured. intervals: (low, high) of each y."""

    name: str
    points: Sequence[tuple[float, float | None]]
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class LineChart:
    """Lines over a common x. y_range: fixed ends of the y axis, else those of the data."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    y_range: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Span:
    """One row of a range chart: a value with its interval, and the null band's edge where there is one."""

    name: str
    value: float
    low: float
    high: float
    band: float | None = None
    worse_when_low: bool = False


@dataclass(frozen=True)
class RangeChart:
    """Values with intervals, one below another, on one axis. zero: whether the axis shows it, as of differences."""

    title: str
    spans: Sequence[Span]
    note: str = ""
    zero: bool = False


@dataclass(frozen=True)
class Dot:
    """A point of a scatter chart. kind: "front", "corner" (named on the chart) or "plain"."""

    name: str
    x: float
    y: float
    kind: Literal["front", "corner", "plain"] = "plain"


@dataclass(frozen=True)
class ScatterChart:
    """Points in a plane; those of the front are joined, from left to right."""

    title: str
    x_label: str
    y_label: str
    dots: Sequence[Dot]
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """A number for each cell of a grid, None where there is none. rows: from the bottom up, of one cell a column."""

    title: str
    x_label: str
    y_label: str
    x_edges: Sequence[float]
    y_edges: Sequence[float]
    rows: Sequence[Sequence[float | None]]
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """A number for each pair of names. rows: as many as names, of as many values; None where there is none.

    signed: whether values are in [-1, 1]; else they are shares.
    """

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[float | None]]
    signed: bool = False
    note: str = ""


Point = tuple[float, float]


@dataclass(frozen=True)
class Moved:
    """An item on a map: its places before and after."""

    name: str
    before: Point
    after: Point


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings in a plane. moved: items, an arrow each; fixed: name -> place of a text."""

    title: str
    x_label: str
    y_label: str
    moved: Sequence[Moved]
    fixed: Mapping[str, Point]
    note: str = ""


@dataclass(frozen=True)
class Texts:
    """Texts to copy, folded up under their names."""

    title: str
    texts: Sequence[tuple[str, str]]
    note: str = ""


Chart = LineChart | RangeChart | ScatterChart | HeatMap | Matrix | EmbeddingMap
Block = Banner | Table | Chart | Texts


@dataclass(frozen=True)
class Section:
    """A heading and the blocks under it, in order. blocks may be empty; such a section is left out."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
