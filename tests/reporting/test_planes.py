"""Charts of a plane: points where they belong, cells by their values, texts folded up, files of their own."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from taskmerge.reporting.charts import line_chart
from taskmerge.reporting.content import Dot, HeatMap, Line, LineChart, ScatterChart, Section, Texts
from taskmerge.reporting.page import render
from taskmerge.reporting.pictures import write_pictures
from taskmerge.reporting.pixels import write_pixels
from taskmerge.reporting.planes import heat_map, scatter_chart

BAD = '<script>alert("x")</script>'


def test_points_lie_as_their_numbers_do_and_the_front_is_joined() -> None:
    dots = [Dot("low", 0.1, 0.1), Dot("left", 0.1, 0.9, "front"), Dot("right", 0.9, 0.2, "front"),
            Dot(BAD, 0.5, 0.5, "corner")]  # fmt: skip
    drawn = ElementTree.fromstring(scatter_chart(ScatterChart("front", "x", "y", dots)))
    places = {
        (circle.find("title").text or "").partition(":")[0]: (float(circle.get("cx")), float(circle.get("cy")))  # type: ignore[union-attr,arg-type]
        for circle in drawn.iter("circle")
    }
    assert places["left"][0] == places["low"][0] < places["right"][0] and places["left"][1] < places["low"][1]
    line = next(drawn.iter("polyline")).get("points") or ""
    joined = [tuple(map(float, place.split(","))) for place in line.split()]
    assert joined == [places["left"], places["right"]]
    assert BAD not in scatter_chart(ScatterChart("front", "x", "y", dots))


def test_cells_are_darker_the_higher_and_empty_ones_outlined() -> None:
    chart = HeatMap("two", "x", "y", [0, 1, 2], [0, 1, 2], [[0.1, None], [0.5, 0.9]])
    drawn = ElementTree.fromstring(heat_map(chart))
    cells = list(drawn.iter("rect"))
    assert len(cells) == 4 and sum("none" in (cell.get("class") or "") for cell in cells) == 1
    shades = {
        float(title.text or 0): float(re.findall(r"[\d.]+", cell.get("style") or "")[0])
        for cell in cells
        if (title := cell.find("title")) is not None
    }
    assert shades[0.1] < shades[0.5] < shades[0.9]
    first = next(cell for cell in cells if cell.find("title") is not None and cell.find("title").text == "0.1000")  # type: ignore[union-attr]
    top = next(cell for cell in cells if cell.find("title") is not None and cell.find("title").text == "0.5000")  # type: ignore[union-attr]
    assert float(first.get("y") or 0) > float(top.get("y") or 0)  # rows are given from the bottom up
    assert heat_map(HeatMap("none", "x", "y", [0, 1], [0, 1], [[None]])) == ""


def test_an_interval_around_a_line_holds_its_ends() -> None:
    line = Line("score", [(0.0, 0.5), (1.0, 0.7)], [(0.4, 0.6), (0.6, 0.8)])
    drawn = ElementTree.fromstring(line_chart(LineChart("curve", "weight", "score", [line])))
    band = (next(drawn.iter("polygon")).get("points") or "").split()
    heights = [float(place.split(",")[1]) for place in band]
    points = [float(circle.get("cy") or 0) for circle in drawn.iter("circle")]
    assert len(band) == 4 and min(heights) < min(points) and max(heights) > max(points)


def test_texts_are_folded_and_escaped() -> None:
    page = render("t", "l", [Section("Recipes", (Texts("to copy", [("trial 1", f"base: {BAD}\n")]),))])
    assert "<details><summary>trial 1</summary><pre>base: &lt;script&gt;" in page and BAD not in page


def test_pictures_as_pixels_show_what_the_charts_show(tmp_path: Path) -> None:
    """Each kind once, with names that would be formulas or left out; a chart of nothing leaves no file."""
    line = Line("_a$b$", [(0, 1.0), (1, None), (2, 3.0)], [(0.5, 1.5), (1, 2), (2.5, 3.5)])
    blocks = (
        LineChart("Lines of $x$", "x", "y", [line, Line("b", [(0, 2.0)])]),
        ScatterChart("Plane", "x", "y", [Dot("a", 1, 2, "corner"), Dot("b", 2, 1, "front"), Dot("c", 0, 3, "front")]),
        HeatMap("Cells", "x", "y", [0, 1, 2], [0, 1], [[0.5, None]]),
        HeatMap("Nothing", "x", "y", [0, 1], [0, 1], [[None]]),
        ScatterChart("Nobody", "x", "y", []),
        Texts("t", [("a", "b")]),
    )
    written = write_pixels(tmp_path, [Section("all", blocks)])
    assert [path.name for path in written] == ["lines-of-x.png", "plane.png", "cells.png"]
    assert sorted(written) == sorted(tmp_path.iterdir())
    inks = ((42, 120, 214), (217, 84, 30), None)
    for path, ink in zip(written, inks, strict=True):
        with Image.open(path) as picture:
            colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20) or ()}
            assert picture.format == "PNG" and picture.width > 600 and (ink is None or ink in colors)


def test_pictures_stand_alone(tmp_path: Path) -> None:
    blocks = (ScatterChart("Pareto front", "x", "y", [Dot("a", 1, 2)]), Texts("t", [("a", "b")]))
    written = write_pictures(tmp_path, [Section("all", blocks)])
    assert [path.name for path in written] == ["pareto-front.svg"]
    root = ElementTree.parse(written[0]).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "--c0" in written[0].read_text()
