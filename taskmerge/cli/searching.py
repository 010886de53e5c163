"""search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from taskmerge.cli.options import HTML, JSON, MODEL_DEVICE, ON
from taskmerge.cli.output import announce_preparing, next_move, note, print_json, print_table, say
from taskmerge.words.places import output_path
from taskmerge.words.sizes import parse_size

if TYPE_CHECKING:
    from taskmerge.searching.outcome import Outcome

_SHOWN = 12


def search(
    recipe: Path = typer.Argument(help="A recipe with a `search` section."),
    out: Path = typer.Option(
        None, "-o", "--out", help="Folder for the study; OUT-search by default.", parser=output_path, metavar="<path>"
    ),
    trials: int = typer.Option(None, "--trials", min=1, help="Number of trials; overrides the recipe."),
    memory: str = typer.Option("4GiB", "--memory", help="Memory for results that several trials share."),
    device: str = MODEL_DEVICE,
    fresh: bool = typer.Option(False, "--fresh", help="Discard the trials of another search in the folder."),
    on: str = ON,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Find weights, methods and their parameters by trying merges in memory.

    Run the same command again to resume an interrupted search; run it several times at once to share one study. At the
    end, the best points are scored on pairs that the search did not use, and best.yaml is written as an ordinary
    recipe. With --on ray, one worker for each processor of the cluster shares the study; the order of trials, and so
    the values that are proposed, are not those of one process.
    """
    announce_preparing()
    allowed = parse_size(memory)
    if on is None:
        from taskmerge.searching.api import search as run

        found = run(recipe, out=out, trials=trials, device=device, fresh=fresh, memory=allowed, page=html, say=note)
    else:
        from taskmerge.searching.on_ray import search_on_ray
        from taskmerge.words.ray_cluster import parse_launcher

        address = parse_launcher(on)
        found = search_on_ray(address, recipe, out=out, trials=trials, device=device, fresh=fresh, memory=allowed,
                              page=html, say=note)  # fmt: skip
    if html is not None:
        note(f"page: {html}")
    if as_json:
        places = {"recipe": str(found.folder / "best.yaml"), "report": str(found.folder / "report.html")}
        print_json({**found.as_dict(), **places})
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
    next_move(f"taskmerge fuse {found.folder / 'best.yaml'}")
    say(found.folder / "best.yaml")


def _is_shown(name: str) -> bool:
    return not name.startswith("retrieval.") or name.endswith(".mrr")


def _missing(value: float | None) -> str:
    return "" if value is None else f"short by {value:.4f}"


COMMANDS = (search,)
