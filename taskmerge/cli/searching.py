"""search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from taskmerge.cli.options import HTML, JSON, MODEL_DEVICE
from taskmerge.cli.output import announce_preparing, note, print_json, print_table, say
from taskmerge.words.places import output_path
from taskmerge.words.sizes import parse_size

if TYPE_CHECKING:
    from taskmerge.searching.outcome import Outcome

_SHOWN = 12


def search(
    recipe: Path = typer.Argument(help="A recipe with a `search` section."),
    out: Path = typer.Option(
        None, "-o", "--out", help="Folder of the study; OUT-search by default.", parser=output_path, metavar="<path>"
    ),
    trials: int = typer.Option(None, "--trials", min=1, help="How many trials; overrides the recipe's."),
    memory: str = typer.Option("4GiB", "--memory", help="What may be kept of what trials have in common."),
    device: str = MODEL_DEVICE,
    fresh: bool = typer.Option(False, "--fresh", help="Forget the trials of another search in the folder."),
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Find weights, methods and their parameters by trying them in memory.

    A killed search goes on with the same command; started several times at once, all work on one study. At the end the
    best is told on pairs that the search never saw, and best.yaml is an ordinary recipe.
    """
    from taskmerge.searching.api import search as run

    announce_preparing()
    options = {"out": out, "trials": trials, "device": device, "fresh": fresh, "page": html}
    found = run(recipe, memory=parse_size(memory), say=note, **options)
    if html is not None:
        note(f"page: {html}")
    if as_json:
        print_json(found.as_dict())
        return
    _show(found)


def _show(found: Outcome) -> None:
    scored = sorted((point for point in found.points if point.state == "scored"), key=lambda point: -sum(point.results))
    floors = list(dict.fromkeys(name for point in scored for name in point.short))
    scores = [name for name in dict.fromkeys(name for point in scored for name in point.scores) if _is_shown(name)]
    rows = [
        (point.name, *point.results, *(_missing(point.short.get(name)) for name in floors),
         *(point.scores.get(name) for name in scores))
        for point in scored[:_SHOWN]
    ]  # fmt: skip
    print_table(("point", *found.objectives, *(f"floor {name}" for name in floors), *scores), rows, "best points")
    if len(scored) > _SHOWN:
        note(f"{len(scored) - _SHOWN} more in the report")
    for line in (*found.sentences(), *found.notes):
        note(line)
    note(f"report: {found.folder / 'report.html'}")
    say(found.folder / "best.yaml")


def _is_shown(name: str) -> bool:
    return not name.startswith("retrieval.") or name.endswith(".mrr")


def _missing(value: float | None) -> str:
    return "" if value is None else f"short by {value:.4f}"


COMMANDS = (search,)
