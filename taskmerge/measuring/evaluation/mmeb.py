"""MMEB-V2's own evaluation: its files of embeddings and scores of one data set, and its report of all.

What VLM2Vec's `eval.py` writes, byte formats and names included, so that either program continues from the other's
files.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.embedders.identity import revision_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_to_measure
from taskmerge.embedders.prompts import Role
from taskmerge.errors import OutputError, UsageError, few
from taskmerge.measuring.evaluation.mmeb_rows import Answer, candidate_items, query_items
from taskmerge.metrics.ranking import mean_scores, ranking_scores
from taskmerge.metrics.retrieval import normalized
from taskmerge.whole_files import write_whole
from taskmerge.words.modalities import NAMES, TEXT
from taskmerge.words.places import output_path
from taskmerge.words.system_errors import writing

Suite = Literal["image", "video", "visdoc"]
MAIN_SCORE: Mapping[Suite, str] = {"image": "hit@1", "video": "hit@1", "visdoc": "ndcg_linear@5"}
"""What a suite's mean is a mean of."""
DATA_SETS: Mapping[Suite, tuple[str, ...]] = {
    "image": (
        "ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365", "ImageNet-A", "ImageNet-R",
        "ObjectNet", "Country211", "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "ScienceQA",
        "VizWiz", "GQA", "TextVQA", "VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t",
        "NIGHTS", "WebQA", "FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS", "MSCOCO", "RefCOCO", "RefCOCO-Matching",
        "Visual7W-Pointing",
    ),
    "video": (
        "DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2", "QVHighlight", "Charades-STA", "MomentSeeker", "K700",
        "SmthSmthV2", "HMDB51", "UCF101", "Breakfast", "MVBench", "Video-MME", "NExTQA", "EgoSchema", "ActivityNetQA",
    ),
    "visdoc": (
        "ViDoRe_arxivqa", "ViDoRe_docvqa", "ViDoRe_infovqa", "ViDoRe_tabfquad", "ViDoRe_tatdqa", "ViDoRe_shiftproject",
        "ViDoRe_syntheticDocQA_artificial_intelligence", "ViDoRe_syntheticDocQA_energy",
        "ViDoRe_syntheticDocQA_government_reports", "ViDoRe_syntheticDocQA_healthcare_industry",
        "ViDoRe_esg_reports_human_labeled_v2", "ViDoRe_biomedical_lectures_v2_multilingual",
        "ViDoRe_economics_reports_v2_multilingual", "ViDoRe_esg_reports_v2_multilingual", "VisRAG_ArxivQA",
        "VisRAG_ChartQA", "VisRAG_MP-DocVQA", "VisRAG_SlideVQA", "VisRAG_InfoVQA", "VisRAG_PlotQA", "ViDoSeek-page",
        "ViDoSeek-doc", "MMLongBench-page", "MMLongBench-doc",
    ),
}  # fmt: skip
"""Of the leaderboard; its report script also knows three English sets of ViDoRe v2 that no mean holds."""
RECORD = "taskmerge_mmeb.json"
"""Which model's embeddings a folder holds."""
METADATA = ("model_name", "model_backbone", "model_size", "embedding_dimension", "max_length_tokens",
            "model_release_date", "data_source", "url")  # fmt: skip
_FIXED = "-fixed"
"""Corrected releases of page sets are scored under their own names and reported under the first ones."""


def evaluate_mmeb(
    model: Any,
    name: str,
    queries: Iterable[Mapping[str, Any]],
    corpus: Iterable[Mapping[str, Any]] = (),
    *,
    out: str | Path,
    suite: Suite,
    ranking: Literal["global", "local"] = "global",
    prompts: Any = None,
    batch_size: int = 16,
    device: str | None = None,
    precision: str | None = None,
) -> dict[str, float]:
    """Score a model on one data set of MMEB-V2, and leave the files that its own `eval.py` leaves.

    A data set whose scores are there is not run again; one whose embeddings are there is only scored. A folder holds
    one model: another is refused.

    Args:
        model: what `open_embedder` takes.
        name: of the data set, as in the benchmark's YAML ("CIRR").
        queries, corpus: rows as its loaders make them: query_text, query_image, cand_text, cand_image, dataset_infos.
        out: folder of results; files go into its folder `suite`.
        suite: image, video or visdoc.
        ranking: among all candidates, or among those that a query names: the YAML's `eval_type`.
        precision: what it is run in; default: its own. Another precision is another model.
        prompts: instead of the model's own, see `Embedder.prompted`. The task's instruction is in the rows' texts.

    Returns:
        The scores, as NAME_score.json has them: means over the queries, then num_pred and num_data.

    Raises:
        UsageError: for rows that make no sense, and a modality that the model does not take.
        OutputError: for a folder of another model.
    """
    folder = output_path(out) / suite
    embedder = open_to_measure(model, device=device, precision=precision).prompted(prompts)
    _check_folder(output_path(out), embedder)
    files = {kind: folder / f"{name}_{kind}" for kind in ("qry", "tgt", "info.jsonl", "pred.jsonl", "score.json")}
    if files["score.json"].is_file():
        return dict(
            read_json(files["score.json"], dict[str, float], "remove this file: it will be written again", own=True)
        )
    rows = list(queries)
    found = list(query_items(rows))
    if not found:
        raise UsageError(f"{name}: no queries", next_move="check the data of this set")
    answers = [answer for _, answer in found]
    if not files["qry"].is_file():
        vectors = embed_items(embedder, [item for item, _ in found], "query", batch_size)
        _write(files["info.jsonl"], "".join(json.dumps(answer.as_row()) + "\n" for answer in answers).encode())
        _write(files["qry"], pickle.dumps(vectors))
    if not files["tgt"].is_file():
        named = list(candidate_items(rows, corpus))
        vectors = embed_items(embedder, [item for _, item in named], "document", batch_size)
        _write(files["tgt"], pickle.dumps(dict(zip([own for own, _ in named], vectors, strict=True))))
    return _scored(files, answers, ranking, name)


def _scored(files: Mapping[str, Path], answers: Sequence[Answer], ranking: str, name: str) -> dict[str, float]:
    """Rank the stored candidates for the stored queries; write what was predicted, and the scores."""
    predictions = list(_ranked(_stored(files["qry"]), _stored(files["tgt"]), answers, ranking, name))
    scores = mean_scores(
        [
            ranking_scores(ranked, answer.labels, answer.relevance)
            for ranked, answer in zip(predictions, answers, strict=True)
        ]
    )
    scores |= {"num_pred": len(predictions), "num_data": len(answers)}
    lines = (
        {"prediction": ranked, "label": list(answer.labels), "rel_scores": answer.relevance}
        for ranked, answer in zip(predictions, answers, strict=True)
    )
    _write(files["pred.jsonl"], "".join(json.dumps(line) + "\n" for line in lines).encode())
    _write(files["score.json"], json.dumps(scores, indent=4).encode())
    return scores


def embed_items(embedder: Embedder, items: Sequence[Any], role: Role, batch_size: int = 16) -> np.ndarray:
    """Return (items, d) float32 of length 1, in their order; a batch has items of one kind."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for number, item in enumerate(items):
        kinds.setdefault(_kind(item), []).append(number)
    for kind in kinds:
        for name in kind:
            embedder.check_takes(name, "the data set")
    rows: np.ndarray | None = None
    for kind, numbers in kinds.items():
        modality = kind[0] if len(kind) == 1 else None
        own = embedder.encode([items[number] for number in numbers], modality, role, batch_size=batch_size)
        rows = np.empty((len(items), own.shape[1]), dtype=np.float32) if rows is None else rows
        rows[numbers] = normalized(own)
    return np.empty((0, 0), dtype=np.float32) if rows is None else rows


def mmeb_report(folder: str | Path, metadata: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Write the leaderboard's JSON of a folder of scores: ``MODEL_NAME.json`` next to the suites.

    Args:
        folder: what `evaluate_mmeb`, or VLM2Vec's `eval.py` with one output folder a suite, wrote.
        metadata: model_name, and what else the leaderboard shows: see `METADATA`; what is left out is "NONE".

    Returns:
        The file; and per suite its mean, how many data sets are behind it, and which are missing.

    Raises:
        UsageError: without a model_name, for unknown metadata, and for a folder without any score.
    """
    strange = sorted(set(metadata) - set(METADATA))
    if strange or not metadata.get("model_name"):
        what = f"metadata: {strange[0]!r} is unknown" if strange else "metadata without a model_name"
        raise UsageError(what, next_move=f"known: {', '.join(METADATA)}")
    folder = Path(folder)
    metrics: dict[str, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    for suite, names in DATA_SETS.items():
        found = {name: scores for name in names if (scores := _scores(folder / suite, name)) is not None}
        metrics[suite] = {name: found.get(name, "FILE_N/A") for name in names}
        values = [scores[MAIN_SCORE[suite]] for scores in found.values()]
        mean = float(np.mean(values)) if values else None
        missing = [name for name in names if name not in found]
        summary[suite] = {"score": MAIN_SCORE[suite], "mean": mean, "data_sets": len(values), "missing": missing}
    if not any(row["data_sets"] for row in summary.values()):
        raise UsageError("contains no score of MMEB-V2", str(folder), f"its suites: {few(DATA_SETS)}")
    said = {key: metadata.get(key, "NONE") for key in METADATA}
    table = {"metadata": {**said, "report_generated_date": datetime.now().isoformat()}, "metrics": metrics}
    path = folder / f"{metadata['model_name']}.json"
    _write(path, json.dumps(table, indent=4).encode())
    return path, summary


def _scores(folder: Path, name: str) -> dict[str, float] | None:
    for path in (folder / f"{name}_score.json", folder / f"{name}{_FIXED}_score.json"):
        if path.is_file():
            return dict(read_json(path, dict[str, float], "remove this file and evaluate again"))
    return None


def _ranked(
    queries: np.ndarray, candidates: Mapping[str, np.ndarray], answers: Sequence[Answer], ranking: str, name: str
) -> Iterator[list[str]]:
    """The names of candidates for every query, best first."""
    if ranking not in ("global", "local"):
        raise UsageError(
            f"unknown ranking {ranking!r}", next_move="use global or local, like eval_type in the YAML file"
        )
    if len(queries) != len(answers):
        raise UsageError(
            f"{name}: {len(queries)} embedded queries, but {len(answers)} rows", next_move="remove its files"
        )
    names = list(candidates)
    matrix = np.stack([candidates[own] for own in names])
    places = {own: place for place, own in enumerate(names)}
    for number, (query, answer) in enumerate(zip(queries, answers, strict=True), start=1):
        among = names if ranking == "global" else list(answer.candidates)
        if unknown := [own for own in (*among, *answer.labels) if own not in places]:
            raise UsageError(
                f"{name}: query {number} refers to {unknown[0]!r}, which is not a candidate",
                next_move="check the data of this set",
            )
        scores = (matrix if ranking == "global" else matrix[[places[own] for own in among]]) @ query
        yield [among[place] for place in np.argsort(-scores, kind="stable")]


def _kind(item: Any) -> tuple[str, ...]:
    if isinstance(item, dict):
        return tuple(modality for modality in NAMES if modality in item)
    if isinstance(item, str):
        return (TEXT,)
    return ("video",) if isinstance(item, np.ndarray) else ("image",)


def _check_folder(folder: Path, embedder: Embedder) -> None:
    own = {"revision": revision_of(embedder), "prompts": json.dumps(embedder.prompts.as_dict(), sort_keys=True)}
    record = folder / RECORD
    if record.is_file():
        known: dict[str, str] = read_json(
            record, dict[str, str], "remove the folder's files of embeddings and scores", own=True
        )
        if known != own:
            raise OutputError(
                "contains scores of another model or of other prompts", str(folder), "choose another folder"
            )
        return
    if any(folder.glob("*/*_score.json")):
        raise OutputError(
            f"contains scores, but no {RECORD} that identifies the model", str(folder), "choose another folder"
        )
    _write(record, json.dumps(own, indent=1).encode())


def _stored(path: Path) -> Any:
    """Our own pickle of arrays; the folder's record says that this model wrote it."""
    with path.open("rb") as file:
        return _Arrays(file).load()


class _Arrays(pickle.Unpickler):
    """Reads arrays in dicts and lists, and runs nothing else that a file may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "_frombuffer",
            "scalar",
        ):
            return super().find_class(module, name)
        raise UsageError(
            f"the file of embeddings would load {module}.{name}, which is not allowed",
            next_move="remove it: it will be written again",
        )


def _write(path: Path, data: bytes) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
