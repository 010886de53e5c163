"""Rows of MMEB-V2's own data sets, as its loaders make them, as items for an embedder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from taskmerge.embedders.media import load_frames, load_picture
from taskmerge.embedders.media_files import read_picture
from taskmerge.errors import UsageError

Side = Literal["query", "cand"]
_PLACEHOLDERS = re.compile(r"(<\|image_pad\|>|<\|video_pad\|>|<\|image_\d+\|>|<image>|<video>|<audio>)[ \n]?")
"""What its loaders write where a model's processor is to put the picture; ours does that itself."""


@dataclass(frozen=True)
class Answer:
    """The right answer to one query: `label_name`, `rel_scores` and `cand_names` of its row's `dataset_infos`."""

    labels: tuple[str, ...]
    relevance: tuple[float, ...] | None
    candidates: tuple[str, ...]

    def as_row(self) -> dict[str, Any]:
        """Return a line of NAME_info.jsonl."""
        row: dict[str, Any] = {"cand_names": list(self.candidates), "label_name": list(self.labels)}
        return row if self.relevance is None else {**row, "rel_scores": list(self.relevance)}


def query_items(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, Answer]]:
    """Yield (item, its right answer) for every row of queries.

    Raises:
        UsageError: for a row without query or answer.
    """
    for number, row in enumerate(rows, start=1):
        parts = list(_side(row, "query", number))
        if len(parts) != 1:
            raise UsageError(
                f"row {number} contains {len(parts)} queries",
                next_move="give one query per row, as MMEB-V2's loaders do",
            )
        yield parts[0], _answer(row, number)


def candidate_items(
    rows: Iterable[Mapping[str, Any]], corpus: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """Yield (name, item) for every candidate: of the queries' rows, then of the corpus, each name once."""
    seen: set[str] = set()
    for number, row in enumerate((*rows, *corpus), start=1):
        names = [str(name) for name in (row.get("dataset_infos") or {}).get("cand_names") or ()]
        parts = list(_side(row, "cand", number)) if row.get("cand_text") else []
        if not parts:
            continue
        if len(parts) != len(names):
            raise UsageError(
                f"row {number} contains {len(parts)} candidates and {len(names)} names",
                next_move="correct the row, or get the data again",
            )
        for name, item in zip(names, parts, strict=True):
            if name not in seen:
                seen.add(name)
                yield name, item


def _answer(row: Mapping[str, Any], number: int) -> Answer:
    infos = row.get("dataset_infos") or {}
    labels = infos.get("label_name")
    labels = [labels] if isinstance(labels, str | int) else list(labels or ())
    relevance = infos.get("rel_scores")
    if relevance is not None and len(relevance) != len(labels):
        raise UsageError(
            f"row {number} has {len(labels)} labels and {len(relevance)} rel_scores",
            next_move="correct the row, or get the data again",
        )
    scores = None if relevance is None else tuple(float(score) for score in relevance)
    return Answer(tuple(map(str, labels)), scores, tuple(map(str, infos.get("cand_names") or ())))


def _side(row: Mapping[str, Any], side: Side, number: int) -> Iterator[Any]:
    """The items of one side of a row: a text, a picture, a video, or a text with one of them."""
    texts = row.get(f"{side}_text")
    texts = [texts] if isinstance(texts, str) else list(texts or ())
    key = next((name for name in (f"{side}_image", f"{side}_video") if row.get(name) is not None), None)
    visuals = _visuals(row[key], len(texts)) if key else [None] * len(texts)
    if row.get(f"{side}_audio") is not None:
        raise UsageError(
            f"row {number} contains {side}_audio, which MMEB-V2 does not have", next_move="use mteb's MAEB"
        )
    if len(visuals) != len(texts):
        raise UsageError(
            f"row {number}: {len(texts)} {side}_text and {len(visuals)} {key}",
            next_move="correct the row, or get the data again",
        )
    for text, visual in zip(texts, visuals, strict=True):
        words = _PLACEHOLDERS.sub("", text or "")
        media = _media(visual, number)
        if not media and not words.strip():
            raise UsageError(
                f"row {number}: there is neither text nor picture on the {side} side",
                next_move="correct the row, or get the data again",
            )
        yield words if not media else {**media, "text": words} if words.strip() else next(iter(media.values()))


def _visuals(value: Any, count: int) -> list[Any]:
    """One entry a text. A list of structs may come as a struct of lists, and one struct alone for one text."""
    if not isinstance(value, Mapping):
        return list(value)
    paths = value.get("paths")
    if isinstance(paths, Sequence) and paths and not isinstance(paths[0], str | type(None)):
        return [{key: column[at] for key, column in value.items() if column} for at in range(len(paths))]
    return [value] if count == 1 else [value, *[None] * (count - 1)]


def _media(visual: Any, number: int) -> dict[str, Any]:
    """{"image": picture} of one, {"video": (frames, height, width, 3)} of several, {} of none."""
    if visual is None:
        return {}
    entries: list[Any] = visual if isinstance(visual, list) else [visual]
    if isinstance(visual, Mapping):
        paths = list(visual.get("paths") or ())
        stored = list(visual.get("bytes") or [None] * len(paths))
        entries = [_opened(data) if data is not None else path for data, path in zip(stored, paths, strict=True)]
    entries = [entry for entry in entries if entry is not None and entry != ""]
    if not entries:
        return {}
    try:
        if len(entries) == 1:
            return {"image": load_picture(entries[0], "RGB")}
        frames = load_frames(entries, "RGB")
    except UsageError as error:
        told = error.problems[0]
        raise UsageError(f"row {number}: {told.what}", told.place, told.next_move) from None
    return {"video": np.stack([np.asarray(frame.resize(frames[0].size)) for frame in frames])}


def _opened(data: bytes) -> Any:
    return read_picture(data, "in the data")
