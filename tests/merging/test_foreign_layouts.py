"""Somebody else's models: every tensor is merged, copied or left out by a line that is printed, and the result runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import foreign_models as foreign
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from torch import nn

from taskmerge import merging, recipes
from taskmerge.checkpoints.components import component_map
from taskmerge.checkpoints.formats.reading import open_stored

WEIGHT = 0.5


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a model, each once."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            found[name] = tensor.clone()
    return found


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], **files: str) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path, dict[str, Any]]]:
    """Name -> a live model, its folder, its config."""
    root = tmp_path_factory.mktemp("bases")
    found = {}
    for number, name in enumerate(foreign.BASES):
        model = zoo.BY_NAME[name].build(seed=3)
        config = json.loads(model.config.to_json_string(use_diff=False))
        config["architectures"] = [type(model).__name__]
        found[name] = model, write(root / str(number), state_of(model), config), config
    return found


def specialist(layout: foreign.Foreign, base: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The base moved, live, and all its owner's tensors."""
    moved = zoo.perturb(copy.deepcopy(base), 5)
    return moved, layout.tensors(state_of(moved))


def fused(base: Path, audio: Path, out: Path, **extra: Any) -> merging.Plan:
    recipe = recipes.from_dict(
        {"base": str(base), "specialists": {"own": {"model": str(audio), "weight": WEIGHT}}, **extra}
    )
    plan = merging.plan(recipe)
    merging.execute(plan, recipe, out)
    return plan


def together(base: nn.Module, moved: nn.Module, layout: foreign.Foreign) -> torch.Tensor:
    """The forward of the parts put together by hand: b + w (s - b) in float64, the owner's encoder and projector."""
    middle: Any = copy.deepcopy(base)
    with torch.no_grad():
        theirs = dict(moved.named_parameters())
        for name, parameter in middle.named_parameters():
            start = parameter.double()
            parameter.copy_(start + WEIGHT * (theirs[name].double() - start))
    return foreign.hear_and_read(middle.base_model, *layout.parts(), layout)


def loaded(out: Path, base: Any, layout: foreign.Foreign, prefix: str) -> torch.Tensor:
    """The forward of the folder's tensors in the owner's class. prefix: what stands before the base's own names."""
    tensors = load_file(out / "model.safetensors")
    backbone, (encoder, projector) = copy.deepcopy(base), layout.parts(seed=9)

    def part(start: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    own = {name: tensor for name, tensor in part(prefix).items() if name in backbone.state_dict()}
    tied = set(backbone.load_state_dict(own, strict=False).missing_keys)
    assert not tied & {name for name, _ in backbone.named_parameters()}
    own_encoder = {name: tensor for name, tensor in part(f"{layout.encoder}.").items() if name in encoder.state_dict()}
    encoder.load_state_dict(own_encoder)
    projector.load_state_dict(part(f"{layout.projector}."))
    return foreign.hear_and_read(backbone.base_model, encoder, projector, layout)


@pytest.mark.parametrize("base_name", foreign.BASES)
@pytest.mark.parametrize("layout", foreign.LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("own_class", [False, True], ids=["no class named", "a class of one's own"])
def test_every_tensor_has_its_place_and_the_result_runs(
    base_name: str, layout: foreign.Foreign, own_class: bool, bases: dict[str, Any], tmp_path: Path
) -> None:
    base, folder, config = bases[base_name]
    moved, tensors = specialist(layout, base)
    named = {"architectures": ["EarsAndWords"], "model_type": "ears_and_words",
             "auto_map": {"AutoModel": "modeling_own.EarsAndWords"}}  # fmt: skip
    own_config = {**config, **layout.config, **(named if own_class else {})}
    theirs = write(tmp_path / "own", tensors, own_config, **({"modeling_own": "# theirs\n"} if own_class else {}))
    plan = fused(folder, theirs, tmp_path / "out")

    written = {step.info.name: step for step in plan.steps}
    parts = (f"{layout.encoder}.", f"{layout.projector}.")
    copied = {step.source.name for step in plan.steps if step.action == "copy"}
    assert not plan.dropped
    assert {name for name in tensors if name.startswith(parts)} <= copied
    homes = component_map({name: step.info for name, step in written.items()}, own_config)
    assert {homes.home(name) for name in written if name.startswith(parts[1])} == {f"{layout.modality}_projector"}
    assert {homes.home(name) for name in written if name.startswith(parts[0]) and not name.startswith(parts[1])} == {
        f"{layout.modality}_encoder"
    }
    assert {step.component for name, step in written.items() if name.startswith(parts)} <= {
        f"{layout.modality}_projector", f"{layout.modality}_encoder", "buffers"
    }  # fmt: skip
    merged = [step for step in plan.steps if step.action == "merge"]
    assert len(merged) == len(state_of(base)) - sum(
        not tensor.is_floating_point() for tensor in state_of(base).values()
    )
    said = "\n".join(plan.notes)
    assert f"{layout.modality}_encoder" in said and f"{layout.modality}_projector" in said

    prefix = layout.backbone if own_class else ""
    expected = together(base, moved, layout)
    torch.testing.assert_close(loaded(tmp_path / "out", base, layout, prefix), expected, rtol=1e-5, atol=1e-5)
    result = json.loads((tmp_path / "out" / "config.json").read_text())
    assert result["architectures"] == (["EarsAndWords"] if own_class else config["architectures"])
    assert (tmp_path / "out" / "modeling_own.py").is_file() == own_class
    assert {key: result[key] for key in layout.config} == layout.config
    assert set(open_stored(tmp_path / "out").tensors) == set(written)
