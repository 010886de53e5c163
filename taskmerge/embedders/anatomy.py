"""Where in a live embedder the projectors, the backbone's layers and the projected tokens are.

Works on the grafted embedder and on architectures that own their towers (Qwen2-Audio, Qwen3-VL, …), whose parts are
found by their component map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.components import BACKBONE, Components, component_map
from taskmerge.checkpoints.memory import MemoryWeights
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

TOWER_OF_MODALITY = {"audio": "audio", "image": "vision", "video": "vision"}
_PLACEHOLDERS = ("{}_token_id", "{}_token_index")


@dataclass(frozen=True)
class Anatomy:
    """The parts of one embedder that drift is measured on.

    layers: the backbone's layers in order.  projectors: modality -> the modules that lead into the backbone, as
    defined; what the one that runs last puts out is what the backbone is fed.  placeholders: modality -> id of the
    token whose embedding is replaced (empty for the grafted embedder, which hands out masks).  token_table:
    (vocabulary, width) weight of the token embeddings, or None.
    """

    layers: tuple[nn.Module, ...]
    projectors: Mapping[str, tuple[nn.Module, ...]]
    placeholders: Mapping[str, int]
    token_table: Tensor | None

    def projected_tokens(self, features: Mapping[str, Any], modality: str) -> Tensor | None:
        """(batch, sequence) bool, true where projected tokens stand; None when this embedder does not tell."""
        mask = features.get(f"{TOWER_OF_MODALITY.get(modality, modality)}_mask")
        if mask is not None:
            return mask.bool()
        if modality in self.placeholders and "input_ids" in features:
            return features["input_ids"] == self.placeholders[modality]
        return None


def anatomy_of(model: Any, components: Mapping[str, Any] | None = None) -> Anatomy:
    """Anatomy of a SentenceTransformer. components: overrides of the component map, component -> globs of tensor names.

    Raises UsageError when no stack of backbone layers can be found.
    """
    first = model[0]
    if hasattr(first, "tower_of") and hasattr(first, "projector"):
        return _grafted(first)
    network = first.auto_model
    weights = MemoryWeights.of_module(network)
    parts = component_map(weights.tensors, weights.config, components)
    placeholders = {
        modality: token for modality in TOWER_OF_MODALITY if (token := _placeholder(network, modality)) is not None
    }
    projectors = {
        modality: found
        for modality, tower in TOWER_OF_MODALITY.items()
        if (found := _projectors(network, parts, tower))
    }
    return Anatomy(_layers(network, parts), projectors, placeholders, _token_table(network))


def _grafted(embedder: Any) -> Anatomy:
    weights = MemoryWeights.of_module(embedder.backbone)
    layers = _layers(embedder.backbone, component_map(weights.tensors, weights.config))
    projectors = {modality: (embedder.projector(tower),) for modality, tower in embedder.tower_of.items()}
    return Anatomy(layers, projectors, {}, _token_table(embedder.backbone))


def _layers(network: nn.Module, parts: Components) -> tuple[nn.Module, ...]:
    """The largest list of modules all of whose tensors belong to the backbone."""
    from torch import nn

    best: tuple[int, tuple[nn.Module, ...]] = (0, ())
    for name, module in network.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        inside = [parameter for parameter in parts if parameter.startswith(f"{name}.")]
        if inside and all(parts.home(parameter) == BACKBONE for parameter in inside):
            best = max(best, (sum(p.numel() for p in module.parameters()), tuple(module)), key=lambda row: row[0])
    if not best[1]:
        raise UsageError(
            f"no stack of backbone layers found in {type(network).__name__}",
            next_move="say with `components:` which tensors are the backbone",
        )
    return best[1]


def _projectors(network: nn.Module, parts: Components, tower: str) -> tuple[nn.Module, ...]:
    """The outermost modules that hold nothing but the tower's projector, in the order they are defined.

    A list of modules is never called itself, so its members count.
    """
    from torch import nn

    own = {f"{tower}_projector", "projector"}
    found: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList):
            continue
        inside = [parameter for parameter in parts if parameter.startswith(f"{name}.")] if name else []
        pure = bool(inside) and all(parts.home(parameter) in own for parameter in inside)
        if pure and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return tuple(network.get_submodule(name) for name in found)


def _placeholder(network: nn.Module, modality: str) -> int | None:
    for pattern in _PLACEHOLDERS:
        token = getattr(network.config, pattern.format(modality), None)
        if isinstance(token, int):
            return token
    return None


def _token_table(network: nn.Module) -> Tensor | None:
    getter: Any = getattr(network, "get_input_embeddings", None)
    return getattr(getter(), "weight", None) if getter else None
