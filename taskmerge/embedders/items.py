"""Items of sets of pairs, decoded when a batch needs them; encoded once where the encoder does not learn."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.embedders.content import identity_of, item_key
from taskmerge.embedders.encodings import Encodings, Keeping
from taskmerge.embedders.pairs import Pairs
from taskmerge.embedders.prompts import Role
from taskmerge.errors import Problem, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from taskmerge.embedders.embedder import OmniEmbedder

Prepare = Callable[[Sequence[Any], str | None, Role | None], dict[str, Any]]
"""`Embedder.prepare`."""
HELD_BYTES = 512 << 20
"""Prepared items that are held in memory, of one store: small sets are prepared once."""
CHECKED = 200
"""Items of a set that are looked at before training."""
_THREADS = 8


@dataclass(frozen=True)
class _Set:
    """name: for messages.  first: number of its first item.  prepare: behind its own prompts."""

    name: str
    pairs: Pairs
    first: int
    prepare: Prepare
    prompt: Callable[[Role | None, str | None], str | None]
    role: Role


class PreparedItems:
    """Items of one embedder, numbered through its sets in the order in which they were added.

    They are decoded by several threads when a batch is made: the libraries that decode let go of Python meanwhile. As
    many as fit into `HELD_BYTES` are held. The model's own preparation does its work when the batch is made.
    """

    def __init__(self, threads: int | None = None) -> None:
        """threads: that decode; None: one a core, up to eight."""
        self.sets: list[_Set] = []
        self._firsts: list[int] = []
        self._count = 0
        self._held: dict[int, Any] = {}
        self._room = HELD_BYTES
        self._threads = threads or min(_THREADS, os.cpu_count() or 1)
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, name: str, pairs: Pairs, embedder: Any, role: Role | None = None) -> range:
        """Add a set; return the numbers of its items.

        embedder: with the prompts of the set.  role: what items are embedded as; None: as in training.
        """
        first = self._count
        self.sets.append(_Set(name, pairs, first, embedder.prepare, embedder.prompt, role or pairs.roles[0]))
        self._firsts.append(first)
        self._count += len(pairs)
        return range(first, self._count)

    def check(self, most: int = CHECKED) -> list[Problem]:
        """Return the problems of items, `most` of each set at random: the others are checked when they are used."""
        problems: list[Problem] = []
        for part in self.sets:
            for row in part.pairs.sample(most):
                try:
                    self._get([part.first + row])
                except UsageError as error:
                    problems += error.problems
        return problems

    def encode(self, keeping: Keeping | None = None) -> None:
        """Run items through their frozen encoder once from now on, if the embedder can continue from its outputs."""

    def encoders(self) -> list[Any]:
        """Return the modules that run separately when a batch is made."""
        return []

    def features(self, numbers: Sequence[int], texts: Sequence[str] = (), noise: float = 0.0) -> dict[str, Any]:
        """Return one batch: these items, then these texts, all in the items' role.

        noise: standard deviation of Gaussian noise on prepared values; where nothing is prepared there is none.
        Raises UsageError for an item that cannot be used, naming its place.
        """
        modality = self._modality(numbers, texts)
        rows = [*self._get(numbers), *texts]
        return self._prompted(numbers).prepare(rows, modality, self._role(numbers))

    def _get(self, numbers: Sequence[int]) -> list[Any]:
        """Decoded and prepared items: those held, and the others made now."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self._held]
        if len(missing) > 1 and self._threads > 1:
            self._pool = self._pool or ThreadPoolExecutor(self._threads, "taskmerge-items")
            made = dict(zip(missing, self._pool.map(self._make, missing), strict=True))
        else:
            made = {number: self._make(number) for number in missing}
        found = [self._held[number] if number in self._held else made[number] for number in numbers]
        for number, value in made.items():
            size = _size(value)
            if size <= self._room:
                self._room -= size
                self._held[number] = value
        return found

    def _make(self, number: int) -> Any:
        part = self._set(number)
        row = number - part.first
        try:
            return self._prepared(part.pairs.load(row, row + 1)[0], part.pairs.modality)
        except UsageError as error:
            place = f"{part.name}, pair {row + 1} of {part.pairs.source}"
            raise UsageError([Problem(told.what, place, told.next_move) for told in error.problems]) from None

    def _prepared(self, item: Any, modality: str) -> Any:
        return item

    def _set(self, number: int) -> _Set:
        return self.sets[bisect_right(self._firsts, number) - 1]

    def _prompted(self, numbers: Sequence[int]) -> _Set:
        """The set whose prompts are put before these items."""
        return self._set(numbers[0])

    def _modality(self, numbers: Sequence[int], texts: Sequence[str]) -> str | None:
        """That of all of them, None for a mixed batch."""
        modalities = {self._set(number).pairs.modality for number in numbers} | ({"text"} if texts else set())
        return modalities.pop() if len(modalities) == 1 else None

    def _role(self, numbers: Sequence[int]) -> Role | None:
        roles = {self._set(number).role for number in numbers}
        if len(roles) > 1:
            raise UsageError(
                "queries and documents in one batch of items",
                next_move="give queries and documents in separate batches",
            )
        return roles.pop() if roles else None


class GraftedItems(PreparedItems):
    """Items of a grafted embedder: what its towers take is prepared beforehand, and may be encoded beforehand."""

    def __init__(self, graft: OmniEmbedder, threads: int | None = None) -> None:
        super().__init__(threads)
        self.graft = graft
        self._encodings: dict[str, Encodings] | None = None

    @property
    def encoded(self) -> bool:
        """True if batches contain encoder outputs."""
        return self._encodings is not None

    def encode(self, keeping: Keeping | None = None) -> None:
        """Store the outputs of frozen encoders from now on. keeping: folder and size limit."""
        if self._encodings is not None:
            return
        keeping = keeping or Keeping()
        self._encodings = {}
        for tower in dict.fromkeys(self.graft.tower_of[part.pairs.modality] for part in self.sets if self._own(part)):
            encoder = self.graft.encoder(tower)
            like = self.graft.projector(tower).norm.weight
            identity = identity_of(encoder.state_dict(), encoder.modules(), [encoder.kind, encoder.options])
            self._encodings[tower] = keeping.open(identity, like.dtype)

    def encoders(self) -> list[Any]:
        """Return the encoders that run separately when a batch is made."""
        return [self.graft.encoder(tower) for tower in self._encodings or ()]

    def _own(self, part: _Set) -> bool:
        return part.pairs.modality in self.graft.tower_of

    def _prepared(self, item: Any, modality: str) -> Any:
        own = modality in self.graft.inputs.modalities
        return item if own else self.graft.prepare(item, modality)

    def features(self, numbers: Sequence[int], texts: Sequence[str] = (), noise: float = 0.0) -> dict[str, Any]:
        """Make one batch of the items with these numbers, then of the texts; see `PreparedItems.features`."""
        own: list[Any] = []
        media: list[dict[str, Tensor]] = []
        for number, row in zip(numbers, self._rows(numbers), strict=True):
            modality = self._set(number).pairs.modality
            grafted = modality in self.graft.tower_of
            own.append({} if grafted else {modality: row})
            media.append({self.graft.tower_of[modality]: _noisy(row, noise)} if grafted else {})
        media += [{} for _ in texts]
        prompt = self._prompted(numbers).prompt(self._role(numbers), self._modality(numbers, texts))
        return self.graft.assemble([*own, *texts], media, prompt, encoded=self.encoded)

    def _rows(self, numbers: Sequence[int]) -> list[Any]:
        """The input for each item: its encoding, or its prepared form."""
        if self._encodings is None:
            return self._get(numbers)
        found: dict[int, Any] = {}
        by_tower: dict[str | None, list[int]] = {}
        for number in dict.fromkeys(numbers):
            by_tower.setdefault(self.graft.tower_of.get(self._set(number).pairs.modality), []).append(number)
        for tower, members in by_tower.items():
            rows = self._get(members) if tower is None else self._encoded(tower, members)
            found |= dict(zip(members, rows, strict=True))
        return [found[number] for number in numbers]

    def _encoded(self, tower: str, members: Sequence[int]) -> list[Tensor]:
        assert self._encodings is not None
        kept = self._encodings[tower]
        keys = [self._key(number) for number in members]
        found = kept.find(keys)
        missing = [place for place, row in enumerate(found) if row is None]
        if missing:
            made = self._encode(tower, [members[place] for place in missing])
            kept.add([keys[place] for place in missing], made)
            for place, row in zip(missing, made, strict=True):
                found[place] = row
        return [row for row in found if row is not None]

    def _key(self, number: int) -> bytes:
        part = self._set(number)
        return item_key(part.pairs.items[number - part.first], part.pairs.modality)

    def _encode(self, tower: str, members: Sequence[int]) -> list[Tensor]:
        import torch

        rows = self._get(members)
        lengths = torch.tensor([len(row) for row in rows])
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        like = self.graft.projector(tower).norm.weight
        encoder = self.graft.encoder(tower)
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad():
            output = self.graft.encode_media(tower, values.to(like), lengths.to(like.device)).cpu()
        encoder.train(was_training)
        counts = [encoder.token_count(length) for length in lengths.tolist()]
        return [row[:count].clone() for row, count in zip(output, counts, strict=True)]


def _noisy(row: Tensor, noise: float) -> Tensor:
    import torch

    return row + noise * torch.randn_like(row) if noise else row


def _size(value: Any) -> int:
    """Bytes of a prepared item, about."""
    if isinstance(value, str):
        return len(value) + 64
    if isinstance(value, dict):
        return sum(map(_size, value.values())) + 256
    if isinstance(value, np.ndarray) or hasattr(value, "nbytes"):
        return int(value.nbytes) + 128
    if hasattr(value, "width") and hasattr(value, "height"):
        return int(value.width) * int(value.height) * 4 + 256
    return 64
