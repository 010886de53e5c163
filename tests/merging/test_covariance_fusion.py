"""Fusing with the covariances beside the specialists: recipe to tensors, against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskmerge import recipes
from taskmerge.checkpoints.covariances import InputCovariances
from taskmerge.errors import RecipeError
from taskmerge.merging import plan
from taskmerge.merging.fused import FusedStateDict

LAYER = "encoder.layer.0.attention.self.query.weight"
NORM = "encoder.layer.0.output.LayerNorm.weight"
PROJECTOR = "audio_projector.layers.0.weight"


def model(seed: int, extra: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {LAYER: rng.standard_normal((5, 4)), NORM: rng.standard_normal(5), **(extra or {})}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(9)
    tensors = {
        "base": model(0),
        "audio": model(1, {PROJECTOR: rng.standard_normal((4, 3))}),
        "image": model(2),
    }
    for name, held in tensors.items():
        (tmp_path / name).mkdir()
        save_file(held, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "bert"}')
    for name in ("audio", "image"):
        rows = rng.standard_normal((30, 4)) * [3, 1, 0.3, 0.1]
        InputCovariances({LAYER: rows.T @ rows / 30}, {LAYER: LAYER}, {name: 30}).save(tmp_path / name)
    return tmp_path


def fused(folder: Path, **merge: Any) -> FusedStateDict:
    recipe = recipes.from_dict(
        {
            "base": "base",
            "specialists": {"audio": {"model": "audio", "weight": 0.5}, "image": {"model": "image", "weight": 0.3}},
            "merge": merge,
            "output": {"path": str(folder / "out")},
        },
        folder=folder,
    )
    return FusedStateDict(plan(recipe))


def parts(folder: Path) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    base = model(0)[LAYER]
    seen = [InputCovariances.open(folder / name)[LAYER] for name in ("audio", "image")]
    return base, [model(1)[LAYER] - base, model(2)[LAYER] - base], seen


def test_regmean_reads_the_covariances(folder: Path) -> None:
    base, (audio, image), seen = parts(folder)
    first, second = (c + 1e-3 * np.diag(c).mean() * np.eye(4) for c in seen)
    moved = 0.5 * audio @ first + 0.3 * image @ second
    wanted = base + moved @ np.linalg.inv(0.5 * first + 0.3 * second)
    weights = fused(folder, method="regmean")
    np.testing.assert_allclose(weights.read(LAYER).reshape(5, 4), wanted, rtol=1e-8)
    norms = [model(seed)[NORM] for seed in range(3)]
    summed = norms[0] + 0.5 * (norms[1] - norms[0]) + 0.3 * (norms[2] - norms[0])
    np.testing.assert_allclose(weights.read(NORM), summed, rtol=1e-12)


def test_protecting_a_component_before_any_method(folder: Path) -> None:
    base, (audio, image), (seen, _) = parts(folder)
    values, vectors = np.linalg.eigh(seen)
    held = np.cumsum(values[::-1]) / values.sum()
    top = vectors[:, ::-1][:, : int(np.searchsorted(held, 0.9)) + 1]
    wanted = base + 0.5 * audio + 0.3 * (image - image @ top @ top.T)
    weights = fused(folder, method="task_arithmetic", protect=["audio_projector"])
    np.testing.assert_allclose(weights.read(LAYER).reshape(5, 4), wanted, rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal(weights.read(LAYER, 3, 7), weights.read(LAYER)[3:7])
    assert weights.steps[LAYER].protected == ("audio",)
    assert weights.steps[NORM].protected == ()


def test_all_the_energy_takes_all_of_the_others(folder: Path) -> None:
    base, (audio, _), _ = parts(folder)
    weights = fused(folder, protect=["audio"], protect_energy=1.0)
    np.testing.assert_allclose(weights.read(LAYER).reshape(5, 4), base + 0.5 * audio, atol=1e-9)


def test_missing_covariances_and_unknown_components_are_told_in_the_plan(folder: Path) -> None:
    (folder / "image" / "statistics" / "input_covariances.safetensors").unlink()
    with pytest.raises(RecipeError, match="the method regmean needs the covariances of the layer inputs"):
        fused(folder, method="regmean")
    fused(folder, protect=["audio_projector"])  # the image's are not needed for this
    (folder / "audio" / "statistics" / "input_covariances.safetensors").unlink()
    with pytest.raises(RecipeError) as error:
        fused(folder, protect=["audio_projector", "nose"])
    assert "protect needs the covariances of the layer inputs" in str(error.value)
    assert "protect: 'nose' matches no tensor of the specialists' changes" in str(error.value)
    assert "taskmerge stats" in str(error.value)
