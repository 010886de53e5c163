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

COMPARE = "`taskmerge evaluate RECIPE` compares it with the base, the specialists and the fused model"
_MODELS = {"rehearse": "rehearsed", "recover": "recovered"}
"""Stage -> what the model that it leaves is called."""


@dataclass(frozen=True)
class StageResults:
    """The results of a recipe's stages, read from their notes.

    places: "fused", "recovered", … -> the model's folder.
    """

    places: Mapping[str, str] = field(default_factory=dict)
    fuse: Mapping[str, Any] | None = None
    diagnose: DriftReport | None = None
    recover: RecoveryReport | None = None
    trained: Mapping[str, StageReport] = field(default_factory=dict)
    evaluate: Evaluated | None = None


def run_page(found: StageResults) -> list[Section]:
    """Return the sections of all stages of a run, first the model to use."""
    sections = [Section("Verdict", tuple(_run_verdict(found)))]
    if found.evaluate is not None:
        sections += evaluation_page(found.evaluate, found.places)[1:]
    if found.diagnose is not None:
        sections += drift_details(found.diagnose)
    if found.recover is not None:
        sections += _recovery(found.recover)
    sections += [_training(name, report) for name, report in found.trained.items()]
    if found.fuse is not None:
        warnings = [Banner("open", "Warning", line) for line in found.fuse["warnings"]]
        sections.append(Section("Fuse", (*warnings, components_table(found.fuse["components"]))))
    return sections


def recovery_page(found: StageResults) -> list[Section]:
    """Return the sections about the results of `recover`."""
    if found.recover is None:
        return []
    return [Section("Verdict", (_recovery_verdict(found.recover, found.places),)), *_recovery(found.recover)]


def training_page(found: StageResults) -> list[Section]:
    """Return the sections about the results of `specialize` or `rehearse`."""
    verdicts = [_training_verdict(name, report, found.places) for name, report in found.trained.items()]
    return [Section("Verdict", verdicts), *(_training(name, report) for name, report in found.trained.items())]


def _run_verdict(found: StageResults) -> list[Banner]:
    banners = [] if found.evaluate is None else evaluation_verdict(found.evaluate, found.places)
    stages: list[Banner] = []
    if found.diagnose is not None and (found.recover is None or not found.diagnose.drifted):
        stages += drift_verdict(found.diagnose)
    elif found.diagnose is not None:
        names = ", ".join(found.diagnose.drifted)
        text = "This applies to the model before its repair; the numbers are in its section."
        stages.append(Banner("plain", f"Fusing alone made {names} drift", text))
    rehearsed = {name: report for name, report in found.trained.items() if report.stage == "rehearse"}
    if found.recover is not None:
        last = not banners and not rehearsed
        stages.append(_recovery_verdict(found.recover, found.places, last))
    stages += [_training_verdict(*one, found.places, not banners) for one in rehearsed.items()]
    if not banners:
        move = "add an `evaluate` section: it scores base, specialists and the models of all stages on your own pairs"
        latest = next((name for name in ("rehearsed", "recovered", "fused") if name in found.places), None)
        at = "" if latest is None else f" Latest model: {found.places[latest]}."
        banners = [Banner("open", "The variants were not compared with each other", at.strip(), [move])]
    return [*banners, *stages]


def _recovery_verdict(report: RecoveryReport, places: Mapping[str, str], last: bool = True) -> Banner:
    """last: nothing after it decides which model to use."""
    at = f" ({places['recovered']})" if "recovered" in places else ""
    if report.kept == LEAVE:
        moves = ["give more pairs in the data of the `recover` section: such a small difference needs more of them"]
        return Banner("open", f"Recovery changed nothing{at}", _sentence(report.reason), moves)
    gain = next((arm.gain for arm in report.arms if arm.name == report.kept), None)
    gained = "" if gain is None else f": MRR gained {gain.estimate:.3f} ({gain.low:.3f} to {gain.high:.3f})"
    text = _sentence(f"repaired by {report.kept}; {report.reason}")
    head = f"Use the recovered model{at}" if last else "Recovery repaired the fused model"
    return Banner("good", f"{head}{gained}", text, [COMPARE] if last else [])


def _recovery(report: RecoveryReport) -> list[Section]:
    spans = [Span(arm.name, arm.gain.estimate, arm.gain.low, arm.gain.high) for arm in report.arms if arm.gain]
    note = "Pair by pair against the unchanged model; an interval that contains zero shows no gain beyond chance."
    gains = RangeChart("Gain in MRR of every repair method", spans, note, zero=True)
    arms = recovery_section(report)
    return [Section("Recovery", (gains, *arms.blocks))]


def _training_verdict(name: str, report: StageReport, places: Mapping[str, str], last: bool = True) -> Banner:
    """last: nothing after it decides which model to use."""
    stage, model = _sentence(_called(name))[:-1], _MODELS.get(report.stage)
    at = f" ({places[model]})" if model is not None and model in places else ""
    said = " ".join(f"{line}." for line in report.verdict())
    if report.barred or not report.kept:
        head = f"{stage}: the model was left unchanged{at}"
        if report.barred:
            return Banner("bad", head, said)
        return Banner("open", head, "No step was better.", ["try another learning rate, more steps or more pairs"])
    tone: Tone = "open" if report.below else "good"
    change = ""
    if "mrr" in report.before and "mrr" in report.after:
        change = f": mean MRR {report.before['mrr']:.3f} → {report.after['mrr']:.3f}"
    else:
        tone, said = "plain", f"{said} No pairs were held out: it was not measured whether the model improved.".strip()
    use = model is not None and last
    head = f"Use the {model} model{at}{change}" if use else f"{stage}{change or ': trained'}"
    return Banner(tone, head, said, [COMPARE] if use else [])


def _training(name: str, report: StageReport) -> Section:
    return Section(f"Training: {_called(name)}", (*_before_after(report), *training_section(report).blocks))


def _called(name: str) -> str:
    """A stage as its note is named, in words: "specialize-audio"."""
    return name.replace("-", " ", 1)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _before_after(report: StageReport) -> list[Block]:
    """Scores on held-out pairs before and after, a row each."""
    rows: list[Row] = []
    for key, before in report.before.items():
        row, after = statistic(key), report.after.get(key)
        if after is None or row.title == key.replace("_", " "):  # not a score: what decides between looks
            continue
        target = report.targets.get(key.removesuffix("_mrr")) if key.endswith("_mrr") else None
        called = "mean MRR" if key == "mrr" else title_of(key)
        cells: list[Cell | str] = [row.shown(before), Cell(row.shown(after), share=after), f"{after - before:+.3f}"]
        rows.append([called, *cells, *([row.shown(target)] if report.targets else [])])
    columns = ["held-out pairs", "before", "after", "change", *(["specialist"] if report.targets else [])]
    note = "Means over held-out pairs. The paired intervals measured during training decide."
    return [Table(f"{report.stage}: before and after", columns, rows, note)]
