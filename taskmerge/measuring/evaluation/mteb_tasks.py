"""Selection of tasks: mteb's tasks and benchmarks by name, and local sets as tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from taskmerge.embedders.content import REVISION_LENGTH, item_digest
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import Problem, UsageError, nearest
from taskmerge.words.extras import require
from taskmerge.words.modalities import letter_of


def check_tasks(tasks: Sequence[Any]) -> None:
    """Raise UsageError if mteb is not installed or does not know a task or benchmark; see `tasks_of`."""
    tasks_of(tasks)


def tasks_of(wanted: Sequence[Any]) -> list[Any]:
    """Return the task objects of these names, each once, in order.

    Args:
        wanted: names of mteb tasks, names or aliases of benchmarks in any spelling of case, brackets and hyphens
            ("MIEB-lite" is "MIEB(lite)"), or task objects, which are taken as they are.

    Raises:
        UsageError: for names that mteb does not know, and names of several benchmarks ("ViDoRe").
    """
    mteb = require_mteb()
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in wanted:
        try:
            for task in _tasks(mteb, name):
                found.setdefault(task.metadata.name, task)
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return list(found.values())


def _tasks(mteb: Any, wanted: Any) -> list[Any]:
    if not isinstance(wanted, str):
        return [wanted]
    benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
    called = {name: {name, *(row.aliases or ())} for name, row in benchmarks.items()}
    exact = [name for name, names in called.items() if wanted in names]
    alike = [name for name, names in called.items() if _key(wanted) in map(_key, names)]
    for matches in (exact, alike):
        if len(matches) == 1:
            return list(benchmarks[matches[0]].tasks)
    try:
        return [mteb.get_task(wanted)]
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
    versions = [name for name in benchmarks if _key(name.partition("(")[0]) == _key(wanted)]
    if versions:
        raise UsageError(f"{wanted!r} matches several mteb benchmarks", next_move=f"choose one: {', '.join(versions)}")
    near = nearest(wanted, {other for names in called.values() for other in names})
    known = f"mteb {version('mteb')} is installed; another version may have more"
    move = f"did you mean the benchmark {near!r}? {known}" if near else f"{said} {known}"
    raise UsageError(f"there is no mteb task or benchmark {wanted!r}", next_move=move)


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def local_task(name: str, source: Any, direction: str = "to_text") -> Any:
    """Return an mteb retrieval task from what `read_pairs` takes.

    direction: as in `evaluate_retrieval`.  The revision of its data is their hash, so that results of other pairs under
    the same name are not taken for its own.
    """
    require_mteb()
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    if direction not in ("to_text", "from_text"):
        raise UsageError(f"unknown direction {direction!r}", next_move="known: to_text, from_text")
    pairs = read_pairs(source)
    distinct, right = pairs.distinct()
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
        dataset={"path": f"local/{name}", "revision": _revision(pairs, direction)},
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


def _revision(pairs: Pairs, direction: str) -> str:
    digest = hashlib.sha256(f"{direction}:{pairs.column}".encode())
    for item, text in zip(pairs.items, pairs.texts, strict=True):
        digest.update(f"{item_digest(item)}:{text}\n".encode())
    return digest.hexdigest()[:REVISION_LENGTH]


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


def require_mteb() -> Any:
    """Return the library. Raises an error with the command that installs it."""
    require("mteb")
    import mteb

    return mteb
