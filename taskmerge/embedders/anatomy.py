"""Parts of a live embedder: its projectors, the backbone's layers, and the projected tokens.

Works on the grafted embedder and on architectures with encoders of their own (Qwen2-Audio, Qwen3-VL, …), whose parts
are found by their component map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.components import BACKBONE, Components, component_map, with_overrides
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import UsageError
from taskmerge.words.modalities import NAMES, TEXT, tower_of
from taskmerge.words.modalities import modality as find_modality

if TYPE_CHECKING:
    from torch import Tensor, nn


MODEL_TYPE = "taskmerge_omni"
"""What the config.json of a grafted embedder calls it."""
_OF_A_TOWER = ("_encoder", "_projector")


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
        """Return a mask of the projected tokens, (batch, sequence) bool; None if this embedder does not state it."""
        mask = features.get(f"{tower_of(modality)}_mask")
        if mask is not None:
            return mask.bool()
        if modality in self.placeholders and "input_ids" in features:
            return features["input_ids"] == self.placeholders[modality]
        return None


def native_anatomy(network: nn.Module, homes: Mapping[str, str]) -> Anatomy:
    """Anatomy of an architecture that owns its towers.

    Args:
        network: the transformers model.
        homes: name of a tensor in `network` -> the component whose module holds it.

    Raises:
        UsageError: when no stack of backbone layers can be found.
    """
    placeholders = {modality: token for modality in NAMES if (token := _placeholder(network, modality)) is not None}
    projectors = {
        modality: found
        for modality in NAMES
        if modality != TEXT and (found := _projectors(network, homes, tower_of(modality)))
    }
    return Anatomy(backbone_layers(network, homes), projectors, placeholders, token_table(network))


def components_of(state_dict: StateDict, overrides: Mapping[str, Sequence[str]] | None = None) -> Components:
    """Return the component of every tensor, for training and repair.

    A grafted embedder's components are the first parts of its names (backbone, audio_encoder, audio_projector, ...);
    the token embeddings are part of its backbone, the eyes that a vision-language backbone has of its own are not.
    Others get the component map of their architecture.

    Args:
        state_dict: the model.
        overrides: a recipe's `components`. They speak of all its models: patterns may name nothing in this one.
    """
    found = component_map(state_dict.tensors, state_dict.config)
    if state_dict.config.get("model_type") == MODEL_TYPE:
        homes = {name: found.home(name) for name in found}
        first = {name: home if home.endswith(_OF_A_TOWER) else name.partition(".")[0] for name, home in homes.items()}
        found = Components(first, first)
    return with_overrides(found, overrides, strict=False)


def backbone_layers(network: nn.Module, homes: Mapping[str, str]) -> tuple[nn.Module, ...]:
    """Return the largest list of modules all of whose tensors belong to the backbone."""
    from torch import nn

    best: tuple[int, tuple[nn.Module, ...]] = (0, ())
    for name, module in network.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        inside = [home for parameter, home in homes.items() if parameter.startswith(f"{name}.")]
        if inside and all(home == BACKBONE for home in inside):
            best = max(best, (sum(p.numel() for p in module.parameters()), tuple(module)), key=lambda row: row[0])
    if not best[1]:
        raise UsageError(
            f"no stack of backbone layers found in {type(network).__name__}",
            next_move="list the backbone's tensors under `components:`",
        )
    return best[1]


def _projectors(network: nn.Module, homes: Mapping[str, str], tower: str) -> tuple[nn.Module, ...]:
    """The outermost modules that hold nothing but the tower's projector, in the order they are defined.

    A list of modules is never called itself, so its members count.
    """
    from torch import nn

    own = {f"{tower}_projector", "projector"}
    found: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList):
            continue
        inside = [home for parameter, home in homes.items() if parameter.startswith(f"{name}.")] if name else []
        pure = bool(inside) and all(home in own for home in inside)
        if pure and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return tuple(network.get_submodule(name) for name in found)


def _placeholder(network: nn.Module, modality: str) -> int | None:
    row = find_modality(modality)
    config = getattr(network, "config", None)
    for key in row.placeholders if row is not None and row.tower else ():
        token = getattr(config, key, None)
        if isinstance(token, int):
            return token
    return None


def token_table(network: nn.Module) -> Tensor | None:
    """Return the weight of the token embeddings, (vocabulary, width); None without one."""
    getter: Any = getattr(network, "get_input_embeddings", None)
    return getattr(getter(), "weight", None) if getter else None
