"""The step between items and the backbone of a grafted embedder: token ids with room for projected vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from taskmerge.embedders.towers import TowerConfig
from taskmerge.errors import UsageError

MESSAGE = "message"
"""What sentence-transformers calls a list of chat messages."""


class BackboneInputs(ABC):
    """The layout of items as features of the backbone, with placeholder tokens for an encoder's vectors.

    Attributes:
        tokenizer: the backbone's.
        placeholders: tower -> id of the token that its vectors stand in for.
    """

    tokenizer: Any
    placeholders: Mapping[str, int]

    @property
    @abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the backbone takes by itself: "text", and those of its own encoders."""

    @property
    def takes_messages(self) -> bool:
        """True if the backbone takes chat messages."""
        return False

    @property
    @abstractmethod
    def max_seq_length(self) -> int | None:
        """The maximum number of tokens of one item."""

    @max_seq_length.setter
    @abstractmethod
    def max_seq_length(self, value: int) -> None: ...

    @abstractmethod
    def build(
        self,
        items: Sequence[Mapping[str, Any]],
        counts: Sequence[Mapping[str, int]],
        prompt: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Features of one batch.

        Args:
            items: {modality: item} of what the backbone takes by itself.
            counts: for each item, tower -> number of its vectors. They come before the item's text.
            prompt: put before every item.
            options: other arguments that sentence-transformers passes to a module's `preprocess`.

        Returns:
            input_ids, attention_mask (batch, sequence); {tower}_mask (batch, sequence) bool for each tower of the
            batch; and what the backbone's own modalities need.

        Raises:
            UsageError: for an item that does not fit or cannot be used.
        """

    @abstractmethod
    def run(self, backbone: Any, features: Mapping[str, Any], hidden_states: bool = False) -> tuple[Tensor, Any]:
        """Run the backbone on features: token embeddings (batch, sequence, width), and its hidden states if wanted."""

    @abstractmethod
    def config(self) -> dict[str, Any] | None:
        """Return the settings in config.json from which this is made again; None for a `SequenceBuilder`."""

    @abstractmethod
    def save(self, folder: str) -> None:
        """Write the tokenizer, or the complete processor."""


def token_ids(tokenizer: Any, towers: Mapping[str, TowerConfig]) -> dict[str, int]:
    """Id of each tower's placeholder. Raises UsageError for a token that the tokenizer lacks."""
    return {name: token_id(tokenizer, tower.placeholder, name) for name, tower in towers.items()}


def token_id(tokenizer: Any, token: str, tower: str) -> int:
    """Id of a token. Raises UsageError when there is none."""
    index = tokenizer.get_vocab().get(token)
    if index is None:
        raise UsageError(
            f"tower {tower!r}: the tokenizer has no token {token!r}",
            next_move="use the tokenizer that was saved with the graft",
        )
    return int(index)


def messages_without(
    messages: Sequence[Mapping[str, Any]], tower_of: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Chat messages without what towers take.

    Args:
        messages: of one conversation.
        tower_of: modality -> tower.

    Returns:
        {modality: item} of what was taken out, and the messages, where {"type": "tower", "tower": name} stands for it.

    Raises:
        UsageError: for two items of one tower.
    """
    grafted: dict[str, Any] = {}
    kept = []
    for message in messages:
        content: Any = message.get("content")
        if not isinstance(content, str):
            parts = []
            for part in content or ():
                kind = part.get("type")
                if kind in tower_of:
                    if any(tower_of[known] == tower_of[kind] for known in grafted):
                        raise UsageError(
                            f"two items for {tower_of[kind]!r} in one conversation", next_move="keep one of them"
                        )
                    grafted[kind] = part[kind]
                    part = {"type": "tower", "tower": tower_of[kind]}
                parts.append(part)
            message = {**message, "content": parts}
        kept.append(dict(message))
    return grafted, kept
