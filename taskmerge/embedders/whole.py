"""The proof that all of a model was in its file: transformers starts what is missing from random numbers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.components import BACKBONE, BUFFERS, HEAD, Components, component_map
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.embedders.filling import filled, is_read_by_transformers, stored_of
from taskmerge.errors import CheckpointError

_UNUSED = (HEAD, BUFFERS, "speech_decoder", "image_decoder")
"""Components that a file may hold beyond an embedder: what predicts words, speaks or draws."""
_PRETRAINING = ("masked_spec_embed", "mask_token")
"""Parameters that only hide parts of the input in pretraining; many files lack them."""
_SHOWN = 4


@contextmanager
def whole(source: str | Path) -> Iterator[None]:
    """Refuse models that transformers loads only in part: inside the block each is checked when it is loaded.

    What transformers does not find in a folder is looked for there as `fuse` does, and put into the model.

    Args:
        source: what messages call the model.

    Raises:
        CheckpointError: for the first model that is not whole.
    """
    from transformers import PreTrainedModel

    own = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls: Any, *arguments: Any, **options: Any) -> Any:
        wanted = options.pop("output_loading_info", False)
        stored = stored_of(arguments, options)
        if stored is not None and options.get("config") is not None and not is_read_by_transformers(stored):
            options.pop("pretrained_model_name_or_path", None)
            arguments, options["state_dict"] = (None, *arguments[1:]), {}
        model, told = own.__func__(cls, *arguments, output_loading_info=True, **options)
        told = told if stored is None else filled(model, told, stored)
        check_whole(model, told, source)
        take_out_pooler(model, told["missing_keys"])
        return (model, told) if wanted else model

    # The loading info has no other way out of the classes that call this for us (AutoModel, sentence-transformers).
    PreTrainedModel.from_pretrained = classmethod(checked)  # type: ignore[method-assign, assignment]
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_report)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = own  # type: ignore[method-assign]
        log.removeFilter(_is_no_report)


def check_whole(model: Any, told: Mapping[str, Any], source: str | Path) -> None:
    """Raise CheckpointError unless every tensor that an embedder runs came from the file, and none of it was left.

    Heads may be absent (BERT's pooler) or left over (lm_head, a talker), and so may buffers that are computed again.
    What the class declares as tied, or as not to be looked for, transformers has taken out of `told`.

    Args:
        model: what `from_pretrained` made.
        told: its loading info: "missing_keys" and "unexpected_keys".
        source: what messages call the model.
    """
    held = MemoryStateDict.of_module(model)
    absent = [name for name in told["missing_keys"] if name in held.tensors]
    beyond = list(told["unexpected_keys"])
    if not absent and not beyond:
        return
    parts = component_map({**held.tensors, **{name: TensorInfo(name, "F32", ()) for name in beyond}}, held.config)
    missing = [name for name in absent if _is_run(name, held, parts)]
    inside = {name.partition(".")[0] for name in held.tensors}
    left = [name for name in beyond if _is_part(name, inside, parts)]
    refuse(type(model).__name__, source, missing, beyond if missing else left)


def refuse(
    kind: str, source: str | Path, missing: Sequence[str], left: Sequence[str], other: Sequence[str] = ()
) -> None:
    """Raise CheckpointError for a model that is not whole; do nothing when all is in its place.

    Args:
        kind: the model's class.
        source: what messages call the model.
        missing: tensors that it runs and that are not in its file.
        left: tensors of the file that it has no place for.
        other: tensors that do not hold what the file holds.
    """
    said = []
    if missing:
        said.append(f"{_count(missing, 'is', 'are')} missing from the file of this {kind}: {_some(missing)}")
    if left:
        said.append(f"{_count(left, 'in the file has', 'in the file have')} no counterpart in {kind}: {_some(left)}")
    if other:
        holds = _count(other, "does", "do")
        said.append(f"{holds} not have the values of the file in {kind}: {_some(other)}")
    if said:
        raise CheckpointError(
            "; ".join(said),
            str(source),
            "check that the prefix, class and layers of its tensors match config.json; "
            "`taskmerge inspect` lists the tensors of the file",
        )


def take_out_pooler(model: Any, missing: Iterable[str]) -> None:
    """Take a pooler out of a model whose file has none: it would be saved, fused and compared as if it were one.

    Embeddings are made of the last states; a pooler started from random numbers has no part in them.
    """
    poolers = [name for name in missing if name.startswith("pooler.")]
    optional = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    if poolers and optional and len(poolers) == len(getattr(model, "pooler", None).state_dict()):  # type: ignore[union-attr]
        model.pooler = None


def _is_run(name: str, held: MemoryStateDict, parts: Components) -> bool:
    """Whether an absent tensor takes part in an embedding."""
    if name.rpartition(".")[2] in _PRETRAINING:
        return False
    return parts.home(name) != HEAD and held.tensors[name].format.kind.endswith("float")


def _is_part(name: str, inside: set[str], parts: Components) -> bool:
    """Whether a tensor left over belongs to what embeds: a tower, a projector, or more of what the model has.

    A module next to the model's own parts (wav2vec 2's quantizer) was a head of its pretraining.
    """
    component = parts[name]
    return component not in _UNUSED and (component != BACKBONE or name.partition(".")[0] in inside)


def _count(names: Sequence[str], one: str, several: str) -> str:
    return f"1 tensor {one}" if len(names) == 1 else f"{len(names)} tensors {several}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more


def _is_no_report(record: logging.LogRecord) -> bool:
    """What transformers logs of absent and left over tensors is judged here instead."""
    return "LOAD REPORT" not in record.getMessage()
