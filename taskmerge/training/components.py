"""Selection of the tensors that a stage trains, and the proof that the others did not change."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from taskmerge.checkpoints.selector import Selector
from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.errors import TaskmergeError
from taskmerge.words.modalities import TEXT, tower_of


def select(embedder: Embedder, wanted: Sequence[str]) -> list[str]:
    """Return the names of the parameters that the patterns select; see `taskmerge.checkpoints.selector`.

    Names are those of the model's file. Raises UsageError for a pattern that names none.
    """
    components = components_of(embedder.state_dict, embedder.components)
    parameters = [name for name in embedder.parameter_names() if name in components]
    selector = Selector(components)
    selector.require(wanted, "train", among=parameters, of="the model's parameters")
    return selector.names(wanted, parameters)


def on_the_way(component: str, modality: str) -> bool:
    """Return whether items of a modality pass through a component; only encoders and their projectors are specific."""
    if not component.endswith(("_encoder", "_projector")):
        return True
    return component.rpartition("_")[0] == tower_of(modality)


def passed(names: Sequence[str], components: Mapping[str, str], modalities: Iterable[str]) -> list[str]:
    """Return the names that items of one of the modalities, or texts, pass through: no other can learn from them."""
    kinds = {*modalities, TEXT}
    return [name for name in names if any(on_the_way(components[name], kind) for kind in kinds)]


def texts_learn(components: Iterable[str]) -> bool:
    """Return whether texts pass through one of the trained components: all except encoders and their projectors."""
    return not all(component.endswith(("projector", "_encoder")) for component in components)


def freeze_all_but(embedder: Embedder, trained: Sequence[str]) -> None:
    """Set requires_grad for exactly the named parameters."""
    values = embedder.state_dict.values
    chosen = {id(values[name]) for name in trained}
    for parameter in embedder.module.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor's bytes."""
    found = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found[name] = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


def frozen_hashes(embedder: Embedder, trained: Sequence[str]) -> dict[str, str]:
    """Hashes of all tensors, buffers too, that are not trained, nor tied to one that is."""
    values = embedder.state_dict.values
    chosen = {id(values[name]) for name in trained}
    return hashes({name: tensor for name, tensor in values.items() if id(tensor) not in chosen})


def assert_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise TaskmergeError with the names of tensors whose bytes differ, or that were added or removed."""
    moved = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if moved:
        raise TaskmergeError(f"frozen tensors changed: {', '.join(moved[:5])} ({len(moved)} in total)")


@contextmanager
def dropout_set_to(module: nn.Module, rate: float | None) -> Iterator[None]:
    """Set all dropout layers to `rate` inside the block; None leaves them unchanged."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Dropout)] if rate is not None else []
    old = [layer.p for layer in layers]
    for layer in layers:
        layer.p = float(rate or 0.0)
    try:
        yield
    finally:
        for layer, value in zip(layers, old, strict=True):
            layer.p = value


def adaptable_layers(embedder: Embedder, parameters: Sequence[str]) -> list[str]:
    """Return the places in `Embedder.module` of the linear layers whose weights are among the parameters and that run.

    nn.MultiheadAttention reads its out_proj's weight itself, so an adapter there would do nothing.
    """
    layers = embedder.linear_layers()
    chosen = {id(layers[name]) for name in parameters if name in layers}
    for layer in embedder.module.modules():
        if isinstance(layer, nn.MultiheadAttention):
            chosen -= {id(child) for child in layer.modules()}
    return [name for name, layer in embedder.module.named_modules() if id(layer) in chosen]


def inject_lora(module: nn.Module, layers: Sequence[str], rank: int, scale: float) -> Any:
    """Add adapters to the named linear layers, in place; `merge_and_unload()` of the result merges them."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    # exact names: peft matches a list by suffix, which would reach same-named layers of other components
    pattern = "|".join(re.escape(f"model.{layer}") for layer in layers)
    options: dict[str, Any] = {"lora_alpha": scale, "lora_dropout": 0.0, "target_modules": f"({pattern})"}
    config = LoraConfig(r=rank, **options)
    # the holder has no `config`: peft takes what has one for a transformers model, which `module` only holds
    return LoraModel(nn.ModuleDict({"model": module}), config, "default")
