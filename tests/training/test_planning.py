"""What a plan says of memory, against what autograd keeps and an optimizer holds; the ready recipe's table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT

from taskmerge.errors import UsageError
from taskmerge.pipeline import Places, Run
from taskmerge.pipeline.planned import machine_of, planned
from taskmerge.recipes import load
from taskmerge.training.masters import in_float32
from taskmerge.training.planning import Load, Needs, Tensor, needs

WIDTH, LAYERS = 128, 4
SIZE: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": 100
}  # fmt: skip


def network(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    if kind == "BERT":
        config: Any = transformers.BertConfig(
            **SIZE, intermediate_size=512, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        return transformers.BertModel(config).train()
    config = transformers.LlamaConfig(**SIZE, intermediate_size=352, num_key_value_heads=2)
    return transformers.LlamaModel(config).train()


def kept(model: Any, run: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
    """Bytes that autograd keeps of a forward pass, besides parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    return sum(size for size, _ in seen.values()), output


def plan_of(model: Any, trained: list[str], items: int, tokens: int, **how: Any) -> Needs:
    tensors = {
        name: Tensor(tuple(value.shape), value.element_size(), "backbone") for name, value in model.state_dict().items()
    }
    width = next(model.parameters()).element_size()
    return needs(tensors, trained, Load(items, tokens, 0, False, width), way=["backbone"], **how)


@pytest.mark.parametrize("kind", ["BERT", "Llama"])
@pytest.mark.parametrize("part", ["all", "none", "upper half"])
@pytest.mark.parametrize(("items", "tokens", "dtype"), [(16, 64, "float32"), (4, 200, "float32"), (16, 64, "bfloat16")])
def test_activations_are_within_a_quarter_of_what_autograd_keeps(
    kind: str, part: str, items: int, tokens: int, dtype: str
) -> None:
    model = network(kind).to(getattr(torch, dtype))
    wanted = {"all": list(range(LAYERS)), "none": [], "upper half": [2, 3]}[part]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f"layer.{number}." in name or f"layers.{number}." in name for number in wanted))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    given = torch.randn(
        items, tokens, WIDTH, requires_grad=True, dtype=getattr(torch, dtype)
    )  # as a projector gives it
    mask = torch.ones(items, tokens)
    found = plan_of(model, trained, items, tokens)
    with in_float32(model):
        measured, _ = kept(model, lambda: model(inputs_embeds=given, attention_mask=mask).last_hidden_state)
    assert found.activations == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("kind", ["BERT", "Llama"])
@pytest.mark.parametrize(("dtype", "part"), [("float32", ""), ("bfloat16", ""), ("bfloat16", "3.")])
def test_weights_gradients_and_optimizer_are_what_a_step_leaves(kind: str, dtype: str, part: str) -> None:
    model = network(kind).to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = plan_of(model, trained, 2, 8)
    with in_float32(model):
        optimizer = torch.optim.AdamW(model.parameters())
        given = torch.randn(2, 8, WIDTH, dtype=getattr(torch, dtype))
        model(inputs_embeds=given).last_hidden_state.sum().backward()
        optimizer.step()
        held = [p for p in model.parameters() if p.grad is not None]
        states = [value for p in held for value in optimizer.state[p].values() if value.ndim]
        assert found.gradients == pytest.approx(sum(p.grad.nbytes for p in held), rel=0.05)
        assert found.optimizer == pytest.approx(sum(value.nbytes for value in states), rel=0.05)
        assert found.weights == pytest.approx(sum(p.nbytes for p in model.parameters()), rel=0.01)
    stored = sum(p.nbytes for p in model.parameters())
    assert found.weights - found.widened == pytest.approx(stored, rel=0.01)


def test_what_an_option_changes() -> None:
    model = network("Llama")
    trained = [name for name, _ in model.named_parameters() if "layers" in name]
    plain = plan_of(model, trained, 16, 64)
    sharded = plan_of(model, trained, 16, 64, shards=4)
    assert sharded.weights == plain.weights // 4 and sharded.optimizer == plain.optimizer // 4
    assert sharded.activations == plain.activations
    again = plan_of(model, trained, 16, 64, recomputed=True)
    assert again.activations < plain.activations / 2 and again.operations > plain.operations
    small = plan_of(model, trained, 16, 64, lora_rank=4)
    matrices = [value for name, value in model.state_dict().items() if name in trained and value.ndim == 2]
    assert small.trained == sum(4 * sum(value.shape) for value in matrices)
    assert small.optimizer == 8 * small.trained and small.gradients == 4 * small.trained


def test_eight_billion_parameters_on_paper() -> None:
    """The ready recipe: every stage that trains fits on four devices of 80 GB, and its shape is that of the paper."""
    recipe = load(ROOT / "examples" / "omni_8b" / "recipe.yaml")
    rows = {row.stage: row for row in planned(Run(recipe, Places.of(recipe)), machine_of("4x80GB"))}
    assert list(rows) == [
        "specialize-image", "specialize-video", "specialize-document", "specialize-audio", "fuse", "diagnose",
        "recover", "rehearse", "evaluate",
    ]  # fmt: skip
    for name in ("specialize-image", "specialize-audio", "recover", "rehearse"):
        row = rows[name]
        assert row.needs is not None and row.hours is not None, name
        assert 8.0e9 < row.needs.trained + row.needs.frozen < 9.5e9
        assert 2 * 8.1e9 / 4 < row.needs.weights < 80e9 / 4
        assert row.needs.total < 80e9 and not any("does not fit" in note for note in row.notes), (name, row)
        assert 0.05 < row.hours < 400
    assert rows["fuse"].disk == pytest.approx(2 * 8.8e9, rel=0.05)
    projector = 1280 * 2 + 1280 * 4096 + 4096 + 4096 * 4096 + 4096
    recovered = rows["recover"].needs
    assert recovered is not None and recovered.trained == projector


def test_devices_that_make_no_sense() -> None:
    assert (machine_of("4x80GB").count, machine_of("2 x 24GiB").memory) == (2 * 2, 24 << 30)
    assert machine_of("8x80GB@400").speed == 400e12
    for text in ("", "80GB", "0x80GB", "4x", "4x80GB@"):
        with pytest.raises(UsageError):
            machine_of(text)


def test_a_run_that_is_planned_is_not_begun(command: Any, tmp_path: Path) -> None:
    from pipeline_projects import RECIPE, new_project

    project = new_project(tmp_path / "project")
    (project / "recipe.yaml").write_text(RECIPE)
    before = sorted(project.rglob("*"))
    ran = command("run", "--dry-run", "--processes", "2", project / "recipe.yaml")
    assert ran.code == 0 and sorted(project.rglob("*")) == before
    lines = {line.split("\t")[0]: line.split("\t") for line in ran.out.splitlines()}
    assert lines["specialize-audio"][1:4] == ["audio 8", "3", "4 x 1 x 2"]
    assert lines["rehearse"][1] == "audio 8, text 8"
    assert "TFLOP/s" in ran.err and "tokens of an item: audio" in ran.err
    assert command("run", "--assume", "4x80GB", project / "recipe.yaml").code == 2
