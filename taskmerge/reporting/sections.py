"""From results to sections: what a diagnosis, an evaluation, a recovery and a training stage show of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskmerge.measuring.drift.forecast import Forecast
from taskmerge.measuring.drift.report import DriftReport, ModalityDrift
from taskmerge.reporting.content import (
    Banner,
    Block,
    Cell,
    Line,
    LineChart,
    RangeChart,
    Section,
    Span,
    Table,
    Tone,
)
from taskmerge.training.arms import RecoveryReport
from taskmerge.training.stages import StageReport
from taskmerge.words.statistics import CHARTED, statistic
from taskmerge.words.statistics import title as title_of

Row = Sequence[Cell | str]

TONES: Mapping[str, Tone] = {"drifted": "bad", "not drifted": "good", "cannot tell": "open"}


def drift_sections(report: DriftReport) -> list[Section]:
    """Return one section per modality, which begins with its verdict, and one of the forecasts."""
    sections = [
        Section(f"Drift of {name}", tuple(_modality_blocks(found))) for name, found in report.modalities.items()
    ]
    forecasts = tuple(block for name, found in report.forecasts.items() for block in _forecast_blocks(name, found))
    return [*sections, Section("From the weights alone: a forecast, not a measurement", forecasts)]


def _modality_blocks(found: ModalityDrift) -> list[Block]:
    verdict = found.verdict
    headline = f"{found.modality}: {verdict.outcome}"
    if verdict.beyond_limit:
        headline += f", beyond the limit of {100 * verdict.limit:g} points"
    return [
        Banner(TONES[verdict.outcome], headline, " ".join([str(verdict), *found.notes])),
        _statistics_chart(found),
        _scores_table(found),
        _depth_chart(found),
        _control_table(found),
        _explanations_table(found),
    ]


def _statistics_chart(found: ModalityDrift) -> RangeChart:
    spans = [
        Span(
            title_of(name),
            found.intervals[name].estimate,
            found.intervals[name].low,
            found.intervals[name].high,
            found.bands[name].limit,
            statistic(name).worse == "low",
        )
        for name in CHARTED
    ]
    sources = ", ".join(found.bands[CHARTED[0]].sources)
    return RangeChart(
        "Deciding statistics, against the null band",
        spans,
        f"Mean over {found.probes} probes with 95 % bootstrap intervals. Shaded: the range of the statistic "
        f"without drift (the specialist against: {sources}); squares are outside of it.",
    )


def _scores_table(found: ModalityDrift) -> Table:
    metrics = list(found.scores["specialist"])
    rows: list[Row] = [
        [side, *(Cell(statistic(m).shown(scores[m]), share=scores[m]) for m in metrics)]
        for side, scores in found.scores.items()
    ]
    return Table(
        "Retrieval",
        ["", *(title_of(metric) for metric in metrics)],
        rows,
        f"{found.probes} probes, {found.distinct_texts} distinct texts, each gallery embedded by its own model"
        f"{', ' + found.computed_in if found.computed_in else ''}.",
    )


def _depth_chart(found: ModalityDrift) -> LineChart:
    cosine = Line(title_of("cosine"), [(change.depth, change.cosine) for change in found.depths])
    cka = Line(title_of("debiased_cka"), [(change.depth, change.debiased_cka) for change in found.depths])
    norm = Line(title_of("relative_norm"), [(change.depth, change.relative_norm) for change in found.depths])
    onset = "" if found.onset is None else f" The mean cosine falls below 0.99 at depth {found.onset}."
    return LineChart(
        "Start of the drift: projected tokens of the fused model against the specialist's, by depth",
        "depth (0: the input of the first layer)",
        "1 = unchanged",
        [cosine, cka, norm],
        note=f"The depth in the backbone at which the same projected tokens begin to differ.{onset}",
    )


def _control_table(found: ModalityDrift) -> Table:
    control = found.control
    towers: Row = [
        f"tensors of encoder and projector ({control.tensors})",
        f"{control.changed} differ" if control.changed else "bit-identical" if control.tensors else "unknown",
    ]
    if not control.outputs:
        return Table("Control", ["", ""], [["projector output", "not checked: none was recorded"], towers])
    equal = "bit-identical" if control.identical else f"differs by {control.relative_change:.2%}"
    rows: list[Row] = [[f"projector output ({control.outputs} vectors)", equal], towers]
    for title, values in (
        ("length against token embeddings", control.norm_against_tokens),
        ("Fréchet distance to token embeddings / their variance", control.shift_against_tokens),
    ):
        rows += [[f"{title}, {side}", f"{value:.3f}"] for side, value in (values or {}).items()]
    return Table("Control: the inputs of the backbones", ["", ""], rows)


def _explanations_table(found: ModalityDrift) -> Table:
    rows: list[Row] = [[title_of(name), statistic(name).shown(value)] for name, value in found.explanations.items()]
    return Table("Final embeddings: statistics that explain, but do not decide", ["", ""], rows)


def _forecast_blocks(name: str, found: Forecast) -> list[Block]:
    points = [(float(layer.layer), layer) for layer in found.layers if layer.layer is not None]
    lines = [Line(title_of("displacement"), [(x, layer.displacement) for x, layer in points])]
    if found.overlap is not None:
        lines.append(Line(title_of("overlap"), [(x, layer.overlap) for x, layer in points]))
    chance = "" if found.chance is None else f" Overlap by chance: {found.chance:.3f}."
    unit = "‖base‖ (the specialist's backbone is the base's)" if found.unit == "base" else "‖specialist - base‖"
    return [
        LineChart(
            f"{name}: distance of the fused backbone from the specialist, by layer",
            "layer",
            "",
            lines,
            note=f"Displacement: ‖fused - specialist‖ / {unit}. Overlap: its share in the directions that the "
            f"projector writes to.{chance} Cosine of fused - base with specialist - base: {found.cosine:.3f}.",
        )
    ]


def recovery_section(report: RecoveryReport) -> Section:
    """Return every method with its held-out scores; the chosen one in bold."""
    names = [name for name in report.arms[0].scores if name != "mrr"]
    rows: list[Row] = []
    for arm in report.arms:
        kept = arm.name == report.kept
        scores = [Cell(statistic(name).shown(arm.scores[name]), share=arm.scores[name], strong=kept) for name in names]
        decides = Cell(statistic("mrr").shown(arm.scores["mrr"]), strong=kept)
        name, seconds = Cell(arm.name, "kept" if kept else "", strong=kept), f"{arm.seconds:.0f}\u00a0s"
        rows.append([name, *scores, decides, "" if arm.gain is None else str(arm.gain), seconds, arm.note])
    columns = ["arm", *(title_of(name) for name in names), f"mean {title_of('mrr')}", "gain (decides)", "time", ""]
    note = " ".join([f"Kept: {report.kept}: {report.reason}." if report.reason else "", *report.notes]).strip()
    title = "Recovery: all methods, measured on the same held-out pairs"
    return Section(title, (Table("Arms", columns, rows, note),))


def training_section(report: StageReport) -> Section:
    """Learning curves of one stage from the initial model, one line per modality."""
    curves = [{"step": 0.0, **report.before}, *report.curves] if report.before and report.curves else report.curves
    names = [name for name in (curves[0] if curves else {}) if name.endswith("_recall_at_1")]
    lines = [
        Line(name.removesuffix("_recall_at_1"), [(row["step"], row.get(name)) for row in curves]) for name in names
    ]
    chart = LineChart(
        f"{report.stage}: R@1 on held-out pairs while training",
        "step",
        "R@1",
        lines,
        note=f"{report.steps} steps in {report.seconds:.0f} s; {report.trained} tensors trained, {report.frozen} "
        "verified as unchanged."
        + "".join(f" {said}." for said in report.verdict())
        + ("" if report.kept or report.barred else " No step was better than the initial model, which was kept.")
        + "".join(f" {said}" for said in report.notes),
    )
    losses = [Line("loss", [(float(step), loss) for step, loss in report.losses])]
    fell = LineChart(f"{report.stage}: loss", "step", "loss", losses, note="InfoNCE, mean since the previous point.")
    charts = ((chart,) if lines else ()) + ((fell,) if report.losses else ())
    return Section(f"Training: {report.stage}", charts)
