"""Pictures of task vectors side by side; needs the extra [plots]."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.errors import OutputError, UsageError
from taskmerge.printable import printable_line
from taskmerge.words.extras import require
from taskmerge.words.places import output_path
from taskmerge.words.system_errors import writing

MOST_LAYERS, MOST_MODELS = 1_000, 40
MARK = "drawn by taskmerge"


def plot_comparison(result: Mapping[str, Any], path: str | Path) -> Path:
    """Heat maps of a comparison (`task_vectors.comparison.compare_task_vectors`): norm by layer, cosine, sign conflict.

    path: .png, .svg or .pdf. Returns it. Raises what `check_plot` raises, UsageError for more than a picture can show,
    and OutputError when the file cannot be written.
    """
    target = check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    names, layers = list(result["norms"]), list(result["by_layer"])
    if len(layers) > MOST_LAYERS or len(names) > MOST_MODELS:
        what = f"{len(names):,} task vectors of {len(layers):,} layers do not fit in one picture"
        raise UsageError(what, str(path), f"at most {MOST_MODELS} and {MOST_LAYERS} fit; --json prints the numbers")
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
    drawn = io.BytesIO()
    kind = target.suffix.removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "taskmerge"}):
        figure.savefig(drawn, dpi=150, format=kind, metadata={"Software" if kind == "png" else "Creator": MARK})
    with writing(target):
        target.write_bytes(drawn.getvalue())
    return target


def check_plot(path: str | Path) -> Path:
    """Return where a picture goes.

    Raises UsageError without matplotlib or for an ending other than .png, .svg and .pdf; OutputError when a file that
    was not drawn here is in the way.
    """
    require("matplotlib")
    target = output_path(path)
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"cannot draw a {target.suffix or 'file without ending'}", str(path), "use .png, .svg or .pdf")
    if target.is_symlink() or (target.exists() and not _is_drawn_here(target)):
        what = "would be overwritten by the picture, but was not drawn by taskmerge"
        raise OutputError(what, str(target), "give the picture another name")
    return target


def _is_drawn_here(path: Path) -> bool:
    """Whether a file carries our mark, which each format keeps at its beginning or at its end."""
    with writing(path):
        return path.is_file() and MARK.encode() in path.read_bytes()
