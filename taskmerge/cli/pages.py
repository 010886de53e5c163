"""`--html`: pages of what commands found. Refused before the work where they may not be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.cli.output import note, progress

if TYPE_CHECKING:
    from taskmerge.merging import Plan, Written
    from taskmerge.recipes import Recipe
    from taskmerge.reporting import Section


def check_html(html: Path | None) -> None:
    """Refuse a page that may not be written before hours of work, not after."""
    if html is not None:
        from taskmerge.reporting import check_page

        check_page(html)


def write_page(
    html: Path, title: str, sections: Sequence[Section], data: Mapping[str, Any], lead: str = "", recipe: str = ""
) -> None:
    """Write the page and its JSON twin, and say where."""
    from taskmerge.reporting import write_report

    page, _ = write_report(html, title, sections, data, lead, recipe)
    note(f"page: {page}")


def write_fusion(
    html: Path, plan: Plan, recipe: Recipe, written: Written, seconds: float, *, compare: bool, device: str, quiet: bool
) -> None:
    """Write the page of a fuse. compare: read the task vectors once more, to compare them."""
    from taskmerge.reporting import fusion_sections, fusion_table

    compared = None
    if compare:
        from taskmerge.merging.compared import compare_planned
        from taskmerge.merging.fused import FusedStateDict

        merged = sum(step.info.nbytes for step in plan.steps if step.action == "merge")
        with progress(merged, "comparing", quiet=quiet) as advance:
            compared = compare_planned(FusedStateDict(plan, device), advance)
    table = fusion_table(plan, written, seconds, compared)
    lead = ", ".join(recipe.specialists) + f" fused by {recipe.merge.method}."
    write_page(html, "Fuse", fusion_sections(table, _after_fusing(recipe, written)), table, lead, recipe.text)


def write_stages(html: Path, table: Mapping[str, Any], stage: str | None = None) -> None:
    """Write the page of a run, or of one of its stages. table: of `pipeline.run`."""
    from taskmerge.pipeline.page import page_sections

    title = "Run" if stage is None else stage.capitalize()
    write_page(html, title, page_sections(table, stage), table, "", table["recipe"])


def _after_fusing(recipe: Recipe, written: Written) -> list[str]:
    """What to do with a fused model, as the recipe allows."""
    place = recipe.place.rpartition(":")[0] or recipe.place
    moves = [f"taskmerge diagnose-drift {place}"] if recipe.drift is not None else []
    if recipe.evaluate is not None:
        moves.append(f"taskmerge evaluate {place}")
    return moves or [f"taskmerge evaluate {written.path} --retrieval NAME=PAIRS scores it on pairs of your own"]
