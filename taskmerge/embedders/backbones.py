"""The transformers model inside a grafted embedder: how it is saved, made again, loaded, and fed projected vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from taskmerge.checkpoints.components import HEAD, component_map
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.embedders.whole import check_whole, take_out_pooler
from taskmerge.errors import CheckpointError, UsageError

PREFIX = "backbone."
"""The prefix of the names of its tensors."""
_SHOWN = 5


# ------------------------------------------------------------------------------------------------ feeding it vectors


@contextmanager
def replaced_embeddings(
    backbone: nn.Module, masks: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
) -> Iterator[None]:
    """Put vectors in the place of token embeddings while the backbone runs inside the block.

    The backbone is given token ids as ever, and computes its positions, masks and pictures from them; what its token
    embedding puts out is changed where the masks are true.

    Args:
        backbone: the transformers model.
        masks: tower -> (batch, sequence) bool.
        vectors: tower -> (vectors, width), in the order of its mask.

    Raises:
        UsageError: when the block ends and the token embedding did not run exactly once.
    """
    if not vectors:
        yield
        return
    runs = 0

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        for tower, rows in vectors.items():
            output = output.masked_scatter(masks[tower][..., None], rows.to(output.dtype))
        return output

    handles = [module.register_forward_hook(replace) for module in _token_embeddings(backbone)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if runs != 1:
        raise UsageError(
            f"{type(backbone).__name__} looked up its tokens {runs} times, not once: vectors cannot be inserted",
            next_move="graft onto another backbone",
        )


def _token_embeddings(backbone: Any) -> list[nn.Module]:
    """The modules that look tokens up; several where a shared table is held by several (T5)."""
    table = backbone.get_input_embeddings()
    shared: list[nn.Module] = [
        module for module in backbone.modules() if isinstance(module, nn.Embedding) and module.weight is table.weight
    ]
    return shared or [table]


# ------------------------------------------------------------------------------------------------- saving and loading


def backbone_config(backbone: Any) -> dict[str, Any]:
    """Return the description of the backbone in a grafted embedder's config.json."""
    table = backbone.config.to_dict()
    table.pop("_name_or_path", None)  # its path on the machine that grafted it
    return {"backbone": table, "backbone_class": type(backbone).__name__}


def backbone_of(config: Mapping[str, Any]) -> Any:
    """Return the backbone of a grafted embedder's config, with new weights.

    Raises:
        CheckpointError: for a class or model type that transformers does not have.
    """
    import transformers
    from transformers import AutoConfig, AutoModel

    options = dict(config["backbone"])
    dtype = getattr(torch, config["dtype"])
    name = config.get("backbone_class")  # folders saved before it was written hold what AutoModel makes
    try:
        own = AutoConfig.for_model(options.pop("model_type"), **options)
        if name is None:
            return AutoModel.from_config(own, dtype=dtype)
        return getattr(transformers, name)._from_config(own, dtype=dtype)
    except (ValueError, AttributeError, KeyError) as error:
        what = f"transformers {transformers.__version__} has no model of the backbone: {name or ''} {error}"
        raise CheckpointError(
            what, next_move="install the version of transformers that the model was saved with"
        ) from error


def check_can_be_made_again(config: Mapping[str, Any], backbone: nn.Module, place: str) -> None:
    """Make the backbone again from the config that will be saved, without values.

    Raises:
        UsageError: when that gives another model, so that what is saved could not be opened.
    """
    try:
        with torch.device("meta"):
            again = backbone_of(config)
    except CheckpointError as error:
        what = f"{type(backbone).__name__} could not be opened again: {error.problems[0].what}"
        raise UsageError(what, place, "graft onto a model whose class is part of transformers") from error
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (backbone, again)]
    if differ := sorted(name for name in shapes[0] if shapes[0][name] != shapes[1].get(name)):
        what = (
            f"{type(backbone).__name__} rebuilt from its config does not have the same tensors: "
            f"{', '.join(differ[:_SHOWN])}"
        )
        raise UsageError(what, place, "use the config.json that belongs to these weights")


def save_tensors(embedder: nn.Module, path: Path) -> None:
    """Write a grafted embedder's tensors, each once, tied ones under the name that transformers saves."""
    tied = {PREFIX + name for name in getattr(embedder.backbone, "all_tied_weights_keys", {})}
    held: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in embedder.state_dict(keep_vars=True).items():
        if name not in tied:
            held.setdefault(id(tensor), (name, tensor.detach().contiguous()))
    save_file(dict(held.values()), str(path), metadata={"format": "pt"})


def load_tensors(embedder: nn.Module, folder: Path) -> None:
    """Load the folder's tensors into a grafted embedder.

    Heads and buffers of the backbone may be left over, as in any file that a backbone is loaded from: fusing keeps them
    from a base that has them.

    Raises:
        CheckpointError: for tensors that are missing, and others that have no place.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError("model.safetensors is missing", str(folder), "get the complete folder again")
    missing: set[str] | None = None
    left: set[str] = set()
    for file in files:
        absent, unexpected = load_model(embedder, str(file), strict=False)
        left |= set(unexpected)
        missing = set(absent) if missing is None else missing & set(absent)
    _check(embedder, missing or set(), left, folder)


def _check(embedder: nn.Module, missing: set[str], left: set[str], folder: Path) -> None:
    outside = sorted(name for name in missing if not name.startswith(PREFIX))
    if outside:
        raise CheckpointError(
            f"tensors are missing: {', '.join(outside[:_SHOWN])}",
            str(folder),
            "get the file again, or save the model again",
        )
    strange = sorted(name for name in left if not name.startswith(PREFIX) and not _is_head(name))
    if strange:
        what = f"tensors that this embedder does not have: {', '.join(strange[:_SHOWN])}"
        raise CheckpointError(what, str(folder), "use the config.json that belongs to these weights")
    told = {
        "missing_keys": [name.removeprefix(PREFIX) for name in sorted(missing)],
        "unexpected_keys": [name.removeprefix(PREFIX) for name in sorted(left) if name.startswith(PREFIX)],
    }
    check_whole(embedder.backbone, told, folder)
    take_out_pooler(embedder.backbone, told["missing_keys"])


def _is_head(name: str) -> bool:
    return component_map({name: TensorInfo(name, "F32", ())}).home(name) == HEAD
