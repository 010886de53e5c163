"""Pages of commands: which model they name, what they say of it, and how they look in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, Scheme, find_browser
from safetensors.numpy import save_file

from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.measuring.drift.comparison import Comparison, DepthChange, Embedded, ProjectorControl
from taskmerge.measuring.drift.examples import changed_examples, embedding_plane
from taskmerge.measuring.evaluation.table import Difference, EvaluationTable, RetrievalResult
from taskmerge.metrics.bootstrap import Interval
from taskmerge.metrics.retrieval import METRICS
from taskmerge.reporting import (
    StageResults,
    comparison_sections,
    evaluation_page,
    fusion_sections,
    recovery_page,
    run_page,
    training_page,
    write_report,
)
from taskmerge.reporting.blocks import chart
from taskmerge.reporting.charts import fitted, padded, ticks
from taskmerge.reporting.conclusions import choose
from taskmerge.reporting.content import (
    Banner,
    EmbeddingMap,
    Line,
    LineChart,
    Matrix,
    Moved,
    RangeChart,
    Section,
    Span,
    Table,
    Texts,
)
from taskmerge.reporting.frames import NARROW, WIDE
from taskmerge.reporting.page import render
from taskmerge.training.arms import Arm, RecoveryReport
from taskmerge.training.stages import StageReport
from taskmerge.words.statistics import CHARTED, title
from taskmerge.words.terms import TERMS, terms_in

LONG = "a-specialist-with-a-name-that-goes-on-and-on-without-a-single-place-to-break-it_" * 2


def banners(sections: list[Section]) -> list[Banner]:
    return [block for block in sections[0].blocks if isinstance(block, Banner)]


# ------------------------------------------------------------------------------------------------ which model to use


Differences = dict[tuple[str, str, str], tuple[float, float, float]]


def table(scores: dict[str, dict[str, float]], differences: Differences) -> EvaluationTable:
    rows = tuple(
        RetrievalResult(
            variant, name, name, "to_text", 100, 50, dict.fromkeys(METRICS, Interval(v, v - 0.1, v + 0.1, 100))
        )
        for variant, own in scores.items()
        for name, v in own.items()
    )
    found = tuple(
        Difference(one, two, name, "to_text", dict.fromkeys(METRICS, Interval(*ends, 100)))
        for (one, two, name), ends in differences.items()
    )
    return EvaluationTable(rows, found)


SCORES = {
    "base": {"text": 0.5, "audio": 0.2},
    "specialist audio": {"audio": 0.9},
    "fused": {"text": 0.6, "audio": 0.4},
    "recovered": {"text": 0.6, "audio": 0.7},
}


def test_the_model_named_has_the_highest_mean_of_those_that_take_every_set() -> None:
    """A specialist of one modality is not the model for all of them, however good it is at its own."""
    found = choose(
        table(
            SCORES, {("recovered", "fused", "audio"): (0.3, 0.2, 0.4), ("recovered", "base", "text"): (0.1, -0.1, 0.3)}
        )
    )
    assert found is not None
    assert (found.variant, found.better, found.even, found.worse) == ("recovered", ("fused",), ("base",), ())
    assert found.mean == pytest.approx(0.65)


def test_a_difference_is_read_from_either_side() -> None:
    found = choose(table(SCORES, {("base", "recovered", "audio"): (0.3, 0.2, 0.4)}))
    assert found is not None and found.worse == ("base",) and not found.better


def test_nothing_is_recommended_that_is_not_sure() -> None:
    even = {("recovered", "fused", "audio"): (0.1, -0.1, 0.3)}
    (said,) = banners(evaluation_page({"retrieval": table(SCORES, even)}, {"recovered": "out/fused-recovered"}))
    assert said.tone == "open" and said.headline.startswith("Highest score, but not certainly the best: recovered")
    assert "out/fused-recovered" in said.headline and "Not distinguishable from fused" in said.text
    sure = {("recovered", "fused", "audio"): (0.3, 0.2, 0.4)}
    (said,) = banners(evaluation_page({"retrieval": table(SCORES, sure)}))
    assert said.tone == "good" and said.headline.startswith("Use recovered: mean MRR 0.650 over text, audio")
    (said,) = banners(evaluation_page({"retrieval": table({"a": {"x": 0.5}, "b": {"y": 0.5}}, {})}))
    assert said.headline == "No single model supports all of these sets"


def arms(kept: str) -> RecoveryReport:
    rows = (Arm("leave it", {"mrr": 0.4}, 1.0, ""), Arm("gradient", {"mrr": 0.6}, 9.0, "", Interval(0.2, 0.1, 0.3, 80)))
    return RecoveryReport(rows, kept, "it gains 0.2")


def test_pages_of_stages_name_what_was_kept() -> None:
    places = {"recovered": "out/fused-recovered", "rehearsed": "out/fused-rehearsed"}
    (said,) = banners(recovery_page(StageResults(places, recover=arms("gradient"))))
    assert said.headline == "Use the recovered model (out/fused-recovered): MRR gained 0.200 (0.100 to 0.300)"
    (said,) = banners(recovery_page(StageResults(places, recover=arms("leave it"))))
    assert said.tone == "open" and said.headline == "Recovery changed nothing (out/fused-recovered)"
    report = StageReport(
        "rehearse",
        10,
        1.0,
        4,
        2,
        {"audio_mrr": 0.4, "mrr": 0.4},
        {"audio_mrr": 0.6, "mrr": 0.6},
        targets={"audio": 0.8},
    )
    verdict, training, *_ = training_page(StageResults(places, trained={"rehearse": report}))
    assert banners([verdict])[0].headline == "Use the rehearsed model (out/fused-rehearsed): mean MRR 0.400 → 0.600"
    (shown,) = (block for block in training.blocks if isinstance(block, Table))
    assert [[str(cell) for cell in row] for row in shown.rows] == [
        ["audio MRR", "0.400", "0.600", "+0.200", "0.800"], ["mean MRR", "0.400", "0.600", "+0.200", "–"]]  # fmt: skip
    for other, tone in ((replace(report, kept=False), "open"), (replace(report, kept=False, barred=["audio"]), "bad")):
        (said,) = banners(training_page(StageResults(places, trained={"rehearse": other})))
        assert (said.tone, said.headline) == (tone, "Rehearse: the model was left unchanged (out/fused-rehearsed)")
    (said,) = banners(
        training_page(StageResults({}, trained={"specialize-audio": replace(report, stage="specialize", before={})}))
    )
    assert said.tone == "plain" and said.headline == "Specialize audio: trained" and "was not measured" in said.text


def test_a_run_without_scores_says_so_and_names_the_latest_model() -> None:
    said = banners(run_page(StageResults({"fused": "out/fused", "recovered": "out/r"}, recover=arms("gradient"))))
    assert (
        said[0].headline == "The variants were not compared with each other"
        and "out/r" in said[0].text
        and said[0].moves
    )
    assert said[1].headline.startswith("Use the recovered model (out/r)")


def test_a_run_names_one_model_to_use() -> None:
    """What the stages before it left is told, and not recommended beside it."""
    sure = table(SCORES, {("recovered", "fused", "audio"): (0.3, 0.2, 0.4)})
    report = StageReport("rehearse", 10, 1.0, 4, 2, {"mrr": 0.4}, {"mrr": 0.6})
    places = {"recovered": "out/r", "rehearsed": "out/h"}
    found = StageResults(places, None, None, arms("gradient"), {"rehearse": report}, {"retrieval": sure})
    first, repaired, trained = banners(run_page(found))
    assert first.headline.startswith("Use recovered: mean MRR 0.650")
    assert first.moves == ["taskmerge push out/r owner/name --dry-run"]
    assert repaired.headline == "Recovery repaired the fused model: MRR gained 0.200 (0.100 to 0.300)"
    assert trained.headline == "Rehearse: mean MRR 0.400 → 0.600"
    unscored, repaired, trained = banners(run_page(replace(found, evaluate=None)))
    assert unscored.moves and trained.headline.startswith("Use the rehearsed model (out/h)") and trained.moves
    assert repaired.headline.startswith("Recovery repaired")


def test_no_model_that_was_given_is_proposed_for_the_hub() -> None:
    sure = table({"base": {"text": 0.9}, "fused": {"text": 0.6}}, {("base", "fused", "text"): (0.3, 0.2, 0.4)})
    (said,) = banners(evaluation_page({"retrieval": sure}, {"base": "models/base", "fused": "out/fused"}))
    assert said.headline.startswith("Use base") and not said.moves


# --------------------------------------------------------------------------------------------- examples and the map


def drifted(count: int = 40, dimension: int = 8) -> tuple[Comparison, Pairs]:
    """Items on their texts under the specialist; the fused model swaps the first two and turns all by a rotation."""
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(count, dimension))
    turn = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    swapped = texts.copy()
    swapped[[0, 1]] = texts[[1, 0]]
    pairs = read_pairs([{"query": f"item {row}", "text": f"text number {row}"} for row in range(count)])
    control = ProjectorControl(0, None, 0.0, None, None)
    right = np.arange(count)
    before, after = Embedded(texts, texts), Embedded(swapped @ turn, texts @ turn)
    return Comparison(right, before, after, control, (DepthChange(0, 1, 1, 0, None),)), pairs


def test_examples_are_the_items_that_lost_their_text() -> None:
    first, second = changed_examples(*drifted())
    assert {first.item, second.item} == {"item 0", "item 1"}
    assert first.before[0] == first.text and first.after[0] == second.text
    assert first.rank_before == 1 < first.rank_after
    found, pairs = drifted()
    assert changed_examples(replace(found, other=found.reference), pairs) == ()


def test_the_map_undoes_the_rotation_of_the_texts() -> None:
    """A joint rotation of items and texts is harmless, and does not move anything on the map."""
    plane = embedding_plane(*drifted())
    assert plane is not None and len(plane.items) == len(plane.texts) == 40
    far = {one.item for one in plane.items if np.hypot(one.x_after - one.x_before, one.y_after - one.y_before) > 0.01}
    assert far == {"item 0", "item 1"}
    assert 0 < plane.shares[1] <= plane.shares[0] < 1
    found, pairs = drifted()
    same = Embedded(np.ones((40, 8)), np.ones((40, 8)))
    assert embedding_plane(replace(found, reference=same, other=same), pairs) is None


# ------------------------------------------------------------------------------------------------------- the frame


def test_terms_are_explained_once_where_they_first_stand() -> None:
    blocks = [Table("R@1 on birds", ["variant"], [["fused"]]), Table("R@1 and MRR", ["variant"], [["fused"]])]
    text = render("t", "", [Section("s", blocks)])
    assert text.count(TERMS["R@1"]) == text.count(TERMS["MRR"]) == 1
    assert text.index(TERMS["R@1"]) < text.index("R@1 and MRR")
    assert terms_in("nothing here to see, unkept depthless") == []
    for key in CHARTED:
        assert terms_in(title(key)), f"no term explains {title(key)!r}"


def test_labels_stay_in_their_room_and_axes_tell_their_numbers_apart() -> None:
    short = fitted(LONG, 100)
    assert len(short.partition("<title>")[0]) <= 16 and LONG in short
    assert fitted("<b>", 100) == "&lt;b&gt;"
    for low, high in ((0.9999, 1.0), (0.0, 1.0), (0.6, 1.2), (-3.0, 250.0), (1e-5, 3e-5)):
        shown = [text for _, text in ticks(*padded(low, high))]
        assert len(set(shown)) == len(shown) > 1, (low, high, shown)


def test_the_axis_of_differences_shows_zero() -> None:
    gain = RangeChart("gain", [Span("a", 0.6, 0.5, 0.7)])
    assert 'class="zero"' in chart(replace(gain, zero=True)) and 'class="zero"' not in chart(gain)


def test_a_line_of_many_points_is_drawn_without_dots_and_named_once() -> None:
    many = LineChart("loss", "step", "loss", [Line("loss", [(float(n), n % 7) for n in range(200)])])
    drawn = chart(many)
    assert drawn.count('class="dot hidden') == 200 and drawn.count(">loss</text>") == 1
    two = LineChart("scores", "step", "loss", [*many.lines, Line("more", [(0.0, 1.0), (1.0, 2.0)])])
    for frame in (WIDE, NARROW):
        assert chart(two, frame).count(">loss</text>") == 2 and chart(two, frame).count(">more</text>") == 1


def test_commands_in_a_move_are_set_as_code() -> None:
    shown = Banner("open", "head", "", ["run `taskmerge <b>`, then look"])
    assert "run <code>taskmerge &lt;b&gt;</code>, then look" in render("t", "", [Section("s", [shown])])


def test_columns_of_words_begin_at_the_left() -> None:
    shown = Table("t", ["item", "ranked by", "score", "time"], [["a", "cosine", "0.5", "44 s"], ["b", "–", "", "1 s"]])
    text = render("t", "", [Section("s", [shown])])
    assert '<td class="left">cosine</td>' in text and '<th scope="col" class="left">ranked by</th>' in text
    assert "<td>0.5</td>" in text and "<td>44 s</td>" in text


def test_a_comparison_of_nothing_and_of_many(tmp_path: Path) -> None:
    nan = float("nan")
    one = {"norms": {"a": [0.0, 0.0]}, "cosine": {"a": {"a": nan}}, "sign_conflict": {"a": {"a": nan}}, "by_layer": {}}
    (said,) = banners(comparison_sections(one))
    assert said.headline == "a is equal to the base"
    names = [f"model {number}" for number in range(30)]
    square = {name: dict.fromkeys(names, 0.5) for name in names}
    layers = {f"part{part}.{layer}": dict.fromkeys(names, 1.0) for part in range(20) for layer in range(2)}
    many = {"norms": {name: [number + 1.0, 0.1] for number, name in enumerate(names)}, "cosine": square,
            "sign_conflict": square, "by_layer": layers}  # fmt: skip
    sections = comparison_sections(many)
    write_report(tmp_path / "many.html", "t", sections, many)
    text = (tmp_path / "many.html").read_text("utf-8")
    assert "model 29 changed 30.0 times as much as model 0" in text and "Stacks of layers without a picture" in text


def test_the_page_of_a_comparison(tmp_path: Path, command: Callable[..., Any]) -> None:
    """Replaced when it is ours; with the numbers that the command prints beside it."""
    rng = np.random.default_rng(0)
    for name in ("base", "law", "code"):
        (tmp_path / name).mkdir()
        tensors = {f"model.layers.{n}.mlp.up_proj.weight": rng.normal(size=(4, 8)).astype("f4") for n in range(3)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 3}')
    page, models = tmp_path / "page.html", [tmp_path / name for name in ("base", "law", "code")]
    for _ in range(2):
        ran = command("compare", *models, "--html", page, "--json")
        assert ran.code == 0
    assert json.loads(page.with_suffix(".json").read_text("utf-8")) == json.loads(ran.out)
    text = page.read_text("utf-8")
    for words in (
        "Cosine of the task vectors",
        "Norm by layer: backbone",
        "law and code: cosine",
        "Versions and machine",
    ):
        assert words in text


# ------------------------------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium: install it, or name one in TASKMERGE_BROWSER")
    with Browser(program) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of block, with names as long as names get."""
    rng = np.random.default_rng(0)
    plane = [Moved(f"item {n}", tuple(rng.normal(size=2)), tuple(rng.normal(size=2))) for n in range(30)]
    blocks: list[Any] = [
        Banner("bad", LONG, LONG, [f"taskmerge fuse /{LONG}/recipe.yaml"]),
        Table(LONG, ["variant", *[f"set {n}" for n in range(12)]], [[LONG, *["0.123"] * 12]], LONG),
        Table("words", ["item", "text"], [[LONG, LONG]], words=True),
        Matrix("Cosine", [LONG, "code", "x"], [[1.0, -0.4, None]] * 3, True),
        Matrix("Sign conflict", [f"m{n}" for n in range(20)], [[0.5] * 20] * 20),
        LineChart("lines", "layer", LONG, [Line(LONG + str(n), [(0, n), (1, n + 1)]) for n in range(4)]),
        RangeChart("ranges", [Span(LONG, 0.5, 0.4, 0.6), Span("b", 0.5, 0.4, 0.6, 0.45, True)]),
        EmbeddingMap("map", "32 % of the variance", "20 %", plane, {LONG: (0.0, 0.0)}),
        Texts("recipes", [(LONG, "base: x\n" * 40)]),
    ]
    place = tmp_path_factory.mktemp("page") / "page.html"
    fused = {"path": LONG, "bytes": 10, "seconds": 1.0, "components": {LONG: {"merge": 3}}, "rules": {LONG: 4},
             "dropped": {LONG: "no rule"}, "resumed": [], "remade": [], "left": [], "warnings": [LONG], "notes": [LONG],
             "compared": None}  # fmt: skip
    sections = [Section(LONG, blocks), *fusion_sections(fused)]
    return write_report(place, LONG, sections, {}, LONG, "base: base\n")[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_complains_and_nothing_is_wider_than_the_window(
    browser: Browser, page: Path, width: int, scheme: Scheme
) -> None:
    browser.open(page, width, scheme)
    assert browser.complaints() == []
    assert browser.overflow() == (0, [])
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(22, 22, 21)") is (scheme == "dark")


def test_a_phone_shows_whole_pictures(browser: Browser, page: Path) -> None:
    """Only a matrix of many names is scrolled; a window shows the wide drawings."""
    wider = "[...document.querySelectorAll('.scroll')].filter(one => one.querySelector('svg') && %s > one.clientWidth)"
    wider += ".map(one => one.closest('.card').querySelector('h3').textContent)"
    seen = "[...document.querySelectorAll('.drawn.%s')].some(one => one.getClientRects().length > 0)"
    browser.open(page, 390)
    assert browser.evaluate(wider % "one.scrollWidth") == ["Sign conflict"]
    assert browser.evaluate(seen % "narrow") is True and browser.evaluate(seen % "wide") is False
    browser.open(page, 1280)
    assert browser.evaluate(wider % "one.scrollWidth") == []
    assert browser.evaluate(seen % "narrow") is False and browser.evaluate(seen % "wide") is True


def test_paper_shows_whole_tables(browser: Browser, tmp_path: Path) -> None:
    """Nothing is cut at the edge of the sheet; of several texts to copy only the names are printed."""
    names = [f"retrieval.a_long_name_{n}.mrr" for n in range(10)]
    blocks: list[Any] = [
        Table("points", ["point", *names], [["trial 1", *["0.1234"] * 10]]),
        Texts("recipes", [("one", "x\n"), ("two", "y\n")]),
        Texts("recipe", [("alone", "z\n")]),
    ]
    page, _ = write_report(tmp_path / "p.html", "t", [Section("s", blocks)], {})
    browser.open(page, 720)
    browser.ask("Emulation.setEmulatedMedia", media="print")
    beyond = "[...document.querySelectorAll('table')].some(one => one.scrollWidth > one.parentNode.clientWidth + 1)"
    assert browser.evaluate(beyond) is False
    shown = "[...document.querySelectorAll('pre')].map(one => one.checkVisibility({contentVisibilityAuto: true}))"
    assert browser.evaluate(shown) == [False, False, True]
    browser.ask("Emulation.setEmulatedMedia", media="")


def test_text_can_be_read_on_its_ground(browser: Browser, page: Path) -> None:
    """Contrast of at least 4.5, as WCAG 2 asks of text, light and dark."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme)  # type: ignore[arg-type]
        card = browser.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
        for where, what in (
            (".note", "color"),
            (".headline", "color"),
            ("a", "color"),
            (".mark-bad", "color"),
            ("svg .tick", "fill"),
        ):
            colour = browser.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            light, dark = sorted((luminance(colour), luminance(card)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, where, colour, card)


def test_a_link_of_the_contents_leads_to_its_section(browser: Browser, page: Path) -> None:
    browser.open(page, 390)
    leads = "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))"
    assert browser.evaluate(leads) is True
    assert browser.evaluate("document.querySelectorAll('nav a').length") == browser.evaluate(
        "document.querySelectorAll('h2').length"
    )


def test_a_page_that_is_too_wide_and_a_script_are_noticed(browser: Browser, tmp_path: Path) -> None:
    """The test of the tests."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<main><p style='width:2000px'>wide</p></main><script>console.error('no')</script><img src='gone.png'>"
    )
    browser.open(bad, 390)
    assert browser.overflow()[0] > 1000 and len(browser.complaints()) >= 2
    bad.write_text("<main><p>ok</p></main><script>undefined.call()</script>")
    browser.open(bad, 390)
    assert any("TypeError" in one for one in browser.complaints())
