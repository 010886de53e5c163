"""A backbone's own preparation of items: its processor, chat template, positions and eyes.

sentence-transformers' `Transformer` module does the work, so that a grafted vision-language model reads texts, pictures
and films exactly as the model did before. What a graft adds is written into the text, as placeholder tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from taskmerge.embedders.inputs import MESSAGE, BackboneInputs, token_ids
from taskmerge.embedders.media import load_frames
from taskmerge.embedders.opening import quiet
from taskmerge.embedders.processors import without_torchvision
from taskmerge.embedders.towers import TowerConfig
from taskmerge.errors import UsageError, first_line

OUTPUT = "token_embeddings"
_PROBLEMS = (ValueError, TypeError, OSError, ImportError)  # what processors raise for items that do not fit them


class _Around(Transformer):
    """A `Transformer` module around a model that is already there."""

    def __init__(self, backbone: Any, folder: str, **settings: Any) -> None:
        object.__setattr__(self, "_given", (backbone,))  # no part of it yet: torch has not set the module up
        super().__init__(folder, **settings)

    def _load_config(self, *arguments: Any, **options: Any) -> Any:
        return self._given[0].config, False

    def _load_model(self, *arguments: Any, **options: Any) -> Any:
        return self._given[0]


class OwnInputs(BackboneInputs):
    """Inputs as the backbone's own `Transformer` module makes them."""

    def __init__(self, module: Transformer, towers: Mapping[str, TowerConfig]) -> None:
        self.module = module
        self.module.unpad_inputs = False  # masks and lengths speak of (batch, sequence)
        self.towers = dict(towers)
        self.placeholders = token_ids(self.tokenizer, towers)

    @classmethod
    def load(
        cls, backbone: Any, folder: str | Path, settings: Mapping[str, Any], towers: Mapping[str, TowerConfig]
    ) -> OwnInputs:
        """Around a backbone that is already there.

        Args:
            backbone: the transformers model.
            folder: holds its processor.
            settings: what `config` gave.
            towers: of the grafted embedder.
        """
        own = dict(settings)
        own["modality_config"] = {
            tuple(key.split("+")) if "+" in key else key: value for key, value in own["modality_config"].items()
        }
        with without_torchvision(), quiet():
            return cls(_Around(backbone, str(folder), **own), towers)

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The tokenizer of the backbone's own module."""
        return self.module.tokenizer

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the backbone takes by itself."""
        return tuple(name for name in self.module.modalities if isinstance(name, str) and name != MESSAGE)

    @property
    def takes_messages(self) -> bool:
        """True if the backbone takes chat messages."""
        return MESSAGE in self.module.modalities

    @property
    def max_seq_length(self) -> int | None:
        """The maximum number of tokens of one item; None without a limit."""
        return self.module.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.module.max_seq_length = value

    def build(
        self,
        items: Sequence[Mapping[str, Any]],
        counts: Sequence[Mapping[str, int]],
        prompt: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Make the features of one batch with the backbone's own processor, see `BackboneInputs.build`."""
        said = [self._with_placeholders(item, count) for item, count in zip(items, counts, strict=True)]
        try:
            if not self.takes_messages and any(item.keys() - {"text"} for item in said):
                features = self._without_template(said, prompt)
            else:
                features = dict(self.module.preprocess(said, prompt=prompt, **options))
        except UsageError:
            raise
        except _PROBLEMS as error:
            raise UsageError(
                f"the backbone's processor refuses the batch: {first_line(error)}",
                next_move="check the items of this batch, or use smaller batches",
            ) from error
        for tower in {tower for count in counts for tower in count}:
            features[f"{tower}_mask"] = self._mask(tower, features["input_ids"], counts)
        self._check_texts(features["input_ids"], counts)
        return features

    def _with_placeholders(self, item: Mapping[str, Any], counts: Mapping[str, int]) -> Any:
        """The item with placeholder tokens before its text; a list for chat messages."""
        if MESSAGE in item:
            return [self._in_message(part, counts) for part in item[MESSAGE]]
        found = {modality: _as_taken(value, modality) for modality, value in item.items()}
        before = "".join(self._written(tower, count) for tower, count in counts.items())
        if before and "text" in found:
            found["text"] = before + found["text"]
        elif before or not found:
            found = {"text": before, **found}
        return found

    def _in_message(self, message: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
        """A chat message in which parts {"type": "tower", "tower": name} became placeholders."""
        if isinstance(message["content"], str):
            return dict(message)
        content = [
            {"type": "text", "text": self._written(part["tower"], counts[part["tower"]])}
            if part.get("type") == "tower"
            else part
            for part in message["content"]
        ]
        return {**message, "content": content}

    def _written(self, tower: str, count: int) -> str:
        own = self.towers[tower]
        return f"{own.start or ''}{own.placeholder * count}{own.end or ''}"

    def _mask(self, tower: str, ids: Tensor, counts: Sequence[Mapping[str, int]]) -> Tensor:
        mask = ids == self.placeholders[tower]
        wanted = [count.get(tower, 0) for count in counts]
        for found, count in zip(mask.sum(dim=1).tolist(), wanted, strict=True):
            if found < count:
                raise UsageError(
                    f"an item of {count} vectors does not fit into {self.max_seq_length} tokens",
                    next_move="shorten the items, give the encoder a stride, or a backbone with a longer context",
                )
        return mask

    def _check_texts(self, ids: Tensor, counts: Sequence[Mapping[str, int]]) -> None:
        """Texts must not hold the tokens that vectors replace."""
        for tower, token in self.placeholders.items():
            wanted = torch.tensor([count.get(tower, 0) for count in counts])
            if bool(((ids == token).sum(dim=1) > wanted).any()):
                what = f"a text contains the token {self.towers[tower].placeholder!r}, which stands for {tower}"
                raise UsageError(what, next_move="remove it from the text, or graft with another placeholder")

    def _without_template(self, items: Sequence[Mapping[str, Any]], prompt: str | None) -> dict[str, Any]:
        """A processor without chat template: each item's pictures and videos come before its text."""
        processor: Any = self.module.processor
        marks = {name: self._mark(processor, name) for name in ("image", "video")}
        texts, media = [], {name: [] for name in marks}  # type: ignore[var-annotated]
        for item in items:
            texts.append((prompt or "") + "".join(marks[name] for name in marks if name in item) + item.get("text", ""))
            for name, held in media.items():
                held.append([item[name]] if name in item else [])
        settings: dict[str, Any] = self.module.processing_kwargs  # type: ignore[assignment]
        given = {f"{name}s": held for name, held in media.items() if any(held)}
        features = processor(
            text=texts,
            **given,
            text_kwargs={"padding": True, "truncation": "longest_first", **settings.get("text", {})},
            images_kwargs=settings.get("image", {}),
            videos_kwargs=settings.get("video", {}),
            common_kwargs={"return_tensors": "pt", **settings.get("common", {})},
        )
        counted = {f"num_{key}_per_sample": torch.tensor([len(row) for row in held]) for key, held in given.items()}
        modality = "image" if "images" in given else "video"
        return {**features, **counted, "modality": modality}

    def _mark(self, processor: Any, modality: str) -> str:
        """The placeholder of a picture or video in a processor's text; "" if it takes none."""
        token = getattr(processor, f"{modality}_token", None)
        sides = (getattr(self.module.config, f"vision_{side}_token_id", None) for side in ("start", "end"))
        start, end = ("" if side is None else self.tokenizer.convert_ids_to_tokens(side) for side in sides)
        return f"{start}{token}{end}" if token else ""

    def run(self, backbone: Any, features: Mapping[str, Any], hidden_states: bool = False) -> tuple[Tensor, Any]:
        """Run the backbone on features, see `BackboneInputs.run`."""
        kept: list[Any] = []
        handle = backbone.register_forward_hook(lambda module, inputs, output: kept.append(output.hidden_states))
        own = {name: value for name, value in features.items() if not self._is_a_towers(name)}
        try:
            output = self.module(own, **({"output_hidden_states": True} if hidden_states else {}))
        finally:
            handle.remove()
        return output[OUTPUT], kept[-1] if hidden_states else None

    def _is_a_towers(self, name: str) -> bool:
        tower, _, kind = name.rpartition("_")
        return tower in self.towers and kind in ("mask", "lengths", "values", "encoded", "projected")

    def config(self) -> dict[str, Any]:
        """Return the config of the backbone's own module."""
        return dict(self.module.get_config_dict())

    def save(self, folder: str) -> None:
        """Write the processor."""
        self.module.processor.save_pretrained(folder)


def _as_taken(item: Any, modality: str) -> Any:
    """A video as an array of its frames, which needs no codec; other items unchanged."""
    if modality != "video" or isinstance(item, dict) or (isinstance(item, np.ndarray) and item.dtype == np.uint8):
        return str(item) if isinstance(item, Path) else item
    frames = [np.asarray(frame) for frame in load_frames(item, "RGB")]
    if len({frame.shape for frame in frames}) > 1:
        raise UsageError("the frames of a video have several sizes", next_move="resize them to one size")
    return np.stack(frames)
