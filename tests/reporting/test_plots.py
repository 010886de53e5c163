"""The picture of a comparison."""

from __future__ import annotations

from pathlib import Path

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
