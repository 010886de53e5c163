"""Half-precision weights are trained through float32 masters: the result is float32 training, rounded at the end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from drift_models import sounds, tiny_grafted

from taskmerge import TrainingSettings, open_embedder, recover
from taskmerge.training.masters import MasterAdamW

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def gradients(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 32, generator=generator) for _ in range(steps)]


def start(dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).to(dtype))


def stepped(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, given: list[torch.Tensor]) -> torch.Tensor:
    for gradient in given:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
    return parameter.detach()


@HALF
@pytest.mark.parametrize("fused", [False, True])
def test_the_steps_are_those_of_float32(dtype: torch.dtype, fused: bool) -> None:
    given = [gradient.to(dtype).float() for gradient in gradients(12)]
    half, whole = start(dtype), torch.nn.Parameter(start(dtype).detach().float())
    found = stepped(half, MasterAdamW([half], lr=1e-5, weight_decay=0.01, fused=fused), given)
    wanted = stepped(whole, torch.optim.AdamW([whole], lr=1e-5, weight_decay=0.01, fused=fused), given)
    assert found.dtype == dtype and half.grad is None
    assert torch.equal(found, wanted.to(dtype))


def test_without_masters_nothing_moves_where_float32_does() -> None:
    """The fault: 12 steps at 1e-5 leave every bfloat16 entry of a weight near 1 where it was."""
    plain, mastered = start(torch.bfloat16), start(torch.bfloat16)
    before = plain.detach().clone()
    steps = [gradient.sign() for gradient in gradients(12)[:1] * 400]
    lost = (stepped(plain, torch.optim.AdamW([plain], lr=1e-5, weight_decay=0.0), steps) != before).float().mean()
    kept = (stepped(mastered, MasterAdamW([mastered], lr=1e-5, weight_decay=0.0), steps) != before).float().mean()
    assert lost < 0.05 and kept > 0.8


@HALF
def test_a_resumed_optimizer_is_the_undisturbed_one(dtype: torch.dtype) -> None:
    given = gradients(10)
    whole = start(dtype)
    wanted = stepped(whole, MasterAdamW([whole], lr=1e-3), given)
    first = start(dtype)
    optimizer = MasterAdamW([first], lr=1e-3)
    stepped(first, optimizer, given[:4])
    saved = copy.deepcopy(optimizer.state_dict())
    second = torch.nn.Parameter(first.detach().clone())
    again = MasterAdamW([second], lr=1e-3)
    again.load_state_dict(saved)
    assert torch.equal(stepped(second, again, given[4:]), wanted)


def test_float32_parameters_are_stepped_as_they_are() -> None:
    one, two = start(torch.float32), start(torch.float32)
    found = stepped(one, MasterAdamW([one], lr=1e-3), gradients(3))
    assert torch.equal(found, stepped(two, torch.optim.AdamW([two], lr=1e-3), gradients(3)))


@pytest.mark.parametrize(("rate", "moves"), [(1e-3, True), (1e-12, False)])
def test_nothing_is_kept_where_nothing_moved(rate: float, moves: bool, tmp_path: Path) -> None:
    model: Any = tiny_grafted(tmp_path / "model")
    embedder = open_embedder(model, dtype=torch.bfloat16)
    settings = TrainingSettings(steps=4, batch_size=8, learning_rate=rate, evaluate_every=4, warmup=0)
    report = recover(embedder, sounds(24), ["audio_projector.*.weight"], settings, held_out=sounds(8))
    assert (report.moved or 0) > 0 if moves else report.moved == 0 and not report.kept
