"""Token sequences with room for media vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskmerge.embedders.inputs import BackboneInputs, token_id, token_ids
from taskmerge.embedders.towers import TowerConfig
from taskmerge.errors import UsageError
from taskmerge.words.modalities import TEXT


class SequenceBuilder(BackboneInputs):
    """Inputs of a text model without a template of its own.

    Lays out ``[special] prompt [start] media … [end] text [special]`` as the tokenizer's special tokens say.

    Only text is ever cut to fit `max_seq_length` tokens; media that does not fit is an error.
    """

    def __init__(self, tokenizer: Any, towers: Mapping[str, TowerConfig], max_seq_length: int) -> None:
        self.tokenizer = tokenizer
        self._longest = max_seq_length
        self.before, self.after = _special_tokens_around(tokenizer)
        self.placeholders = token_ids(tokenizer, towers)
        self.around = {
            name: tuple(
                [] if token is None else [token_id(tokenizer, token, name)] for token in (tower.start, tower.end)
            )
            for name, tower in towers.items()
        }

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the backbone takes by itself: text."""
        return (TEXT,)

    @property
    def max_seq_length(self) -> int:
        """The maximum number of tokens of one item."""
        return self._longest

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self._longest = value

    def build(
        self,
        items: Sequence[Mapping[str, Any]],
        counts: Sequence[Mapping[str, int]],
        prompt: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Make the features of one batch, see `BackboneInputs.build`."""
        prompt_ids = self._ids_of(prompt) if prompt else []
        texts = [item.get(TEXT, "") for item in items]
        rows = [self._row(text, count, prompt_ids) for text, count in zip(texts, counts, strict=True)]
        longest = max(len(ids) for ids, _ in rows)
        padding_id = self.tokenizer.pad_token_id
        features = {
            "input_ids": torch.full((len(rows), longest), 0 if padding_id is None else padding_id, dtype=torch.long),
            "attention_mask": torch.zeros(len(rows), longest, dtype=torch.long),
        }
        for tower in {tower for count in counts for tower in count}:
            features[f"{tower}_mask"] = torch.zeros(len(rows), longest, dtype=torch.bool)
        left = getattr(self.tokenizer, "padding_side", "right") == "left"
        for index, (ids, spans) in enumerate(rows):
            shift = longest - len(ids) if left else 0
            features["input_ids"][index, shift : shift + len(ids)] = torch.tensor(ids)
            features["attention_mask"][index, shift : shift + len(ids)] = 1
            for tower, (first, count) in spans.items():
                features[f"{tower}_mask"][index, shift + first : shift + first + count] = True
        return features

    def _row(
        self, text: str, counts: Mapping[str, int], prompt_ids: list[int]
    ) -> tuple[list[int], dict[str, tuple[int, int]]]:
        ids = [*self.before, *prompt_ids]
        spans = {}
        for tower, count in counts.items():
            start, end = self.around[tower]
            ids += start
            spans[tower] = (len(ids), count)
            ids += [self.placeholders[tower]] * count + end
        room = self.max_seq_length - len(ids) - len(self.after)
        if room < 0:
            raise UsageError(
                f"an item of {sum(counts.values())} vectors does not fit into {self.max_seq_length} tokens",
                next_move="shorten the items, give the encoder a stride, or a backbone with a longer context",
            )
        return ids + self._ids_of(text)[:room] + self.after, spans

    def run(self, backbone: Any, features: Mapping[str, Any], hidden_states: bool = False) -> tuple[Tensor, Any]:
        """Run the backbone on features, see `BackboneInputs.run`."""
        output = backbone(
            input_ids=features["input_ids"],
            attention_mask=features["attention_mask"],
            output_hidden_states=hidden_states,
        )
        return output.last_hidden_state, output.hidden_states if hidden_states else None

    def config(self) -> None:
        """Return None: the tokenizer is sufficient."""
        return None

    def save(self, folder: str) -> None:
        """Write the tokenizer."""
        self.tokenizer.save_pretrained(folder)

    def _ids_of(self, text: str | None) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
