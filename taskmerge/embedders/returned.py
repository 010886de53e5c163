"""A merged model as a live one of the base's class: put into a copy of the base, or opened by the base's library."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from taskmerge.checkpoints.formats.reading import read_config
from taskmerge.checkpoints.lineage.classes import class_name
from taskmerge.checkpoints.live.values import WithLiveValues
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.embedders.putting import put
from taskmerge.errors import UsageError, few

if TYPE_CHECKING:
    from torch import Tensor, nn

SETTINGS = ("prompts", "default_prompt_name", "similarity_fn_name")
"""What of config_sentence_transformers.json a live model takes from the merge."""


def places(module: nn.Module, saved: WithLiveValues) -> dict[str, str] | None:
    """Map every tensor name of a file to its name in the live model.

    Args:
        module: the live model.
        saved: the same as the folder that it would be saved as.

    Returns:
        None if a tensor of the file is not one of the live model: split, joined or turned by its library.
    """
    import torch

    live: dict[str, Tensor] = module.state_dict()
    by_memory = {_memory(tensor): name for name, tensor in reversed(live.items())}
    found = {}
    for name in saved.tensors:
        tensor = saved.live.values.get(name)
        if tensor is None:
            return None
        own = by_memory.get(_memory(tensor))
        if own is None and name in live and live[name].shape == tensor.shape and torch.equal(live[name], tensor):
            own = name
        if own is None:
            return None
        found[name] = own
    return found


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def with_values(module: nn.Module, places: Mapping[str, str], fused: StateDict, names: Iterable[str]) -> nn.Module:
    """Return a copy of a live model with the merged tensors in place of its own.

    Args:
        module: stays as it is.
        places: name in the file -> name in `module`.
        fused: the merged model; its number formats are taken.
        names: which of its tensors are written; the others are the base's, which the copy has.
    """
    import torch

    found = copy.deepcopy(module)
    live: dict[str, Tensor] = found.state_dict(keep_vars=True)
    by_file = {name: live[places[name]] for name in names}
    changed = set()
    for name, tensor in by_file.items():
        dtype = getattr(torch, str(fused.tensors[name].format.torch_name))
        if tensor.dtype != dtype:
            changed.add(dtype)
            tensor.data = torch.empty_like(tensor.data, dtype=dtype)
    put(by_file, fused, [name for name in by_file if fused.tensors[name].format.mergeable])
    for name, tensor in by_file.items():
        if not fused.tensors[name].format.mergeable:
            _put_as_is(tensor, fused, name)
    if len(changed) == 1:
        _say_format(found, changed.pop())
    return found


def _put_as_is(tensor: Tensor, fused: StateDict, name: str) -> None:
    """Integers and the like, by their bits."""
    import numpy as np
    import torch

    bits = torch.from_numpy(np.array(fused.read(name)).view(np.uint8)).view(tensor.dtype)
    with torch.no_grad():
        tensor.data.copy_(bits.reshape(tensor.shape))


def _say_format(module: nn.Module, dtype: Any) -> None:
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "to_dict") and hasattr(config, "dtype"):
            config.dtype = dtype


def transfer(merged: nn.Module, base: nn.Module) -> None:
    """Give a live model the values of its merged copy; its parameters stay the objects that they are."""
    import torch

    values: dict[str, Tensor] = merged.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in base.state_dict(keep_vars=True).items():
            value = values[name].data
            if tensor.dtype == value.dtype:
                tensor.data.copy_(value)
            else:
                tensor.data = value


def settle(module: Any, prompts: Mapping[str, Any]) -> None:
    """Set the merge's prompts and a model card of its own in a sentence-transformers model.

    Args:
        module: any live model; others have neither.
        prompts: the merge's config_sentence_transformers.json.
    """
    if not _is_of_sentence_transformers(module):
        return
    for name in SETTINGS:
        if name in prompts and hasattr(module, name):
            value = prompts[name]
            setattr(module, name, dict(value) if isinstance(value, Mapping) else value)
    module._model_card_text = None  # the base's card does not speak of the merge
    module.model_card_data = type(module.model_card_data)(local_files_only=True)
    module.model_card_data.register_model(module)


def _is_of_sentence_transformers(module: object) -> bool:
    base = sys.modules.get("sentence_transformers.base.model")
    return base is not None and isinstance(module, base.BaseModel)


def opened_like(base: nn.Module, others: Iterable[nn.Module], folder: Path) -> nn.Module:
    """Open a merged model's folder with the library of a live one.

    Args:
        base: whose class, device and mode the result has; a transformers model gets the class that the config names.
        others: live models whose classes of modules may be in it: their code runs already.
        folder: of the merged model.

    Raises:
        UsageError: for a module of no library, which cannot take in tensors that it has no place for.
        CheckpointError: for a model that its library does not open whole.
    """
    from taskmerge.embedders.opening import opening

    device = next((parameter.device for parameter in base.parameters()), None)
    label = f"the merged {type(base).__name__}"
    with opening(label, "model"):
        if _is_of_sentence_transformers(base):
            found = _sentence_transformer(base, others, folder, str(device))
        elif (kind := _transformers_class(base, folder)) is not None:
            found = kind.from_pretrained(str(folder), dtype="auto").to(device)
        else:
            raise UsageError(
                f"a {type(base).__name__} cannot hold the tensors or tokens that the merge adds", next_move=AS_TENSORS
            )
    return cast("nn.Module", found.train(base.training))


AS_TENSORS = (
    "give the base as taskmerge.Checkpoint.open(model): the result is then a Checkpoint, which can hold any tensors"
)


def _sentence_transformer(base: Any, others: Iterable[nn.Module], folder: Path, device: str) -> Any:
    from taskmerge.embedders.loading import module_classes

    live = [part for model in (base, *others) if _is_of_sentence_transformers(model) for part in model.children()]
    classes = {f"{type(part).__module__}.{type(part).__name__}": type(part) for part in live}
    return type(base)._load_with_module_classes(str(folder), {**classes, **module_classes()}, device=device)


def _transformers_class(base: nn.Module, folder: Path) -> Any:
    library = sys.modules.get("transformers")
    if library is None or not isinstance(base, library.PreTrainedModel):
        return None
    named = class_name(read_config(folder / "config.json"))
    return getattr(library, named, type(base)) if named != type(base).__name__ else type(base)


def no_place(base: nn.Module, names: Iterable[str]) -> UsageError:
    """Return the error for a merge that does not fit the live model, if no library can make another one."""
    return UsageError(f"a {type(base).__name__} cannot hold {few(names, 3)} of the merge", next_move=AS_TENSORS)
