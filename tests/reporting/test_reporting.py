"""Reports: what stands in them, that they need nothing beside themselves, and that text cannot break out."""

from __future__ import annotations

import html.parser
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from taskmerge.errors import OutputError
from taskmerge.measuring.drift.comparison import DepthChange, ProjectorControl
from taskmerge.measuring.drift.forecast import Forecast, LayerForecast
from taskmerge.measuring.drift.null_band import null_bands
from taskmerge.measuring.drift.report import DriftReport, ModalityDrift
from taskmerge.measuring.drift.verdict import judge
from taskmerge.measuring.evaluation import Difference, EvaluationTable, MtebScores, RetrievalResult
from taskmerge.measuring.evaluation.table import Condition
from taskmerge.metrics.bootstrap import Interval, mean_interval
from taskmerge.metrics.retrieval import METRICS
from taskmerge.reporting import (
    drift_sections,
    evaluated_sections,
    evaluation_section,
    mteb_section,
    recovery_section,
    show,
    training_section,
    write_report,
)
from taskmerge.reporting.charts import line_chart, range_chart
from taskmerge.reporting.content import Line, LineChart, RangeChart, Section, Span, Table
from taskmerge.training.arms import Arm, RecoveryReport
from taskmerge.training.stages import StageReport

STATISTICS = ("neighbour_overlap", "rotated_cosine", "cosine", "margin_loss", "recall_at_1_loss", "mrr_loss")


def drift_report(source: str = "pairs.jsonl") -> DriftReport:
    rng = np.random.default_rng(0)
    loss = rng.binomial(1, 0.3, 200).astype(float)
    changes = {name: rng.uniform(0.3, 0.6, 200) for name in STATISTICS} | {"recall_at_1_loss": loss}
    still = {name: np.zeros(200) for name in STATISTICS} | {
        name: np.full(200, 0.99) for name in ("neighbour_overlap", "rotated_cosine", "cosine")
    }
    bands = null_bands({"bfloat16": still})
    texts = [str(i % 50) for i in range(200)]
    found = ModalityDrift(
        "audio", source, 200, 50,
        judge(changes, bands, texts=texts, specialist_recall=0.9),
        {"specialist": dict.fromkeys(METRICS, 0.9), "fused": dict.fromkeys(METRICS, 0.6)},
        {name: mean_interval(values, groups=texts) for name, values in changes.items()},
        bands,
        ProjectorControl(2400, True, 0.0, {"specialist": 1.1, "fused": 1.0}, {"specialist": 2.0, "fused": 2.5}),
        tuple(DepthChange(d, 1 - 0.05 * d, 1 + 0.02 * d, 0.1 * d, 1 - 0.03 * d if d % 2 else None) for d in range(7)),
        {"debiased_cka": 0.8, "effective_rank_fused": float("nan")},
    )  # fmt: skip
    layers = tuple(LayerForecast(layer, 0.5 + 0.1 * layer, 0.2) for layer in range(6))
    return DriftReport({"audio": found}, {"audio": Forecast(layers, 0.7, 0.1, 0.2, 30, 0.08)})


def evaluation() -> EvaluationTable:
    def row(variant: str, set_name: str, score: float) -> RetrievalResult:
        interval = Interval(score, score - 0.05, score + 0.05, 100)
        return RetrievalResult(variant, set_name, set_name, "to_text", 100, 50, dict.fromkeys(METRICS, interval))

    return EvaluationTable((row("base", "image", 0.4), row("fused", "image", 0.6), row("fused", "audio", 0.5)))


def recovery() -> RecoveryReport:
    arms = [
        Arm(n, {"audio_recall_at_1": s, "audio_mrr": s, "mrr": s}, 9.0, "")
        for n, s in [("leave it", 0.5), ("gradient", 0.85)]
    ]
    return RecoveryReport(tuple(arms), "gradient")


def training() -> StageReport:
    curves = [
        {"step": float(s), "audio_recall_at_1": 0.5 + s / 400, "audio_mrr": 0.6, "mrr": 0.6} for s in (0, 50, 100)
    ]
    return StageReport("recover", 100, 36.0, 4, 120, curves=curves)


def sections() -> list[Section]:
    return [
        *drift_sections(drift_report()),
        evaluation_section(evaluation()),
        recovery_section(recovery()),
        training_section(training()),
    ]


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps their attributes and the text."""

    VOID = frozenset(["meta", "br", "wbr", "rect", "line", "circle", "polyline"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for key, value in attributes if key in ("src", "href", "xlink:href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def test_learning_curves_begin_with_the_model_as_it_came() -> None:
    curves = [{"step": 50.0, "audio_recall_at_1": 0.7, "mrr": 0.8}]
    report = StageReport("rehearse", 50, 9.0, 4, 0, before={"audio_recall_at_1": 0.4, "mrr": 0.5}, curves=curves)
    (chart,) = training_section(report).blocks
    assert isinstance(chart, LineChart)
    assert [(line.name, line.points) for line in chart.lines] == [("audio", [(0.0, 0.4), (50.0, 0.7)])]


def test_the_page_stands_alone_and_says_what_was_found(tmp_path: Path) -> None:
    report = drift_report()
    page, twin = write_report(tmp_path / "out" / "report", "A fusion", sections(), {"drift": report.as_dict()})
    assert (page.name, twin.name) == ("report.html", "report.json")
    text = page.read_text("utf-8")
    parsed = Page(text)
    assert parsed.links and all(link.startswith("#part-") for link in parsed.links)
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert parsed.tags.count("svg") == 2 * 4  # for a window, and for a phone
    for words in (
        "audio: drifted, beyond the limit of 5 points",
        "bit-identical",
        "Recovery: all methods",
        "gradient kept",
    ):
        assert words in re.sub(r"\s+", " ", parsed.words), words
    stored = json.loads(twin.read_text("utf-8"))
    assert stored["drift"]["modalities"]["audio"]["verdict"]["outcome"] == "drifted"
    assert stored["drift"]["modalities"]["audio"]["explanations"]["effective_rank_fused"] is None


def test_a_drift_report_survives_json() -> None:
    report = drift_report()
    again = DriftReport.from_dict(json.loads(json.dumps(report.as_dict())))
    assert again.as_dict() == report.as_dict()
    assert again.exit_code == report.exit_code == 3
    assert again.modalities["audio"].verdict == report.modalities["audio"].verdict
    assert np.isnan(again.modalities["audio"].explanations["effective_rank_fused"])


def test_text_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = '</title><script>alert("x")</script>&'
    table = Table(evil, [evil], [[evil]], evil)
    chart = LineChart(evil, evil, evil, [Line(evil, [(0, 1), (1, 2)])])
    spans = RangeChart(evil, [Span(evil, 1, 0, 2)])
    page, _ = write_report(tmp_path / "r.html", evil, [Section(evil, (table, chart, spans))], {}, evil)
    parsed = Page(page.read_text("utf-8"))
    assert "script" not in parsed.tags
    assert parsed.words.count('alert("x")') >= 8


@pytest.mark.parametrize("offset", [0.0, -3.0, 1e6])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 1e4])
def test_charts_draw_inside_their_frame(offset: float, spread: float) -> None:
    points: list[tuple[float, float | None]] = [(i, offset + spread * np.sin(i)) for i in range(8)]
    points[3] = (3, None)
    lines = [Line(f"line {number}", points) for number in range(8)]
    drawn = [
        line_chart(LineChart("t", "x", "y", lines)),
        range_chart(RangeChart("t", [Span("s", offset, offset - spread, offset + spread, offset - 2 * spread)])),
    ]
    for text in drawn:
        root = ElementTree.fromstring(text)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for node in root.iter():
            for key, limit in (
                ("cx", width),
                ("x1", width),
                ("x2", width),
                ("cy", height),
                ("y1", height),
                ("y", height),
            ):
                if key in node.attrib:
                    assert -1 <= float(node.attrib[key]) <= limit + 1, (node.tag, key, node.attrib[key])


def test_a_chart_of_one_point_and_of_none() -> None:
    assert "circle" in line_chart(LineChart("t", "x", "y", [Line("a", [(2, 0.5)])]))
    assert line_chart(LineChart("t", "x", "y", [Line("a", [(2, None)])])) == ""
    assert range_chart(RangeChart("t", [])) == ""


def test_values_are_where_the_axis_says() -> None:
    text = line_chart(LineChart("t", "x", "y", [Line("a", [(0, 0.0), (10, 1.0)])], y_range=(0, 1)))
    root = ElementTree.fromstring(text)
    dots = [node for node in root.iter() if node.tag == "circle"]
    ticks = {node.text: node for node in root.iter() if node.attrib.get("class") == "tick"}
    assert float(dots[1].attrib["cy"]) == pytest.approx(float(ticks["1"].attrib["y"]) - 4)
    assert float(dots[1].attrib["cx"]) == pytest.approx(float(ticks["10"].attrib["x"]))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_shows_verdict_tables_and_what_charts_draw(terminal: bool) -> None:
    stream = io.StringIO()
    show(sections(), Console(file=stream, width=200, no_color=True, force_terminal=terminal))
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).split())
    for words in (
        "✕ audio: drifted", "neighbour overlap", "leave it", "null band", "0.600 0.550-0.650",
        "The mean cosine falls below 0.99 at depth 1", "‖fused - specialist‖",
    ):  # fmt: skip
        assert words in text, words
    assert ("┏" in text) is terminal


def test_where_nobody_draws_tables_are_tab_separated() -> None:
    chart = LineChart(
        "depths", "depth", "", [Line("cosine", [(x, x / 4) for x in range(40)]), Line("CKA", [(0, None)])]
    )
    stream = io.StringIO()
    show([Section("", (chart, Table("scores", ["variant", "audio"], [["base", "0.1"]])))], Console(file=stream))
    points, scores = stream.getvalue().rstrip().split("\n\n")
    assert points.splitlines()[:3] == ["depths", "depth\tcosine\tCKA", "0\t0.000\t–"]
    assert points.splitlines()[-1] == "39\t9.750\t–" and len(points.splitlines()) == 15
    assert scores == "scores\nvariant\taudio\nbase\t0.1"


def test_the_best_of_each_set_is_strong() -> None:
    (table, *_) = evaluation_section(evaluation()).blocks
    assert isinstance(table, Table)
    cells = {(str(row[0]), column): cell for row in table.rows for column, cell in zip(table.columns, row, strict=True)}
    assert cells["fused", "image"].strong  # type: ignore[union-attr]
    assert not cells["base", "image"].strong  # type: ignore[union-attr]
    assert cells["base", "audio"].text == "–"  # type: ignore[union-attr]


def test_a_folder_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", "t", [], {})


def test_differences_conditions_and_mteb_are_shown() -> None:
    zero, gain = Interval(0.0, -0.1, 0.1, 100), Interval(0.2, 0.1, 0.3, 100)
    table = replace(
        evaluation(),
        differences=(
            Difference("fused", "base", "image", "to_text", {"recall_at_1": gain}),
            Difference("fused", "base", "audio", "to_text", {"recall_at_1": zero}),
        ),
        conditions=(
            Condition("fused", "image", {"query": "find: ", "document": ""}, {"query": None}, "cosine", "float32"),
        ),
    )
    scores = MtebScores(
        {"base": {"A": 0.5, "B": 0.25}, "fused": {"A": 0.75, "B": 0.5, "C": 0.9}},
        {"base": {"C": "it needs audio"}, "fused": {}}, "/results", {"base": "a" * 40, "fused": "b" * 40},
    )  # fmt: skip
    stream = io.StringIO()
    show(evaluated_sections({"retrieval": table, "mteb": scores}), Console(file=stream))
    lines = stream.getvalue().splitlines()
    assert "R@1, item to text: paired differences" in lines
    assert "fused − base\t+0.200 +0.100 to +0.300\t+0.000 -0.100 to +0.100" in lines
    assert "fused\timage\tquery 'find: ', document –\tas its class adds it\tcosine\tfloat32\t–" in lines
    assert "A\t0.5000\t0.7500" in lines
    assert "C\t–\t0.9000" in lines
    assert "mean of 2\t0.3750\t0.6250" in lines
    assert "fused − base\t+0.250 +0.250 to +0.250\t2" in lines
    assert "base\tC\tit needs audio" in lines
    assert any("revisions: base aaaaaaaaaaaa, fused bbbbbbbbbbbb" in line for line in lines)
    nothing = mteb_section(MtebScores({"base": {}}, {"base": {"C": "it needs audio"}}))
    assert [block.title for block in nothing.blocks if isinstance(block, Table)] == ["mteb: left out"]


def test_a_control_that_saw_nothing_is_not_called_a_pass() -> None:
    report = drift_report()
    found = replace(report.modalities["audio"], control=ProjectorControl(0, None, 0.0, None, None, 4, 1))
    stream = io.StringIO()
    show(drift_sections(replace(report, modalities={"audio": found})), Console(file=stream))
    assert "projector output\tnot checked: none was recorded" in stream.getvalue()
    assert "tensors of encoder and projector (4)\t1 differ" in stream.getvalue()
