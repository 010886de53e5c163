"""Live models with a PEFT adapter inside: the adapter as the folder that PEFT saves, and the model without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_MERGE = "merge the adapters into the model: model.merge_and_unload()"


def adapted_network(module: nn.Module, label: str) -> nn.Module | None:
    """Return the part of a live model that has a PEFT adapter; None without one.

    Args:
        module: a live model, out of its wrappers.
        label: what messages call it.

    Raises:
        UsageError: for several of them, and for an adapter that is not as it is saved: merged into the weights,
            switched off, one of several that are active, or put in by hand.
    """
    peft = sys.modules.get("peft")
    if peft is None:
        return None
    found: list[tuple[str, Any]] = []
    for name, part in module.named_modules():
        outside = not any(name == above or name.startswith(f"{above}.") or not above for above, _ in found)
        if outside and (isinstance(part, peft.PeftModel) or getattr(part, "_hf_peft_config_loaded", False)):
            found.append((name, part))
    layers = [part for part in module.modules() if isinstance(part, peft.tuners.tuners_utils.BaseTunerLayer)]
    if not found:
        if layers:
            raise UsageError(f"{label} has adapter layers that belong to no peft model", next_move=_MERGE)
        return None
    if len(found) > 1:
        raise UsageError(f"{label} has adapters in {len(found)} of its networks", next_move=_MERGE)
    network: nn.Module = found[0][1]
    active = _active(network)
    if len(active) != 1:
        said = (
            f"{len(active)} adapters of {label} are active: {', '.join(active)}"
            if active
            else f"no adapter of {label} is active"
        )
        raise UsageError(said, next_move="choose one: model.set_adapter(name)")
    if any(layer.merged for layer in layers):
        raise UsageError(
            f"an adapter of {label} is merged into the weights it belongs to", next_move=f"unmerge it; or {_MERGE}"
        )
    if any(layer.disable_adapters for layer in layers):
        raise UsageError(f"the adapter of {label} is disabled", next_move="enable it, or remove it: model.unload()")
    return network


def _active(network: Any) -> list[str]:
    named = network.active_adapters
    return list(named() if callable(named) else named)


def save_adapter(network: Any, folder: Path) -> Path:
    """Save the active adapter; return its place. network: what `adapted_network` found, in a copy of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _active(network)[0]
    if not isinstance(network, sys.modules["peft"].PeftModel):
        network.save_pretrained(str(folder))
        return folder
    network.save_pretrained(str(folder), selected_adapters=[name])
    return folder if name == "default" else folder / name


def take_out(module: nn.Module) -> nn.Module:
    """Take every adapter out of a copy of a model's structure, so that it is as before PEFT came. Returns the model."""
    peft = sys.modules["peft"]
    kept_beside = peft.utils.other.AuxiliaryTrainingWrapper

    def inside(part: nn.Module) -> nn.Module:
        while True:
            if isinstance(part, peft.PeftModel):
                part = part.base_model.model if hasattr(part.base_model, "model") else part.base_model
            elif isinstance(part, peft.tuners.tuners_utils.BaseTunerLayer):
                part = part.get_base_layer()
            elif isinstance(part, kept_beside):
                part = part.original_module
            else:
                return part

    def clean(part: Any) -> None:
        for name, child in list(part.named_children()):
            plain = inside(child)
            if plain is not child:
                setattr(part, name, plain)
            clean(plain)
        for mark in ("_hf_peft_config_loaded", "peft_config"):
            part.__dict__.pop(mark, None)

    found = inside(module)
    clean(found)
    return found
