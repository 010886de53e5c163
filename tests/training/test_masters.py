"""Half-precision weights are float32 while they are trained: the result is float32 training, rounded at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drift_models import sounds, tiny_grafted
from torch import nn

from taskmerge import LoraSettings, TrainingSettings, open_embedder, recover
from taskmerge.training.masters import in_float32

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
    config = BertConfig(**size, intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertModel(config, add_pooling_layer=False)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
    return LlamaModel(LlamaConfig(**size, intermediate_size=64, num_key_value_heads=2))


class Own(nn.Module):
    """Somebody's own: attention of torch, a convolution, a parameter of the module itself, containers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.shift = nn.Parameter(torch.randn(32))
        self.attention = nn.ModuleList([nn.MultiheadAttention(32, 4, batch_first=True)])
        self.stack = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.LayerNorm(32))
        self.convolution = nn.Conv1d(32, 32, 3, padding=1)

    def forward(self, input_ids: torch.Tensor) -> Any:
        states = self.embed(input_ids) + self.shift
        states = states + self.attention[0](states, states, states, need_weights=False)[0]
        states = self.convolution(self.stack(states).transpose(1, 2)).transpose(1, 2)
        return type("Output", (), {"last_hidden_state": states})


CASES: list[tuple[Callable[[], nn.Module], str]] = [
    (bert, ""), (bert, "encoder.layer.1."), (bert, "layer.2.attention."), (bert, "query.weight"), (bert, "bias"),
    (bert, "embeddings."), (bert, "LayerNorm"), (llama, ""), (llama, "layers.1."), (llama, "q_proj"), (llama, "norm"),
    (llama, "layers.0.self_attn."), (llama, "embed_tokens"), (Own, ""), (Own, "out_proj"), (Own, "shift"),
    (Own, "stack.2"), (Own, "convolution"), (Own, "in_proj_weight"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "trained"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_whatever_is_trained_gets_float32_gradients_near_those_of_a_float32_model(
    make: Callable[[], nn.Module], trained: str
) -> None:
    torch.manual_seed(0)
    half = make()
    for parameter in half.parameters():  # not what is computed when a model is made: see `Embedder.to`
        parameter.data = parameter.data.to(torch.bfloat16)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    whole = make()
    whole.load_state_dict({name: value.float() for name, value in before.items()})
    ids, weights = torch.randint(0, 50, (4, 6)), torch.randn(4, 6, 32)
    for model in (half, whole):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
    whole(input_ids=ids).last_hidden_state.float().mul(weights).sum().backward()
    wanted = {name: parameter.grad for name, parameter in whole.named_parameters() if parameter.grad is not None}
    with in_float32(half):
        half(input_ids=ids).last_hidden_state.float().mul(weights).sum().backward()
        found = {name: parameter.grad for name, parameter in half.named_parameters() if parameter.grad is not None}
        assert found.keys() == wanted.keys() and found
        for name, gradient in found.items():
            assert gradient.dtype == torch.float32
            assert (gradient - wanted[name]).norm() <= 0.1 * wanted[name].norm() + 1e-3, name
            if not trained:
                assert torch.allclose(gradient, wanted[name], rtol=1e-4, atol=1e-5), name
    after = half.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in half.modules())


@HALF
def test_steps_are_those_of_float32_and_are_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    half = nn.Linear(32, 64).to(dtype)
    whole = nn.Linear(32, 64)
    whole.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    given = [torch.randn(8, 32) for _ in range(12)]

    def steps(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
        for rows in given:
            optimizer.zero_grad()
            model(rows).float().sin().sum().backward()
            optimizer.step()

    start = half.weight.detach().clone()
    steps(whole)
    with in_float32(half) as masters:
        steps(half)
        unrounded = half.weight.detach().clone()
        masters.round()
        rounded = half.weight.detach().clone()
    assert unrounded.dtype == rounded.dtype == torch.float32 and half.weight.dtype == dtype
    assert torch.equal(half.weight.float(), rounded) and torch.equal(half.weight, unrounded.to(dtype))
    assert torch.allclose(unrounded, whole.weight, atol=2e-6) and not torch.equal(unrounded, start.float())


def test_without_masters_nothing_moves_where_float32_does() -> None:
    """The fault: 12 steps at 1e-5 leave every bfloat16 entry of a weight near 1 where it was."""
    torch.manual_seed(1)
    gradient = torch.randn(64, 32).sign()

    def moved(model: nn.Linear) -> float:
        before = model.weight.detach().to(torch.bfloat16).clone()
        optimizer = torch.optim.AdamW([model.weight], lr=1e-5, weight_decay=0.0)
        for _ in range(400):
            model.weight.grad = gradient.to(model.weight.dtype)
            optimizer.step()
        return float((model.weight.detach().to(torch.bfloat16) != before).float().mean())

    def weight() -> nn.Linear:
        layer = nn.Linear(32, 64)
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
        return layer.to(torch.bfloat16)

    assert moved(weight()) < 0.05
    held = weight()
    with in_float32(held):
        assert moved(held) > 0.8


def test_what_float32_or_frozen_models_hold_is_not_touched() -> None:
    whole, frozen = nn.Linear(4, 4), nn.Linear(4, 4).to(torch.bfloat16).requires_grad_(False)
    for model in (whole, frozen):
        kept = model.weight.data_ptr()
        with in_float32(model) as masters:
            assert not len(masters) and model.weight.data_ptr() == kept and not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("how", "trained"),
    [({}, ["audio_projector.*.weight"]), ({"bf16": True}, ["audio_projector"]), ({"input_noise": 0.1}, ["audio_*"]),
     ({"lora": LoraSettings(rank=2, components=("audio_projector",))}, ["audio_projector"]),
     ({"input_noise": 0.1}, ["audio_projector"])],
)  # fmt: skip
def test_a_half_precision_model_is_trained(how: dict[str, Any], trained: list[str], tmp_path: Path) -> None:
    model: Any = tiny_grafted(tmp_path / "model")
    embedder = open_embedder(model, dtype=torch.bfloat16)
    settings = TrainingSettings(steps=3, batch_size=8, learning_rate=1e-3, evaluate_every=2, warmup=0, **how)
    report = recover(embedder, sounds(24), trained, settings)
    assert report.moved and all(value.dtype == torch.bfloat16 for value in embedder.module.parameters())


@pytest.mark.parametrize(("rate", "moves"), [(1e-3, True), (1e-12, False)])
def test_nothing_is_kept_where_nothing_moved(rate: float, moves: bool, tmp_path: Path) -> None:
    model: Any = tiny_grafted(tmp_path / "model")
    embedder = open_embedder(model, dtype=torch.bfloat16)
    settings = TrainingSettings(steps=4, batch_size=8, learning_rate=rate, evaluate_every=4, warmup=0)
    report = recover(embedder, sounds(24), ["audio_projector.*.weight"], settings, held_out=sounds(8))
    assert (report.moved or 0) > 0 if moves else report.moved == 0 and not report.kept
