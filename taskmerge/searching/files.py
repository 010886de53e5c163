"""Output files of a search: best.yaml, the recipes of the front, the report with its JSON and pictures."""

from __future__ import annotations

from pathlib import Path

from taskmerge.recipes import Recipe
from taskmerge.recipes.moving import moved
from taskmerge.recipes.varied import with_values
from taskmerge.reporting import write_report
from taskmerge.reporting.pictures import write_pictures
from taskmerge.searching.outcome import Outcome
from taskmerge.searching.page import BEST, lead, sections
from taskmerge.searching.points import Point
from taskmerge.searching.setting import Setting
from taskmerge.words.extras import missing
from taskmerge.words.system_errors import writing

PAGE = "report.html"


def write_files(outcome: Outcome, setting: Setting, page: str | Path | None = None) -> None:
    """Write everything into the search's folder, the report to `page` too. A recipe there names the same models as the
    one that was searched."""
    folder = outcome.folder
    if outcome.best is not None and outcome.recipe is not None:
        _write(folder / BEST, _text(outcome.best, outcome.recipe, setting, folder))
    if len(outcome.objectives) > 1:
        for point in outcome.front:
            recipe = with_values(setting.recipe, setting.axes, point.values)
            front = folder / "front"
            _write(front / f"{point.name.replace(' ', '-')}.yaml", _text(point, recipe, setting, front))
    shown = sections(outcome, setting)
    for place in (folder / PAGE, *([] if page is None else [page])):
        write_report(place, "Search", shown, outcome.as_dict(), lead(outcome, setting), setting.recipe.text)
    write_pictures(folder, shown)
    if missing(["matplotlib"]) is None:  # else the notes say so
        from taskmerge.reporting.pixels import write_pixels

        write_pixels(folder, shown)


def _text(point: Point, recipe: Recipe, setting: Setting, folder: Path) -> str:
    """A recipe as a file in `folder`."""
    scores = ", ".join(
        f"{objective.text} {value:.4f}" for objective, value in zip(setting.objectives, point.results, strict=True)
    )
    head = f"# Found by `taskmerge search`: {point.name}, {scores} on the pairs that were used to choose it.\n"
    return head + moved(recipe, folder).to_yaml()


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
