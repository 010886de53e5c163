"""Which tensors a stage trains, and the proof that the others did not move."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from taskmerge.checkpoints.components import component_map
from taskmerge.checkpoints.memory import MemoryWeights
from taskmerge.embedders.grafting import TOWER_OF_MODALITY
from taskmerge.errors import TaskmergeError, UsageError, did_you_mean


def component_names(module: nn.Module) -> dict[str, str]:
    """Tensor name -> component, for parameters and buffers of the first module of a SentenceTransformer.

    A grafted embedder's components are the first parts of its names (backbone, audio_encoder, audio_projector, ...);
    the token embeddings are part of its backbone. Others get the component map of their architecture.
    """
    from taskmerge.embedders.embedder import OmniEmbedder

    names = list(module.state_dict())
    if isinstance(module, OmniEmbedder):
        return {name: name.partition(".")[0] for name in names}
    network: Any = getattr(module, "auto_model", module)
    prefix = next((f"{name}." for name, part in module.named_modules() if part is network and name), "")
    weights = MemoryWeights.of_module(network)
    assigned = component_map(weights.tensors, weights.config)
    return {name: assigned.get(name.removeprefix(prefix), "") for name in names}


def select(module: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Names of the parameters that belong to the wanted components or match the wanted globs over tensor names.

    Raises UsageError for a pattern that selects nothing.
    """
    components = component_names(module)
    parameters = [name for name, _ in module.named_parameters()]
    chosen: set[str] = set()
    for pattern in wanted:
        found = {
            name for name in parameters if fnmatchcase(components.get(name, ""), pattern) or fnmatchcase(name, pattern)
        }
        if not found:
            known = sorted(set(components.values()))
            raise UsageError(f"no tensor to train in {pattern!r}", next_move=did_you_mean(pattern, known))
        chosen |= found
    return [name for name in parameters if name in chosen]


def on_the_way(component: str, modality: str) -> bool:
    """Whether items of a modality pass through a component; only towers and their projectors are not on everybody's."""
    if not component.endswith(("_encoder", "_projector")):
        return True
    return component.rpartition("_")[0] == TOWER_OF_MODALITY.get(modality, modality)


def texts_learn(components: Iterable[str]) -> bool:
    """Whether texts pass through one of the trained components: all but towers and their projectors."""
    return not all(component.endswith(("projector", "_encoder")) for component in components)


def freeze_all_but(module: nn.Module, trained: Sequence[str]) -> None:
    """requires_grad on exactly the named parameters."""
    chosen = set(trained)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)


def hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor's bytes."""
    found = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found[name] = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


def frozen_hashes(module: nn.Module, trained: Sequence[str]) -> dict[str, str]:
    """Hashes of all tensors, buffers too, that are not trained."""
    chosen = set(trained)
    return hashes({name: tensor for name, tensor in module.state_dict().items() if name not in chosen})


def assert_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises TaskmergeError naming the tensors whose bytes differ, or that came or went."""
    moved = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if moved:
        raise TaskmergeError(f"frozen tensors changed: {', '.join(moved[:5])} ({len(moved)} in all)")


@contextmanager
def dropout_set_to(module: nn.Module, rate: float | None) -> Iterator[None]:
    """All dropout layers at `rate` inside the block; None leaves them."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Dropout)] if rate is not None else []
    old = [layer.p for layer in layers]
    for layer in layers:
        layer.p = float(rate or 0.0)
    try:
        yield
    finally:
        for layer, value in zip(layers, old, strict=True):
            layer.p = value


def linear_layers(module: nn.Module, parameters: Sequence[str]) -> list[str]:
    """Names of the linear layers whose weights are among the parameters and whose own forward is really called.

    nn.MultiheadAttention reads its out_proj's weight itself, so an adapter there would do nothing.
    """
    chosen = set(parameters)
    inside = {
        f"{name}.{child}"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.MultiheadAttention)
        for child, _ in layer.named_modules()
    }
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.weight" in chosen and name not in inside
    ]


def inject_lora(module: nn.Module, layers: Sequence[str], rank: int, scale: float) -> Any:
    """Adapters on the named linear layers, in place; `merge_and_unload()` of what is returned folds them in."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    if not layers:
        raise UsageError("no linear layer to adapt", next_move="name components that have some, or leave lora out")
    # exact names: peft matches a list by suffix, which would reach same-named layers of other components
    pattern = "|".join(layer.replace(".", r"\.") for layer in layers)
    options: dict[str, Any] = {"lora_alpha": scale, "lora_dropout": 0.0, "target_modules": f"({pattern})"}
    config = LoraConfig(r=rank, **options)
    return LoraModel(module, config, "default")
