"""Pictures of task vectors side by side; needs the extra [plots]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.errors import UsageError
from taskmerge.printable import printable_line
from taskmerge.words.extras import require
from taskmerge.words.places import output_path
from taskmerge.words.system_errors import writing


def plot_comparison(result: Mapping[str, Any], path: str | Path) -> Path:
    """Heat maps of a comparison (`task_vectors.comparison.compare_task_vectors`): norm by layer, cosine, sign conflict.

    path: .png, .svg or .pdf. Returns it. Raises UsageError without matplotlib or for another ending, OutputError when
    the file cannot be written.
    """
    require("matplotlib")
    import matplotlib

    target = output_path(path)
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"cannot draw a {target.suffix or 'file without ending'}", str(path), "use .png, .svg or .pdf")
    from matplotlib.figure import Figure

    names, layers = list(result["norms"]), list(result["by_layer"])
    shown, shown_layers = ([printable_line(text) for text in texts] for texts in (names, layers))
    plain = {"parse_math": False}  # a dollar sign in a name begins no formula
    height = max(3.2, 0.22 * len(layers) + 1.2)
    figure = Figure(figsize=(4.2 + 2.6 + 1.3 * len(names), height), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    norms = np.array([[result["by_layer"][layer].get(name, np.nan) for name in names] for layer in layers])
    image = left.imshow(norms, aspect="auto", cmap="viridis", vmin=0)
    left.set(title="norm by layer", xticks=range(len(names)), yticks=range(len(layers)))
    left.set_xticklabels(shown, rotation=30, ha="right", **plain)
    left.set_yticklabels(shown_layers, fontsize=8, **plain)
    figure.colorbar(image, ax=left)
    for axes, key, low in ((middle, "cosine", -1.0), (right, "sign_conflict", 0.0)):
        matrix = np.array([[result[key][one][two] for two in names] for one in names])
        axes.imshow(matrix, cmap="coolwarm" if low < 0 else "magma", vmin=low, vmax=1)
        axes.set(title=key.replace("_", " "), xticks=range(len(names)), yticks=range(len(names)))
        axes.set_xticklabels(shown, rotation=30, ha="right", **plain)
        axes.set_yticklabels(shown, **plain)
        for (row, column), value in np.ndenumerate(matrix):
            dark = value < 0.6 if low == 0 else abs(value) > 0.5
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
    with writing(target), matplotlib.rc_context({"svg.hashsalt": "taskmerge"}):
        figure.savefig(target, dpi=150)
    return target
