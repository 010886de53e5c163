"""Any embedder as a model of mteb: its prompts by task and role, and what it says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.identity import revision_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_to_measure
from taskmerge.embedders.media import load_audio
from taskmerge.embedders.pairs import SAMPLING_RATE, read_pairs
from taskmerge.embedders.prompts import Prompts
from taskmerge.embedders.sources import ModelSource
from taskmerge.errors import UsageError
from taskmerge.measuring.evaluation.mteb_card import card_fields
from taskmerge.words.extras import require
from taskmerge.words.modalities import NAMES, media_of
from taskmerge.words.precisions import precision_name


def as_mteb_model(
    model: Any,
    name: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    prompts: Any = None,
    dimension: int | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Any:
    """Return an object that `mteb.evaluate` takes.

    Reads the data sets' rows itself, so that mteb's collator, which needs torchaudio, is never called. A prompt is
    chosen as mteb's own wrapper of sentence-transformers chooses it: of the task and role, the task, the task's type
    and role, the type, the role; the user's prompts go before these.

    Args:
        model: what `open_embedder` takes.
        name: "organisation/model" in mteb's results; without an organisation "local/" is put before it.
        revision: what its results are filed under; default: the commit of a model that is opened from the hub here,
            else the model's own hash, see `revision_of`.
        device: where it shall compute.
        precision: what it shall compute in, where that is not its own; filed as an experiment of its own.
        prompts: instead of the model's own, see `Embedder.prompted`; filed as an experiment of their own.
        dimension: what embeddings are cut to, likewise.
        meta: fields of mteb's ModelMeta that are not known otherwise (training_datasets, reference, …).

    Raises:
        UsageError: for a dimension that the model does not have and fields that ModelMeta does not have.
    """
    require("mteb")
    from mteb.models.abs_encoder import AbsEncoder
    from sentence_transformers.util import SimilarityFunction

    embedder = open_to_measure(model, device=device, precision=precision).prompted(prompts)
    if dimension is not None and not 1 <= dimension <= embedder.dimension:
        raise UsageError(
            f"{embedder.label}: embeddings have {embedder.dimension} dimensions and cannot be truncated to {dimension}",
            next_move="use smaller dimensions",
        )
    own_prompts, _ = AbsEncoder.validate_task_to_prompt_name(dict(embedder.own_prompts), raise_for_invalid_keys=False)

    class Variant(AbsEncoder):  # type: ignore[misc]
        """A taskmerge variant."""

        def __init__(self) -> None:
            self.model = embedder
            # a loaded model that is passed may have been changed since its commit
            commit = embedder.state_dict.beside.commit if isinstance(model, str | Path | ModelSource) else None
            self.mteb_model_meta = model_meta(embedder, name, revision or commit, dimension, meta, precision)

        def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **keywords: Any) -> np.ndarray:
            role = prompt_type.value if prompt_type else None
            found = []
            for rows, modality in _batches(inputs.dataset, int(keywords.get("batch_size", 32))):
                own = _prompted(embedder, own_prompts or {}, task_metadata, prompt_type, modality)
                found.append(own.encode(rows, modality, role, batch_size=len(rows))[:, :dimension])
            return np.concatenate(found)

        def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
            return SimilarityFunction.to_similarity_fn(embedder.similarity)(embeddings1, embeddings2)

        def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
            return SimilarityFunction.to_similarity_pairwise_fn(embedder.similarity)(embeddings1, embeddings2)

    return Variant()


def _prompted(
    embedder: Embedder, own_prompts: dict[str, str], task: Any, prompt_type: Any, modality: str | None
) -> Embedder:
    """The embedder with the user's prompts for a task, or else with the model's own prompt that mteb would choose."""
    from mteb.models.abs_encoder import get_prompt_name

    own = embedder.prompted(None, task.name)
    if own.prompts.text(prompt_type.value if prompt_type else None, modality) is not None:
        return own
    chosen = get_prompt_name(own_prompts, task, prompt_type)
    text = own_prompts.get(chosen) if chosen is not None else None
    return own if text is None else own.prompted(Prompts(text, text, text))


def model_meta(
    embedder: Embedder,
    name: str,
    revision: str | None = None,
    dimension: int | None = None,
    said: Mapping[str, Any] | None = None,
    precision: str | None = None,
) -> Any:
    """Return mteb's ModelMeta of an embedder, from the model, its card, and the user's own fields."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    strange = sorted(set(said or {}) - set(ModelMeta.model_fields))
    if strange:
        raise UsageError(f"mteb's ModelMeta has no field {strange[0]!r}", next_move=", ".join(ModelMeta.model_fields))
    tensors = list(embedder.state_dict.values.values())
    table = embedder.token_embeddings()
    experiment: dict[str, Any] = {} if dimension is None else {"embed_dim": dimension}
    if precision is not None:
        experiment["dtype"] = precision
    if embedder.prompts:
        text = json.dumps(embedder.prompts.as_dict(), sort_keys=True)
        experiment["prompts"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    shown = {
        "name": name if "/" in name else f"local/{name}",
        "revision": revision or revision_of(embedder),
        "modalities": [modality for modality in NAMES if modality in embedder.modalities],
        "n_parameters": sum(tensor.numel() for tensor in tensors),
        "n_embedding_parameters": None if table is None else table.numel(),
        "memory_usage_mb": round(sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20, 2),
        "max_tokens": embedder.max_tokens,
        "embed_dim": dimension or embedder.dimension,
        "similarity_fn_name": ScoringFunction(embedder.similarity),
        "framework": ["Sentence Transformers", "PyTorch", "safetensors"],
        "open_state_dict": True,
        "use_instructions": bool(embedder.prompts) or any(embedder.own_prompts.values()),
        "output_dtypes": _output_dtype(embedder),
        "experiment_kwargs": experiment or None,
    }
    return ModelMeta.create_empty(
        overwrites={**shown, **card_fields(embedder.state_dict.beside.folder), **(said or {})}
    )


def _output_dtype(embedder: Embedder) -> Any:
    """mteb's word for the precision of its embeddings, None where it has none."""
    from mteb.types import OutputDType

    return {"bfloat16": OutputDType.BF16, "float16": OutputDType.FLOAT16, "float32": OutputDType.FLOAT32}.get(
        precision_name(embedder.dtype)
    )


def _batches(dataset: Any, size: int) -> Iterator[tuple[list[Any], str | None]]:
    """(rows as embedders take them, their modality, None for rows of several) of one modality a batch."""
    rows: list[Any] = []
    modality: str | None = None
    for row, own in _rows(dataset):
        if rows and (own != modality or len(rows) == size):
            yield rows, modality
            rows = []
        rows.append(row)
        modality = own
    if rows:
        yield rows, modality


def _rows(dataset: Any) -> Iterator[tuple[Any, str | None]]:
    """The rows of a data set and their modality; a row of several modalities is a dict."""
    import datasets

    for column, feature in dict(getattr(dataset, "features", None) or {}).items():
        if isinstance(feature, datasets.Audio):  # decoding there needs torchcodec
            dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    present = [modality for modality in NAMES if modality in dataset.column_names]
    for row in dataset:
        values = {modality: _value(row[modality], modality) for modality in present if row[modality] is not None}
        if len(values) == 1:
            ((modality, value),) = values.items()
            yield value, modality
        else:
            yield values, None


def _value(value: Any, modality: str) -> Any:
    if media_of(modality) != "sound":
        return value
    if isinstance(value, dict) and "bytes" in value:
        (value,) = read_pairs([{"audio": value, "text": "-"}]).load()
    return {"array": load_audio(value, SAMPLING_RATE), "sampling_rate": SAMPLING_RATE}


def variant_names(names: Sequence[str]) -> dict[str, str]:
    """Variant -> its name in mteb's results; raises UsageError when two would share a folder."""
    found = {name: name if "/" in name else f"local/{name}" for name in names}
    folders = {name: own.replace("/", "__").replace(" ", "_") for name, own in found.items()}
    for name, folder in folders.items():
        others = [other for other, own in folders.items() if own == folder and other != name]
        if others:
            raise UsageError(f"{name!r} and {others[0]!r} have the same name in mteb's results", next_move="rename one")
    return found
