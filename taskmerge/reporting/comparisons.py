"""Sections that compare task vectors: angles between them, lengths, and the effect of trimming."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from taskmerge.reporting.content import Banner, Block, Cell, Line, LineChart, Matrix, Section, Table

Row = Sequence[Cell | str]

ALIKE, APART = 0.2, -0.1
"""Cosines above and below which two task vectors share a direction, or oppose each other."""
UNEQUAL = 2.0
MOST_COMPONENTS, MOST_MODELS = 12, 24


def comparison_sections(result: Mapping[str, Any]) -> list[Section]:
    """Return the sections about a comparison (`compare_task_vectors`), or about a merge (`compare_planned`)."""
    names = list(result["norms"])
    own = [name for name in names if name != result.get("merged")]
    return [
        Section("Directions of the task vectors", (*_judged(result, own), *_matrices(result))),
        Section("Norms of the task vectors", (_norms(result), *_layers(result))),
        Section("What trimming kept", tuple(_kept(result))),
    ]


def _judged(result: Mapping[str, Any], names: Sequence[str]) -> list[Block]:
    """In words: which pairs share a direction, which oppose each other, who is much longer than whom."""
    lengths = {name: result["norms"][name][0] for name in names}
    blocks: list[Block] = []
    if still := [name for name, length in lengths.items() if not length]:
        verb = "is" if len(still) == 1 else "are"
        blocks.append(
            Banner(
                "open", f"{', '.join(still)} {verb} equal to the base", "No entry differs: there is nothing to merge."
            )
        )
    pairs = [(a, b) for a, b in combinations([name for name in names if lengths[name]], 2)]
    cosines = {pair: result["cosine"][pair[0]][pair[1]] for pair in pairs}
    cosines = {pair: value for pair, value in cosines.items() if value is not None and math.isfinite(value)}
    if not cosines:
        return blocks
    pair = max(cosines, key=lambda one: abs(cosines[one]))
    first, second, value = *pair, cosines[pair]
    among = (
        f"{first} and {second}"
        if len(cosines) == 1
        else f"of all pairs, {first} and {second} are related most strongly"
    )
    blocks.append(Banner("plain", f"{among}: cosine {value:.3f}{_conflict(result, pair)}", _meaning(value)))
    moving = {name: length for name, length in lengths.items() if length}
    longest, shortest = max(moving, key=moving.__getitem__), min(moving, key=moving.__getitem__)
    if moving[longest] > UNEQUAL * moving[shortest]:
        ratio = moving[longest] / moving[shortest]
        text = f"With equal weights {longest} decides most of the merge. A larger weight for {shortest} balances this."
        blocks.append(Banner("open", f"{longest} changed {ratio:.1f} times as much as {shortest}", text))
    return blocks


def _conflict(result: Mapping[str, Any], pair: tuple[str, str]) -> str:
    value = result["sign_conflict"][pair[0]][pair[1]]
    return "" if value is None or not math.isfinite(value) else f", signs conflict in {value:.0%} of shared entries"


def _meaning(cosine: float) -> str:
    if cosine > ALIKE:
        return (
            "They partly share a direction. A sum with full weights counts the shared part once for each of "
            "them: smaller "
            "weights, or a mean, prevent too large a step."
        )
    if cosine < APART:
        return (
            "They oppose each other: each cancels a part of the other's changes. Methods that elect a sign "
            "keep one of the two."
        )
    return (
        "They are almost unrelated: each can be added with little interference. This does not show how good the merged "
        "model is; only a measurement does."
    )


def _matrices(result: Mapping[str, Any]) -> list[Block]:
    notes = {
        "cosine": "1: the same direction; 0: unrelated; -1: opposite. Computed over the tensors that both have.",
        "sign_conflict": "Two unrelated task vectors conflict in half of the entries.",
    }
    blocks: list[Block] = []
    for key, title in (("cosine", "Cosine of the task vectors"), ("sign_conflict", "Sign conflict")):
        names = list(result[key])
        rows = [[_number(result[key][one][two]) for two in names] for one in names]
        if len(names) > 1 and len(names) <= MOST_MODELS:
            blocks.append(Matrix(title, names, rows, key == "cosine", notes[key]))
        elif len(names) > MOST_MODELS:
            cells: list[Row] = [[one, *("–" if v is None else f"{v:.2f}" for v in row)]
                                for one, row in zip(names, rows, strict=True)]  # fmt: skip
            blocks.append(Table(title, ["", *names], cells, notes[key]))
    return blocks


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _norms(result: Mapping[str, Any]) -> Table:
    longest = max((_number(row[0]) or 0.0 for row in result["norms"].values()), default=0.0) or 1.0
    rows: list[Row] = []
    for name, (length, relative) in result["norms"].items():
        share = (_number(length) or 0.0) / longest
        rows.append([name, Cell(f"{length:.4g}", share=share), "–" if _number(relative) is None else f"{relative:.4g}"])
    return Table("Norm of each task vector", ["task vector", "norm", "relative to the base"], rows)


def _layers(result: Mapping[str, Any]) -> list[Block]:
    """A chart for each component that has layers, one table of the others."""
    names = list(result["norms"])
    stacks: dict[str, dict[int, Mapping[str, float]]] = {}
    single: dict[str, Mapping[str, float]] = {}
    for layer, norms in result["by_layer"].items():
        component, dot, number = layer.rpartition(".")
        if dot and number.isdigit():
            stacks.setdefault(component, {})[int(number)] = norms
        else:
            single[layer] = norms
    single |= {f"{part}.{at}": row for part, rows in stacks.items() if len(rows) == 1 for at, row in rows.items()}
    charted = {part: rows for part, rows in stacks.items() if len(rows) > 1}
    blocks: list[Block] = []
    for component, rows in list(charted.items())[:MOST_COMPONENTS]:
        lines = [Line(name, [(float(at), rows[at].get(name)) for at in sorted(rows)]) for name in names]
        lines = [line for line in lines if any(value for _, value in line.points)]
        blocks.append(
            LineChart(f"Norm by layer: {component}", "layer", "norm", lines, note="One line per task vector.")
        )
    if single:
        cells: list[Row] = [[part, *(_shown(row.get(name)) for name in names)] for part, row in single.items()]
        blocks.append(Table("Norm outside layers", ["component", *names], cells))
    if len(charted) > MOST_COMPONENTS:
        left_out: list[Row] = [[part, str(len(charted[part]))] for part in list(charted)[MOST_COMPONENTS:]]
        note = "Their norms are in the JSON next to this page."
        blocks.append(Table("Stacks of layers without a picture", ["component", "layers"], left_out, note))
    return blocks


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _kept(result: Mapping[str, Any]) -> list[Block]:
    kept: Mapping[str, Mapping[str, float]] = result.get("kept", {})
    if not kept:
        return []
    names = list(dict.fromkeys(name for row in kept.values() for name in row))
    rows: list[Row] = [
        [part, *(Cell(f"{row[name]:.1%}", share=row[name]) if name in row else Cell("–") for name in names)]
        for part, row in kept.items()
    ]
    note = "Counted if the largest entries are kept; if entries are dropped at random, the density that was set."
    return [Table("Entries kept of each task vector", ["component", *names], rows, note)]
