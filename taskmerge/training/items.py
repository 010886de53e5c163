"""The items of a training set: prepared once, encoded once where the encoder is frozen, handed out as batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskmerge.embedders.loading import embedder_of
from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import Problem, UsageError

ENCODE_BATCH = 32


class TrainingItems:
    """All items of one or more sets of pairs, numbered through.

    sets: {name: Pairs}.  Every item is decoded and prepared when this is made, so that bad data is told before
    training starts; `encode` replaces prepared items by their encoder's output.  For models that own their towers
    items stay as they came and the model's own preprocessing does the work.
    """

    def __init__(self, model: Any, sets: Mapping[str, Pairs], input_noise: float = 0.0) -> None:
        self.model = model
        self.embedder = embedder_of(model)
        self.sets = dict(sets)
        self.input_noise = input_noise
        self.encoded = False
        self.modalities: list[str] = []
        self.rows: list[Any] = []
        self.first: dict[str, int] = {}
        problems: list[Problem] = []
        for name, pairs in self.sets.items():
            self.first[name] = len(self.rows)
            self.modalities += [pairs.modality] * len(pairs)
            self.rows += self._prepared(name, pairs, problems)
        if problems:
            raise UsageError(problems[:10])

    def _prepared(self, name: str, pairs: Pairs, problems: list[Problem]) -> list[Any]:
        rows: list[Any] = []
        for number in range(len(pairs)):
            try:
                item = pairs.load(number, number + 1)[0]
                if self.embedder is not None and pairs.modality != "text":
                    item = self.embedder.prepare(item, pairs.modality)
                rows.append(item)
            except UsageError as error:
                rows.append(None)
                problems += [Problem(found.what, f"{name}, pair {number + 1} of {pairs.source}", found.next_move)
                             for found in error.problems]  # fmt: skip
        return rows

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self, name: str) -> range:
        """The numbers of a set's items, in the order of its pairs."""
        return range(self.first[name], self.first[name] + len(self.sets[name]))

    @torch.no_grad()
    def encode(self) -> None:
        """Run every item through its frozen encoder, once. Only for grafted embedders."""
        if self.embedder is None or self.encoded:
            return
        device = self.model.device
        for start in range(0, len(self.rows), ENCODE_BATCH):
            numbers = [
                n for n in range(start, min(start + ENCODE_BATCH, len(self.rows))) if self.modalities[n] != "text"
            ]
            by_tower: dict[str, list[int]] = {}
            for number in numbers:
                by_tower.setdefault(self.embedder.tower_of[self.modalities[number]], []).append(number)
            for tower, members in by_tower.items():
                lengths = torch.tensor([len(self.rows[number]) for number in members], device=device)
                values = torch.nn.utils.rnn.pad_sequence([self.rows[number] for number in members], batch_first=True)
                output = self.embedder.encode_media(tower, values.to(device), lengths).cpu()
                for number, length, row in zip(members, lengths.tolist(), output, strict=True):
                    self.rows[number] = row[: self.embedder.encoder(tower).token_count(length)].clone()
        self.encoded = True

    def batch(self, numbers: Sequence[int], training: bool = False, beside: Sequence[str] = ()) -> dict[str, Any]:
        """Features of these items, then of the texts `beside`; with noise on prepared values when training."""
        rows = [self.rows[number] for number in numbers]
        if self.embedder is None:
            return self.model.preprocess([*rows, *beside])
        texts = [row if isinstance(row, str) else "" for row in rows]
        media = [
            {}
            if isinstance(row, str)
            else {self.embedder.tower_of[self.modalities[number]]: self._noisy(row, training)}
            for number, row in zip(numbers, rows, strict=True)
        ]
        return self.embedder.assemble([*texts, *beside], [*media, *({} for _ in beside)], encoded=self.encoded)

    def _noisy(self, row: Tensor, training: bool) -> Tensor:
        return row + self.input_noise * torch.randn_like(row) if training and self.input_noise else row

    def collate(self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None) -> dict[str, Any]:
        """What the trainer's collator calls: item numbers or texts to features."""
        if isinstance(inputs[0], str):
            return self.model.preprocess(list(inputs), prompt=prompt)
        return self.batch([int(number) for number in inputs], training=True)

    @torch.no_grad()
    def embed(self, numbers: Sequence[int], size: int = 64) -> Tensor:
        """Embeddings (items, width) float32 on the CPU, without noise or dropout."""
        return self._embed(self.batch(numbers[start : start + size]) for start in range(0, len(numbers), size))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], size: int = 128) -> Tensor:
        """Embeddings (texts, width) float32 on the CPU."""
        texts = list(texts)
        return self._embed(self.model.preprocess(texts[start : start + size]) for start in range(0, len(texts), size))

    def _embed(self, batches: Iterator[dict[str, Any]]) -> Tensor:
        from sentence_transformers.util import batch_to_device

        was_training = self.model.training
        self.model.eval()
        rows = [
            self.model(batch_to_device(batch, self.model.device))["sentence_embedding"].float().cpu()
            for batch in batches
        ]
        self.model.train(was_training)
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)
