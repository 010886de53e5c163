"""The items and texts of training sets: decoded when a batch needs them, encoded once where nothing there learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.byte_files import TemporaryFolder
from taskmerge.embedders.content import identity_of, item_key
from taskmerge.embedders.encodings import Encodings, Keeping, text_key
from taskmerge.embedders.interface import Embedder, Features
from taskmerge.embedders.items import CHECKED
from taskmerge.embedders.pairs import Pairs, spelling
from taskmerge.embedders.prompts import ROLES, Role
from taskmerge.errors import UsageError
from taskmerge.metrics.retrieval import collapse
from taskmerge.training.components import on_the_way
from taskmerge.words.modalities import TEXT
from taskmerge.words.precisions import parse_precision
from taskmerge.words.progress import tell, work

HELD_BYTES = 1 << 30
"""A bank of more is mapped from the disk, not held."""
_TEXTS = 128
_SHOWN = 10


@dataclass(frozen=True)
class Bank:
    """Every distinct text of some sets in its role, embedded.

    rows: (texts, width) float32 of length 1.  labels: set -> row of each pair's text, then of its negatives, (pairs,
    1 + negatives) int64.  temporary: keeps the file that rows are mapped from.
    """

    rows: np.ndarray
    labels: Mapping[str, np.ndarray]
    temporary: Any = field(default=None, repr=False)


class TrainingItems:
    """All items of one or more sets of pairs, numbered through.

    sets: {name: Pairs}. A sample of every set is decoded and prepared when this is made, so that bad data is told
    before training starts; the rest is checked when a batch needs it. Prompts that the recipe has for a set's name
    are put before its items and texts. input_noise: on prepared values, while training. keeping: where encodings are
    kept; None: in the user's cache folder. precision: of embeddings that are not trained on (autocast); None: the
    model's own. run: what embeds features, where the model is inside of something else.
    """

    def __init__(
        self,
        embedder: Embedder,
        sets: Mapping[str, Pairs],
        input_noise: float = 0.0,
        keeping: Keeping | None = None,
        precision: str | None = None,
    ) -> None:
        self.embedder = embedder
        self.precision = parse_precision(precision)
        self.sets = dict(sets)
        self.input_noise = input_noise
        self.keeping = keeping or Keeping()
        self.prepared = embedder.prepared_items()
        self.prompted = {name: embedder.prompted(None, task=name) for name in self.sets}
        self.run: Callable[[Features], Tensor] = embedder.embed
        self._texts: Encodings | None = None
        self._numbers: dict[str, range] = {}
        for name, pairs in self.sets.items():
            self._numbers[name] = self.prepared.add(name, pairs, self.prompted[name])
        if problems := self.prepared.check():
            raise UsageError(problems[:_SHOWN])
        for name, pairs in self.sets.items():
            if len(pairs) > CHECKED:
                looked = f"checked {CHECKED} of {len(pairs):,} items"
                tell(f"{name}: {looked}; the others are checked when they are used")

    def __len__(self) -> int:
        return len(self.prepared)

    def numbers(self, name: str) -> range:
        """Return the numbers of a set's items, in the order of its pairs."""
        return self._numbers[name]

    def encode(self) -> None:
        """Run every item through its frozen encoder at most once from now on; see `PreparedItems.encode`."""
        self.prepared.encode(self.keeping)

    def batch(self, numbers: Sequence[int], training: bool = False) -> Features:
        """Features of these items; with noise on prepared values when training."""
        return self.prepared.features(numbers, noise=self.input_noise if training else 0.0)

    def columns(self, numbers: Sequence[int], texts: bool) -> dict[str, Features]:
        """Column -> features, of items of one set: "item", and if `texts`: "text", "negative_1", … .

        Prepared values have their noise.
        """
        found = {"item": self.batch(numbers, training=True)}
        if texts:
            name, rows = self.rows(numbers)
            pairs, embedder = self.sets[name], self.prompted[name]
            written = {"text": pairs.texts}
            written |= {f"negative_{place}": column for place, column in enumerate(pairs.negatives, start=1)}
            for column, values in written.items():
                found[column] = embedder.prepare([values[row] for row in rows], TEXT, pairs.roles[1])
        return found

    def rows(self, numbers: Sequence[int]) -> tuple[str, list[int]]:
        """Return the set of the items of one batch, and their rows in it."""
        name = next(name for name, range_ in self._numbers.items() if numbers[0] in range_)
        first = self._numbers[name].start
        return name, [number - first for number in numbers]

    def embed(self, numbers: Sequence[int], size: int = 64) -> Tensor:
        """Return embeddings (items, width) float32 on the CPU, of length 1, without noise or dropout."""
        return self._embed(self.batch(numbers[start : start + size]) for start in range(0, len(numbers), size))

    def embed_texts(self, texts: Sequence[str], role: Role, size: int = _TEXTS, name: str | None = None) -> Tensor:
        """Return embeddings (texts, width) float32 on the CPU, of length 1.

        role: what the texts are.  name: of the set whose prompts are put before them; None: the model's.
        """
        embedder = self.embedder if name is None else self.prompted[name]
        starts = range(0, len(texts), size)
        return self._embed(embedder.prepare(texts[start : start + size], TEXT, role) for start in starts)

    def freeze_texts(self) -> None:
        """Run every text of a bank once from now on: no module that texts pass through is trained."""
        embedder = self.embedder
        parts = components_of(embedder.state_dict, embedder.components)
        tensors = {name: tensor for name, tensor in embedder.state_dict.values.items() if on_the_way(parts[name], TEXT)}
        seen = [item_key(_plain(embedder.prepare(["a word, a dog."], TEXT, role)), TEXT).hex() for role in ROLES]
        said = [embedder.settings(), seen, *([str(self.precision)] if self.precision is not None else [])]
        identity = identity_of(tensors, [*embedder.module.modules(), embedder], said)
        self._texts = self.keeping.open(identity, torch.float32)

    def bank(self) -> Bank:
        """Return every distinct text of all sets in its role and behind its prompts, negatives too.

        Which texts are one is what `Pairs.distinct` says.
        """
        keys: list[tuple[str, Role, str]] = []
        for name, pairs in self.sets.items():
            prompt = self.prompted[name].prompt(pairs.roles[1], TEXT) or ""
            for column in (pairs.texts, *pairs.negatives):
                keys += [(prompt, pairs.roles[1], spelling(text)) for text in column]
        distinct, places = collapse(keys)
        del keys
        count = len(distinct)
        del distinct
        first = np.zeros(count, dtype=np.int64)
        first[places[::-1]] = np.arange(len(places))[::-1]  # where each is written first
        labels, start = {}, 0
        for name, pairs in self.sets.items():
            columns = 1 + len(pairs.negatives)
            part = places[start : start + columns * len(pairs)]
            labels[name] = part.reshape(columns, len(pairs)).T.copy()
            start += columns * len(pairs)
        return self._embedded(first, labels)

    def _embedded(self, first: np.ndarray, labels: Mapping[str, np.ndarray]) -> Bank:
        rows: np.ndarray | None = None
        temporary = None
        with work("embedding texts", len(first), "texts") as told:
            for block, texts, role, name in self._blocks(first):
                embedded = self._known(texts, role, name)
                if rows is None:
                    rows, temporary = _matrix(len(first), embedded.shape[1])
                rows[block] = embedded.numpy()
                told.advance(len(block))
        assert rows is not None
        return Bank(rows, labels, temporary)

    def _blocks(self, first: np.ndarray) -> Iterable[tuple[np.ndarray, list[str], Role, str]]:
        """(rows of the bank, their texts, role, set) of each block; every block is of one set."""
        start = 0
        order = np.argsort(first, kind="stable")
        for name, pairs in self.sets.items():
            for column in (pairs.texts, *pairs.negatives):
                low, high = np.searchsorted(first[order], [start, start + len(pairs)])
                own = order[low:high]
                for at in range(0, len(own), _TEXTS * 8):
                    block = own[at : at + _TEXTS * 8]
                    yield block, [column[int(place) - start] for place in first[block]], pairs.roles[1], name
                start += len(pairs)

    def _known(self, texts: list[str], role: Role, name: str) -> Tensor:
        """Embeddings of texts, kept ones from where they are kept."""
        if self._texts is None:
            return self.embed_texts(texts, role, name=name)
        prompt = f"{role}:{self.prompted[name].prompt(role, TEXT)}"
        keys = [text_key(prompt, text) for text in texts]
        found = self._texts.find(keys)
        missing = [place for place, row in enumerate(found) if row is None]
        if missing:
            made = self.embed_texts([texts[place] for place in missing], role, name=name)
            self._texts.add([keys[place] for place in missing], [row[None] for row in made])
            for place, row in zip(missing, made, strict=True):
                found[place] = row[None]
        return torch.cat([row for row in found if row is not None])

    def _embed(self, batches: Iterable[Features]) -> Tensor:
        with self.embedder.inference():
            rows = [self._run(features).float().cpu() for features in batches]
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)

    def _run(self, features: Features) -> Tensor:
        if self.precision is None or self.precision == self.embedder.dtype:
            return self.run(features)
        with torch.autocast(self.embedder.device.type, self.precision):
            return self.run(features)


def _plain(features: Features) -> dict[str, Any]:
    """Features as plain data."""
    return {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in features.items()}


def _matrix(rows: int, width: int) -> tuple[np.ndarray, Any]:
    """(rows, width) float32 in memory, or in a file that is mapped, with the object that keeps the file."""
    if rows * width * 4 <= HELD_BYTES:
        return np.empty((rows, width), np.float32), None
    temporary = TemporaryFolder("bank")
    return np.memmap(temporary.path / "bank", np.float32, "w+", shape=(rows, width)), temporary
