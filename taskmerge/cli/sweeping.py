"""fuse --sweep: the table of a grid, and its best point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.cli.output import announce_preparing, note, print_json, print_table
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from taskmerge.recipes import Recipe
    from taskmerge.searching.sweep import Swept


def swept(
    path: Path, texts: Sequence[str], keep: str | None, device: str, as_json: bool
) -> tuple[Recipe | None, dict[str, Any] | None]:
    """Print the table of a sweep. Returns the best point's recipe where that is to be written, else None; and what
    --json tells of the sweep, which is printed here where nothing is written."""
    from taskmerge.recipes import load
    from taskmerge.searching.sweep import read_sweeps, sweep

    if keep not in (None, "best"):
        raise UsageError(f"--keep {keep!r} is not a valid choice", next_move="write --keep best")
    if not texts:
        raise UsageError("--keep needs a sweep", next_move="add --sweep scale=0.1:1.0:0.1")
    recipe = load(path)
    axes = read_sweeps(recipe, texts)
    has_pairs = bool((recipe.search and recipe.search.on) or (recipe.evaluate and recipe.evaluate.retrieval))
    if keep is not None and not has_pairs:
        what = "--keep best needs pairs to score on, and the recipe lists none"
        raise UsageError(what, str(path), "add evaluate: {retrieval: {NAME: PAIRS}}, or search: {on: …, maximize: …}")
    announce_preparing()
    table: dict[str, Any] | None = None
    found = sweep(recipe, axes, device=device, say=(lambda _: None) if as_json else note)
    best = max(found, key=lambda one: one.score if one.score is not None else 0.0)
    if as_json:
        rows = [{"values": dict(one.values), "length": one.length, "cosines": dict(one.cosines), "score": one.score,
                 "scores": dict(one.scores)} for one in found]  # fmt: skip
        table = {"points": rows, "best": dict(best.values) if has_pairs else None, "written": None}
        if keep is None:
            print_json(table)
    else:
        _show(found)
    if keep is None:
        return None, None
    shown = ", ".join(f"{name} {value}" for name, value in best.values.items())
    note(f"kept: {shown}, {best.score:.4f} on the pairs that it was chosen by")
    return best.recipe, table


def _show(found: Sequence[Swept]) -> None:
    names, labels = list(found[0].values), list(found[0].cosines)
    scores = [name for name in found[0].scores if not name.startswith("retrieval.") or name.endswith(".mrr")]
    head = [*names, *(["score"] if found[0].score is not None else []), *scores, "length"]
    rows = [
        [*one.values.values(), *([one.score] if one.score is not None else []), *(one.scores[name] for name in scores),
         one.length, *one.cosines.values()]
        for one in found
    ]  # fmt: skip
    print_table([*head, *(f"cosine with {label}" for label in labels)], rows, "sweep")
    note(
        "length: norm of the merged task vector divided by the base's norm; cosines: with each specialist's task vector"
    )
