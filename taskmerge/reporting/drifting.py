"""The page of a drift diagnosis: the verdict and what to do, every statistic, examples and a map."""

from __future__ import annotations

from collections.abc import Sequence

from taskmerge.measuring.drift.examples import EmbeddingPlane, Example
from taskmerge.measuring.drift.report import DriftReport, ModalityDrift
from taskmerge.reporting.content import Banner, Block, Cell, EmbeddingMap, Moved, Section, Table
from taskmerge.reporting.sections import drift_sections

Row = Sequence[Cell | str]


def drift_page(report: DriftReport) -> list[Section]:
    """Return the sections of a report, first the model to use."""
    return [Section("Verdict", tuple(drift_verdict(report))), *drift_details(report)]


def drift_details(report: DriftReport) -> list[Section]:
    """Return a section for each modality, with its examples and its map, and one of the forecasts."""
    found = drift_sections(report)
    own = list(report.modalities.values())
    shown = [Section(one.title, (*one.blocks, *_seen(of))) for one, of in zip(found, own, strict=False)]
    return [*shown, *found[len(own) :]]


def drift_verdict(report: DriftReport) -> list[Banner]:
    """Return banners with the model to use for each modality, and the next move; the numbers are in its own section."""
    if not report.modalities:
        text = (
            "Nothing was measured: the forecast below comes from the weights alone, and recall depends on it "
            "only loosely."
        )
        return [Banner("open", "No verdict without probes", text, ["run the same command with --probes PAIRS"])]
    banners = []
    calm = [name for name in report.modalities if name not in (*report.drifted, *report.open)]
    if calm:
        text = f"No loss beyond the limit was found for {', '.join(calm)}, on items like these probes."
        banners.append(Banner("good", f"Use the fused model for {', '.join(calm)}", text))
    for name in report.drifted:
        beyond = name in report.beyond_limit
        loss = report.modalities[name].verdict.loss
        lost = f"{100 * loss.estimate:.1f} points of R@1 (95 % interval {100 * loss.low:.1f} to {100 * loss.high:.1f})"
        if beyond:
            moves = [
                f"add a `recover` section that trains the projector of {name}, then run `taskmerge recover RECIPE`"
            ]
            text = f"The fused model lost {lost}."
            banners.append(Banner("bad", f"Use the specialist for {name}, or repair the fused model", text, moves))
        else:
            text = f"It lost {lost}. This loss is certain, and within the limit."
            banners.append(Banner("plain", f"The fused model may be used for {name}", text))
    for name in report.open:
        needed = report.modalities[name].verdict.probes_needed
        moves = [f"give about {needed} probes (there were {report.modalities[name].probes})"] if needed else []
        text = "Until then the specialist is the safe choice."
        banners.append(Banner("open", f"Drift cannot be decided for {name}", text, moves))
    return banners


def _seen(found: ModalityDrift) -> list[Block]:
    blocks: list[Block] = [_examples(found.examples)] if found.examples else []
    if found.plane is not None:
        blocks.append(_map(found.modality, found.plane, found.probes))
    return blocks


def _examples(examples: Sequence[Example]) -> Table:
    rows: list[Row] = [
        [one.item, one.text, Cell(_ranks(one), strong=True), " · ".join(one.before), " · ".join(one.after)]
        for one in examples
    ]
    note = (
        "The items that lost most, the worst first. Texts: the nearest first. Rank: the position of the "
        "item's own text."
    )
    columns = ["item", "its text", "rank", "nearest under the specialist", "nearest under the fused model"]
    return Table("Items whose neighbours changed", columns, rows, note, words=True)


def _ranks(one: Example) -> str:
    return f"{one.rank_before} → {one.rank_after}"


def _map(modality: str, plane: EmbeddingPlane, probes: int) -> EmbeddingMap:
    moved = [Moved(one.item, (one.x_before, one.y_before), (one.x_after, one.y_after)) for one in plane.items]
    first, second = (f"{share:.0%} of the variance" for share in plane.shares)
    some = "" if len(moved) == probes else f" Shown: {len(moved)} of {probes} items, evenly chosen."
    note = (
        "A line joins each item's embedding by the specialist with that by the fused model, after the rotation "
        "that fits "
        f"the texts, on two principal axes of the specialist's embeddings; the other axes are not shown.{some}"
    )
    fixed = {one.text: (one.x, one.y) for one in plane.texts}
    return EmbeddingMap(f"Map of the {modality} embeddings", first, second, moved, fixed, note)
