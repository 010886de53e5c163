"""Pages of the stages that train, and of a whole run: which model to use, then what each stage found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskmerge.measuring.drift.report import DriftReport
from taskmerge.measuring.evaluation.table import Evaluated
from taskmerge.reporting.conclusions import evaluation_page, evaluation_verdict
from taskmerge.reporting.content import Banner, Block, Cell, RangeChart, Section, Span, Table, Tone
from taskmerge.reporting.drifting import drift_details, drift_verdict
from taskmerge.reporting.fusions import components_table
from taskmerge.reporting.sections import recovery_section, training_section
from taskmerge.training.arms import RecoveryReport
from taskmerge.training.choosing import LEAVE
from taskmerge.training.stages import StageReport
from taskmerge.words.statistics import statistic
from taskmerge.words.statistics import title as title_of

Row = Sequence[Cell | str]


@dataclass(frozen=True)
class StageResults:
    """What the stages of a recipe found, read back. places: "fused", "recovered", … -> the model's folder."""

    places: Mapping[str, str] = field(default_factory=dict)
    fuse: Mapping[str, Any] | None = None
    diagnose: DriftReport | None = None
    recover: RecoveryReport | None = None
    trained: Sequence[StageReport] = ()
    evaluate: Evaluated | None = None


def run_page(found: StageResults) -> list[Section]:
    """All stages of a run, led by which model to use."""
    sections = [Section("Verdict", tuple(_run_verdict(found)))]
    if found.evaluate is not None:
        sections += evaluation_page(found.evaluate, found.places)[1:]
    if found.diagnose is not None:
        sections += drift_details(found.diagnose)
    if found.recover is not None:
        sections += _recovery(found.recover)
    sections += [section for report in found.trained for section in _training(report)]
    if found.fuse is not None:
        warnings = [Banner("open", "Warning", line) for line in found.fuse["warnings"]]
        sections.append(Section("Fuse", (*warnings, components_table(found.fuse["components"]))))
    return sections


def recovery_page(found: StageResults) -> list[Section]:
    """What `recover` found."""
    if found.recover is None:
        return []
    return [Section("Verdict", (_recovery_verdict(found.recover, found.places),)), *_recovery(found.recover)]


def training_page(found: StageResults) -> list[Section]:
    """What `specialize` or `rehearse` found."""
    verdicts = [_training_verdict(report, found.places) for report in found.trained]
    return [Section("Verdict", verdicts), *(part for report in found.trained for part in _training(report))]


def _run_verdict(found: StageResults) -> list[Banner]:
    banners = [] if found.evaluate is None else evaluation_verdict(found.evaluate, found.places)
    stages: list[Banner] = []
    if found.diagnose is not None and (found.recover is None or not found.diagnose.drifted):
        stages += drift_verdict(found.diagnose)
    elif found.diagnose is not None:
        names = ", ".join(found.diagnose.drifted)
        text = "This applies to the model before its repair; the numbers are in its section."
        stages.append(Banner("plain", f"Fusing alone made {names} drift", text))
    if found.recover is not None:
        stages.append(_recovery_verdict(found.recover, found.places))
    stages += [_training_verdict(report, found.places) for report in found.trained if report.stage == "rehearse"]
    if not banners:
        move = "an `evaluate` section scores base, specialists and what the stages left on pairs of your own"
        latest = next((name for name in ("rehearsed", "recovered", "fused") if name in found.places), None)
        at = "" if latest is None else f" Latest model: {found.places[latest]}."
        banners = [Banner("open", "The variants were not scored side by side", at.strip(), [move])]
    return [*banners, *stages]


def _recovery_verdict(report: RecoveryReport, places: Mapping[str, str]) -> Banner:
    at = f" ({places['recovered']})" if "recovered" in places else ""
    if report.kept == LEAVE:
        text = f"{report.reason}." if report.reason else ""
        moves = ["more pairs in the `recover` section's data; a difference this small needs more of them to be sure"]
        return Banner("open", f"Recovery changed nothing{at}", text, moves)
    gain = next((arm.gain for arm in report.arms if arm.name == report.kept), None)
    gained = "" if gain is None else f": MRR gained {gain.estimate:.3f} ({gain.low:.3f} to {gain.high:.3f})"
    return Banner("good", f"Use the recovered model{at}{gained}", f"Repaired by {report.kept}; {report.reason}.")


def _recovery(report: RecoveryReport) -> list[Section]:
    spans = [Span(arm.name, arm.gain.estimate, arm.gain.low, arm.gain.high) for arm in report.arms if arm.gain]
    note = "Pair by pair against leaving the model as it is; an interval that holds zero shows no gain beyond chance."
    gains = RangeChart("Gain in MRR of every way of repairing", spans, note)
    arms = recovery_section(report)
    return [Section("Recovery", (gains, *arms.blocks))]


def _training_verdict(report: StageReport, places: Mapping[str, str]) -> Banner:
    model = {"rehearse": "rehearsed", "recover": "recovered"}.get(report.stage, "specialist")
    at = f" ({places[model]})" if model in places else ""
    said = " ".join(f"{line}." for line in report.verdict())
    if report.barred:
        return Banner("bad", f"The {report.stage} stage left the model unchanged{at}", said)
    if not report.kept:
        moves = ["another learning rate, more steps or more pairs"]
        return Banner("open", f"The {report.stage} stage left the model unchanged{at}", "Nothing beat it.", moves)
    tone: Tone = "open" if report.below else "good"
    change = ""
    if "mrr" in report.before and "mrr" in report.after:
        change = f": mean MRR {report.before['mrr']:.3f} → {report.after['mrr']:.3f}"
    else:
        tone, said = "plain", f"{said} No pairs were held out, so whether it became better was not measured.".strip()
    return Banner(tone, f"Use the {model} model{at}{change}" if model != "specialist" else f"Trained{change}", said)


def _training(report: StageReport) -> list[Section]:
    section = training_section(report)
    return [Section(section.title, (*_before_after(report), *section.blocks))]


def _before_after(report: StageReport) -> list[Block]:
    """Scores on held-out pairs before and after, a row each."""
    keys = [key for key in report.before if key in report.after and statistic(key).title != key.replace("_", " ")]
    rows: list[Row] = []
    for key in keys:
        row, before, after = statistic(key), report.before[key], report.after[key]
        target = report.targets.get(key.removesuffix("_mrr")) if key.endswith("_mrr") else None
        cells = [row.shown(before), Cell(row.shown(after), share=after), f"{after - before:+.3f}"]
        rows.append([title_of(key), *cells, *([row.shown(target)] if report.targets else [])])
    columns = ["held-out pairs", "before", "after", "change", *(["specialist"] if report.targets else [])]
    note = "Means over held-out pairs. The paired intervals that decide are taken at every look; see the floors."
    return [Table(f"{report.stage}: before and after", columns, rows, note)]
