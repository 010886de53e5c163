"""Gauss-Newton against dense Jacobians, and recovery of a real grafted embedder."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import WORDS, moved, sounds, tiny_grafted
from torch import Tensor

from taskmerge.errors import UsageError
from taskmerge.training.closed_form import recover_closed_form
from taskmerge.training.components import hashes
from taskmerge.training.gauss_newton import InfoNCE, SquaredError, moved_by, walk


def toy(seed: int) -> tuple[Any, dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """tanh(x W + b) in float64, two batches of different length with targets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def embed(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
        return torch.tanh(batch @ parameters["weight"] + parameters["bias"])

    return embed, {"weight": draw(4, 3), "bias": draw(3)}, [(draw(5, 4), draw(5, 3)), (draw(3, 4), draw(3, 3))]


def squared(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, SquaredError]]:
    return [(batch, SquaredError(targets)) for batch, targets in batches]


def test_info_nce_is_torchs_cross_entropy_with_its_derivatives() -> None:
    generator = torch.Generator().manual_seed(3)
    bank, embeddings, direction = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (6, 1, 1))
    label = torch.tensor([2])

    def loss(own: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(own @ bank.T / 0.5, label)

    objective = InfoNCE(bank, label, 0.5)
    gradient = torch.autograd.functional.jacobian(loss, embeddings)
    hessian = torch.autograd.functional.hessian(loss, embeddings).reshape(4, 4)
    torch.testing.assert_close(objective.descent(embeddings), -gradient)
    torch.testing.assert_close(objective.curvature(embeddings, direction)[0], hessian @ direction[0])


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
def test_a_full_walk_solves_the_dense_system(ridge: float) -> None:
    embed, parameters, batches = toy(0)
    rows, residuals = [], []
    for batch, targets in batches:
        parts = torch.autograd.functional.jacobian(
            lambda weight, bias, batch=batch: embed({"weight": weight, "bias": bias}, batch), tuple(parameters.values())
        )
        rows.append(torch.cat([part.reshape(targets.numel(), -1) for part in parts], dim=1))
        residuals.append((targets - embed(parameters, batch)).reshape(-1))
    jacobian, residual = torch.cat(rows).numpy(), torch.cat(residuals).numpy()
    curvature = jacobian.T @ jacobian
    largest = np.linalg.eigvalsh(curvature)[-1]
    wanted = np.linalg.solve(curvature + ridge * largest * np.eye(15), jacobian.T @ residual)
    krylov = walk(embed, parameters, squared(batches), 15)
    assert krylov is not None
    assert krylov.largest == pytest.approx(largest)
    np.testing.assert_allclose(krylov.solve(ridge).numpy(), wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose((krylov.basis @ krylov.basis.T).numpy(), np.eye(len(krylov.basis)), atol=1e-10)


def test_a_short_walk_comes_near_and_a_step_reduces_the_error() -> None:
    embed, parameters, batches = toy(1)
    full, short = (walk(embed, parameters, squared(batches), steps) for steps in (15, 6))
    assert full is not None
    assert short is not None
    assert float((full.solve(0.1) - short.solve(0.1)).norm() / full.solve(0.1).norm()) < 0.05

    def error(own: dict[str, Tensor]) -> float:
        return sum(float((targets - embed(own, batch)).square().sum()) for batch, targets in batches)

    assert error(moved_by(parameters, full.solve(0.1))) < error(parameters)


def test_no_gradient_no_walk() -> None:
    embed, parameters, batches = toy(2)
    perfect = [(batch, embed(parameters, batch)) for batch, _ in batches]
    assert walk(embed, parameters, squared(perfect), 5) is None


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_grafted(tmp_path_factory.mktemp("models"))


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]


def test_label_free_recovery_brings_the_sounds_back(specialist: Any) -> None:
    fused = moved(specialist, 0.25, names="backbone.encoder")
    before = hashes(fused[0].state_dict())
    silent = [{**pair, "text": str(number)} for number, pair in enumerate(sounds(80))]  # texts that say nothing
    report = recover_closed_form(fused, silent, specialist=specialist, texts=texts(60), rounds=2, iterations=6)
    assert report.applied, report.reason
    assert report.targets == "label-free"
    assert report.errors[-1] < 0.7 * report.errors[0]
    after = hashes(fused[0].state_dict())
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all(name.startswith("audio_projector.") for name in changed)
    # on sounds never fitted, in the space the rotation leads to, it is nearer to the specialist
    unseen = [pair["audio"] for pair in sounds(40, seed=9)]
    broken = moved(specialist, 0.25, names="backbone.encoder")
    target, damaged, mended = (model.encode(unseen) for model in (specialist, broken, fused))
    own, other = specialist.encode(texts(60)), broken.encode(texts(60))
    u, _, vt = np.linalg.svd(own.T @ other + 1e-6 * np.eye(32))
    assert np.square(mended - target @ u @ vt).sum() < 0.7 * np.square(damaged - target @ u @ vt).sum()


def test_with_pairs_the_sounds_come_nearer_to_their_texts(specialist: Any) -> None:
    model = copy.deepcopy(specialist)
    pairs = [{**pair, "text": WORDS[number % 6]} for number, pair in enumerate(sounds(6, seed=3) * 12)]
    report = recover_closed_form(model, pairs, rounds=2, iterations=5)
    assert report.targets == "pairs"
    assert report.applied, report.reason
    assert report.errors[-1] < report.errors[0]
    assert len(report.ridges) == len(report.errors) - 1 >= 1
    assert report.items == 72
    assert all(parameter.requires_grad for parameter in model[0].parameters())


def test_few_items_are_left_alone(specialist: Any) -> None:
    model = copy.deepcopy(specialist)
    before = hashes(model[0].state_dict())
    report = recover_closed_form(model, sounds(16))
    assert not report.applied
    assert "16 items are too few" in report.reason
    assert hashes(model[0].state_dict()) == before


def test_labels_that_mean_nothing_are_refused_by_the_held_out_items(specialist: Any) -> None:
    model = copy.deepcopy(specialist)
    before = hashes(model[0].state_dict())
    rng = np.random.default_rng(8)
    names = [f"{WORDS[int(a)]} {WORDS[int(b)]}" for a, b in rng.integers(0, 12, (64, 2))]
    noise = [{**pair, "text": name} for pair, name in zip(sounds(64, seed=4), names, strict=True)]
    # the mean of all texts is still worth learning; after that nothing is
    first = recover_closed_form(model, noise, rounds=3, iterations=5)
    settled = hashes(model[0].state_dict())
    again = recover_closed_form(model, noise, rounds=3, iterations=5)
    assert first.applied == (settled != before)
    assert not again.applied
    assert hashes(model[0].state_dict()) == settled


def test_components_that_do_not_exist_are_told(specialist: Any) -> None:
    with pytest.raises(UsageError, match="train: 'vision_projector' matches no tensor"):
        recover_closed_form(specialist, sounds(4), train=["vision_projector"])


def test_only_a_subset_is_fitted(specialist: Any) -> None:
    report = recover_closed_form(copy.deepcopy(specialist), sounds(60), max_items=40, rounds=1, iterations=2)
    assert report.items == 40
