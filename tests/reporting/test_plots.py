"""The picture of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskmerge.errors import OutputError, UsageError
from taskmerge.merging.algebra.comparison import compare_task_vectors
from taskmerge.reporting.plots import plot_comparison


def comparison() -> dict[str, object]:
    rng = np.random.default_rng(0)
    base = {f"model.layers.{layer}.weight": rng.normal(size=(4, 4)).astype(np.float32) for layer in range(3)}
    named = {
        name: {key: value + rng.normal(size=value.shape).astype(np.float32) for key, value in base.items()}
        for name in ("image", "audio")
    }
    return compare_task_vectors(base, named)


def test_every_name_and_layer_is_in_the_picture(tmp_path: Path) -> None:
    text = plot_comparison(comparison(), tmp_path / "compare.svg").read_text("utf-8")
    for words in ("image", "audio", "backbone.0", "backbone.2", "norm by layer", "sign conflict"):
        assert f"<!-- {words} -->" in text


def test_endings_and_places_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.jpg"):
        plot_comparison(comparison(), tmp_path / "compare.jpg")
    with pytest.raises(OutputError, match="cannot be written"):
        plot_comparison(comparison(), tmp_path / "nowhere" / "compare.png")


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_only_our_own_pictures_are_drawn_over(tmp_path: Path, ending: str) -> None:
    """`--plot photo.png` took the place of whatever was called so."""
    target = tmp_path / f"picture{ending}"
    for _ in range(2):
        plot_comparison(comparison(), target)
    ours = target.read_bytes()
    target.write_bytes(b"my own, drawn elsewhere")
    with pytest.raises(OutputError, match="was not drawn by taskmerge"):
        plot_comparison(comparison(), target)
    assert target.read_bytes() == b"my own, drawn elsewhere"
    target.unlink()
    (tmp_path / "other").write_bytes(ours)
    target.symlink_to(tmp_path / "other")
    with pytest.raises(OutputError, match="was not drawn by taskmerge"):
        plot_comparison(comparison(), target)


def test_more_than_a_picture_shows_is_refused(tmp_path: Path) -> None:
    """matplotlib failed with a traceback at a thousand times its size."""
    table = comparison() | {"by_layer": {f"layer {number}": {} for number in range(1001)}}
    with pytest.raises(UsageError, match="1,001 layers do not fit in one picture"):
        plot_comparison(table, tmp_path / "compare.png")
    assert not (tmp_path / "compare.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "nowhere", "nothing", "--plot", "mine.png"),
        ("compare", "nowhere", "nothing", "--html", "mine.html"),
        ("fuse", "nowhere.yaml", "--html", "mine.html"),
        ("specialize", "nowhere.yaml", "--html", "mine.html"),
        ("recover", "nowhere.yaml", "--html", "mine.html"),
        ("rehearse", "nowhere.yaml", "--html", "mine.html"),
        ("run", "nowhere.yaml", "--html", "mine.html"),
        ("search", "nowhere.yaml", "--html", "mine.html"),
        ("evaluate", "nowhere", "--retrieval", "a=nothing", "--html", "mine.html"),
        ("diagnose-drift", "--fused", "nowhere", "--specialist", "no", "--base", "no", "--html", "mine.html"),
    ],
    ids=lambda words: f"{words[0]} {words[-2]}",
)
def test_what_is_in_the_way_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], words: tuple[str, ...]
) -> None:
    """A page that may not be written was refused after hours of evaluation."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / words[-1]).write_text("mine")
    ran = command(*words)
    assert ran.code == 1 and f"{words[-1]}: would be overwritten" in ran.err and "nowhere" not in ran.err
    assert (tmp_path / words[-1]).read_text() == "mine"
