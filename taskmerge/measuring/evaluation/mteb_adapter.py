"""Any variant as an mteb model, and local sets as mteb tasks: MAEB, MIEB, MVEB, ViDoRe and one's own in one place.

mteb comes with the extra [eval].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.media import load_audio
from taskmerge.embedders.pairs import SAMPLING_RATE, read_pairs
from taskmerge.errors import TaskmergeError, UsageError, nearest
from taskmerge.metrics.retrieval import collapse
from taskmerge.words.extras import require
from taskmerge.words.modalities import NAMES, letter_of, media_of


def as_mteb_model(model: Any, name: str, *, revision: str = "local", device: str | None = None) -> Any:
    """An object `mteb.evaluate` takes.

    model: what `open_embedder` takes.  name: "organisation/model" in mteb's results.  device: where it shall compute.

    Reads the data sets' rows itself, so that mteb's collator, which needs torchaudio, is never called.
    """
    _mteb()
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    embedder = open_embedder(model, device=device)
    own = [modality for modality in NAMES if modality in embedder.modalities]

    class Variant(AbsEncoder):  # type: ignore[misc]
        """A taskmerge variant."""

        def __init__(self) -> None:
            self.model = embedder
            self.mteb_model_meta = ModelMeta.create_empty(
                overwrites={
                    "name": name if "/" in name else f"local/{name}",
                    "revision": revision,
                    "modalities": own,
                    "embed_dim": embedder.dimension,
                    "similarity_fn_name": ScoringFunction.COSINE,
                    "framework": ["Sentence Transformers", "PyTorch"],
                }
            )

        def encode(self, inputs: Any, *, prompt_type: Any = None, **keywords: Any) -> np.ndarray:
            return embedder.encode(list(_rows(inputs.dataset)), batch_size=int(keywords.get("batch_size", 32)))

    return Variant()


def local_task(name: str, source: Any, direction: str = "to_text") -> Any:
    """An mteb retrieval task from what `read_pairs` takes. direction: as in `evaluate_retrieval`."""
    _mteb()
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    if direction not in ("to_text", "from_text"):
        raise UsageError(f"unknown direction {direction!r}", next_move="known: to_text, from_text")
    pairs = read_pairs(source)
    distinct, right = collapse(pairs.texts)
    texts = Dataset.from_dict({"id": [f"t{row}" for row in range(len(distinct))], "text": distinct})
    items = _item_rows(pairs)
    item_of = {f"i{row}": {f"t{text}": 1} for row, text in enumerate(right)}
    text_of: dict[str, dict[str, int]] = {}
    for row, text in enumerate(right):
        text_of.setdefault(f"t{text}", {})[f"i{row}"] = 1
    queries, corpus, relevant = (items, texts, item_of) if direction == "to_text" else (texts, items, text_of)
    letter = letter_of(pairs.modality)
    category: Any = f"{letter}2t" if direction == "to_text" else f"t2{letter}"
    modalities: Any = sorted({pairs.modality, "text"})
    metadata = TaskMetadata(
        name=name,
        description=f"Pairs from {pairs.source}, {direction.replace('_', ' ')}.",
        dataset={"path": f"local/{name}", "revision": "local"},
        type="Retrieval" if pairs.modality == "text" else "Any2AnyRetrieval",
        category=category,
        modalities=modalities,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self: Any, *arguments: Any, **keywords: Any) -> None:
        part = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {"test": part}}
        self.data_loaded = True

    return type(name, (AbsTaskRetrieval,), {"metadata": metadata, "load_data": load_data})()


def evaluate_mteb(
    variants: Mapping[str, Any],
    tasks: Sequence[Any],
    *,
    batch_size: int = 32,
    cache: str | Path | None = None,
    device: str | None = None,
) -> dict[str, dict[str, float]]:
    """Main score of every variant on every task: variant -> task -> score.

    variants: name -> what `open_embedder` takes.  tasks: names of mteb tasks or benchmarks ("MAEB(v1)"), or task
    objects such as `local_task` makes.  cache: folder for mteb's results: what is there is not run again. Tasks of
    modalities that a variant does not take are left out for it. Raises UsageError for unknown tasks before any model
    runs, and TaskmergeError when a task fails.
    """
    mteb = _mteb()
    from mteb.cache import ResultCache

    chosen = [task for wanted in tasks for task in _tasks(mteb, wanted)]
    table: dict[str, dict[str, float]] = {}
    for name, source in variants.items():
        model = as_mteb_model(source, name, device=device)
        modalities = set(model.mteb_model_meta.modalities)
        fitting = [task for task in chosen if set(task.metadata.modalities) <= modalities]
        table[name] = {}
        for task in fitting:
            try:
                found = mteb.evaluate(
                    model,
                    task,
                    cache=ResultCache(cache) if cache is not None else None,
                    encode_kwargs={"batch_size": batch_size},
                    show_progress_bar=False,
                    co2_tracker=False,
                    overwrite_strategy="only-missing" if cache is not None else "always",
                )
            except TaskmergeError:
                raise
            except Exception as error:  # mteb raises whatever data sets and hubs raise
                raise TaskmergeError(f"mteb task {task.metadata.name} failed for {name}: {error}") from error
            table[name] |= {result.task_name: float(result.get_score()) for result in found.task_results}
    return table


def check_tasks(tasks: Sequence[Any]) -> None:
    """Raises UsageError when mteb is not installed or knows no such task or benchmark; see `evaluate_mteb`."""
    mteb = _mteb()
    for wanted in tasks:
        _tasks(mteb, wanted)


def _tasks(mteb: Any, wanted: Any) -> list[Any]:
    if not isinstance(wanted, str):
        return [wanted]
    benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
    if wanted in benchmarks:
        return list(benchmarks[wanted].tasks)
    try:
        return [mteb.get_task(wanted)]
    except KeyError as error:
        near = nearest(wanted, benchmarks)
        said = f"did you mean the benchmark {near!r}?" if near else str(error.args[0]).removeprefix("KeyError: ")
        raise UsageError(f"no mteb task or benchmark {wanted!r}", next_move=said) from None


def _item_rows(pairs: Any) -> Any:
    """The items as a data set that mteb accepts: sound as arrays, pictures as pictures."""
    import datasets

    column = pairs.modality
    ids = [f"i{row}" for row in range(len(pairs))]
    values = pairs.load()
    if column == "audio":
        values = [{"array": item["array"].tolist(), "sampling_rate": item["sampling_rate"]} for item in values]
        return datasets.Dataset.from_dict({"id": ids, "audio": values})
    if column == "image":
        features = datasets.Features(id=datasets.Value("string"), image=datasets.Image())
        return datasets.Dataset.from_dict({"id": ids, "image": values}, features=features)
    return datasets.Dataset.from_dict({"id": ids, column: values})


def _rows(dataset: Any) -> Any:
    """The rows of a data set as embedders take them; a row of several modalities stays a dict."""
    import datasets

    for column, feature in dict(getattr(dataset, "features", None) or {}).items():
        if isinstance(feature, datasets.Audio):  # decoding there needs torchcodec
            dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    present = [modality for modality in NAMES if modality in dataset.column_names]
    for row in dataset:
        values = {modality: _value(row[modality], modality) for modality in present if row[modality] is not None}
        yield next(iter(values.values())) if len(values) == 1 else values


def _value(value: Any, modality: str) -> Any:
    if media_of(modality) != "sound":
        return value
    if isinstance(value, dict) and "bytes" in value:
        (value,) = read_pairs([{"audio": value, "text": "-"}]).load()
    return {"array": load_audio(value, SAMPLING_RATE), "sampling_rate": SAMPLING_RATE}


def _mteb() -> Any:
    require("mteb")
    import mteb

    return mteb
