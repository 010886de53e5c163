"""The items of training sets: prepared once, encoded once where the encoder is frozen, handed out as batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from taskmerge.embedders.interface import Embedder, Features
from taskmerge.embedders.pairs import Pairs, spelling
from taskmerge.embedders.prompts import Role
from taskmerge.errors import Problem, UsageError
from taskmerge.metrics.retrieval import collapse


def tagged(role: Role, text: str) -> str:
    """A text that carries its role through a data set and its collator, where a batch is one set's."""
    return f"{role}:{text}"


def untagged(text: str) -> tuple[Role, str]:
    """(role, text) of a tagged text."""
    role, _, rest = text.partition(":")
    return cast("Role", role), rest


class TrainingItems:
    """All items of one or more sets of pairs, numbered through.

    sets: {name: Pairs}.  Every item is decoded and prepared when this is made, so that bad data is told before
    training starts; `encode` replaces prepared items by their encoder's output.  input_noise: on prepared values, while
    training.
    """

    def __init__(self, embedder: Embedder, sets: Mapping[str, Pairs], input_noise: float = 0.0) -> None:
        self.embedder = embedder
        self.sets = dict(sets)
        self.input_noise = input_noise
        self.prepared = embedder.prepared_items()
        self.first: dict[str, int] = {}
        problems: list[Problem] = []
        for name, pairs in self.sets.items():
            self.first[name] = len(self.prepared)
            self._add(name, pairs, problems)
        if problems:
            raise UsageError(problems[:10])

    def _add(self, name: str, pairs: Pairs, problems: list[Problem]) -> None:
        for number in range(len(pairs)):
            try:
                self.prepared.add(pairs.load(number, number + 1)[0], pairs.modality, pairs.roles[0])
            except UsageError as error:
                place = f"{name}, pair {number + 1} of {pairs.source}"
                problems += [Problem(found.what, place, found.next_move) for found in error.problems]

    def __len__(self) -> int:
        return len(self.prepared)

    def numbers(self, name: str) -> range:
        """The numbers of a set's items, in the order of its pairs."""
        return range(self.first[name], self.first[name] + len(self.sets[name]))

    def encode(self) -> None:
        """Run every item through its frozen encoder, once; see `PreparedItems.encode`."""
        self.prepared.encode()

    def batch(self, numbers: Sequence[int], training: bool = False, beside: Sequence[str] = ()) -> Features:
        """Features of these items, then of the texts `beside`; with noise on prepared values when training."""
        return self.prepared.features(numbers, beside, self.input_noise if training else 0.0)

    def collate(self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None) -> Features:
        """What the trainer's collator calls: item numbers, or tagged texts, to features."""
        if isinstance(inputs[0], str):
            texts = [untagged(text) for text in inputs]
            return self.embedder.prepare([text for _, text in texts], "text", texts[0][0])
        return self.batch([int(number) for number in inputs], training=True)

    def embed(self, numbers: Sequence[int], size: int = 64) -> Tensor:
        """Embeddings (items, width) float32 on the CPU, of length 1, without noise or dropout."""
        return self._embed(self.batch(numbers[start : start + size]) for start in range(0, len(numbers), size))

    def embed_texts(self, texts: Sequence[str], role: Role, size: int = 128) -> Tensor:
        """Embeddings (texts, width) float32 on the CPU, of length 1. role: what the texts are."""
        starts = range(0, len(texts), size)
        return self._embed(self.embedder.prepare(texts[start : start + size], "text", role) for start in starts)

    def bank(self) -> tuple[Tensor, dict[str, list[int]]]:
        """Every distinct text of all sets in its role, embedded, (texts, width); set -> row of each of its pairs.

        Which texts are one is what `Pairs.distinct` says.
        """
        sets = self.sets.items()
        written = [(pairs.roles[1], text) for _, pairs in sets for text in pairs.texts]
        _, places = collapse([(role, spelling(text)) for role, text in written])
        first: dict[int, tuple[Role, str]] = {}
        for place, key in zip(places.tolist(), written, strict=True):
            first.setdefault(place, key)
        keys = list(first.values())
        rows: Tensor | None = None
        for role in dict.fromkeys(role for role, _ in keys):
            own = [number for number, (one, _) in enumerate(keys) if one == role]
            embedded = self.embed_texts([keys[number][1] for number in own], role)
            rows = embedded.new_empty(len(keys), embedded.shape[1]) if rows is None else rows
            rows[own] = embedded
        assert rows is not None
        stops = np.cumsum([len(pairs) for _, pairs in sets])[:-1]
        parts = np.split(places, stops)
        return rows, {name: part.tolist() for (name, _), part in zip(sets, parts, strict=True)}

    def _embed(self, batches: Iterable[Features]) -> Tensor:
        with self.embedder.inference():
            rows = [self.embedder.embed(features).float().cpu() for features in batches]
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)
