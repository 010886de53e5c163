"""Sections about a fuse: the model and its use, the treatment of each component, and the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskmerge.reporting.comparisons import comparison_sections
from taskmerge.reporting.content import Banner, Block, Cell, Section, Table
from taskmerge.words.sizes import show_bytes

if TYPE_CHECKING:
    from taskmerge.merging import Plan, Written

Row = Sequence[Cell | str]

MOST_RULES = 60


def fusion_table(plan: Plan, written: Written, seconds: float, compared: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the data of the page of a fuse. compared: see `compare_planned`; None: not requested."""
    from taskmerge.merging.provenance import sentence

    return {
        "path": str(written.path),
        "bytes": written.bytes,
        "seconds": seconds,
        "sha256": dict(written.sha256),
        "components": {name: dict(counts) for name, counts in plan.table().items()},
        "rules": dict(Counter(sentence(step) for step in plan.steps).most_common()),
        "dropped": {f"{drop.source.label}: {drop.source.name}": drop.rule for drop in plan.dropped},
        "resumed": list(written.resumed),
        "remade": list(written.remade),
        "left": list(written.left),
        "warnings": list(plan.warnings),
        "notes": list(plan.notes),
        "compared": compared,
    }


def fusion_sections(table: Mapping[str, Any], moves: Sequence[str] = ()) -> list[Section]:
    """Return the sections of the page of a fuse. table: of `fusion_table`; moves: next moves."""
    counts = Counter[str]()
    for row in table["components"].values():
        counts.update(row)
    done = ", ".join(f"{counts[key]} {word}" for key, word in _ACTIONS.items() if counts[key])
    text = f"{show_bytes(table['bytes'])} in {table['seconds']:.1f} s. Only a measurement shows how good the model is."
    use = Banner("plain", f"Fused: {table['path']}", f"Tensors: {done}. {text}", moves)
    warnings = [Banner("open", "Warning", line) for line in table["warnings"]]
    found = [
        Section("Result", (use, *warnings, *_to_know(table))),
        Section("How tensors were treated", (components_table(table["components"]), *_rules(table), *_dropped(table))),
    ]
    return [*found, *(comparison_sections(table["compared"]) if table["compared"] else [])]


_ACTIONS = {"merge": "merged", "keep": "kept as in the base", "copy": "copied"}


def _to_know(table: Mapping[str, Any]) -> list[Block]:
    lines = [*table["notes"], *(f"{file}: reused from the interrupted run" for file in table["resumed"])]
    lines += [f"{file}: changed since the interrupted run wrote it; written again" for file in table["remade"]]
    lines += [f"left in place: {path}" for path in table["left"]]
    if table["compared"] is None:
        lines.append("The task vectors were not compared; --compare does this, and reads all inputs once more.")
    return [Table("Notes", [""], [[line] for line in lines], words=True)]


def components_table(components: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the table of tensors that are merged, kept and copied, by component."""
    rows: list[Row] = []
    for name, counts in sorted(components.items()):
        total = sum(counts.values())
        cells = [Cell(str(counts.get(key, 0)), share=counts.get(key, 0) / total) for key in _ACTIONS]
        rows.append([name, *cells])
    return Table("Tensors by component", ["component", *_ACTIONS.values()], rows)


def _rules(table: Mapping[str, Any]) -> list[Block]:
    rules = list(table["rules"].items())
    rows: list[Row] = [[rule, f"{count:,}"] for rule, count in rules[:MOST_RULES]]
    more = len(rules) - MOST_RULES
    note = "" if more <= 0 else f"{more} more are in the JSON next to this page."
    return [Table("Tensors by rule", ["rule", "tensors"], rows, note)]


def _dropped(table: Mapping[str, Any]) -> list[Block]:
    dropped = list(table["dropped"].items())
    rows: list[Row] = [[name, rule] for name, rule in dropped[:MOST_RULES]]
    more = len(dropped) - MOST_RULES
    note = "" if more <= 0 else f"{more} more are in the JSON next to this page."
    return [Table("Input tensors that are not in the output", ["tensor", "why"], rows, note, words=True)]
