"""The frozen Whisper encoder as the benchmark grafts it: its window cut, its tokens as many as the clip is long, its
outputs kept on disk, since every stage of every seed hears the same recordings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskmerge.embedders.encoders import register_encoder
from taskmerge.embedders.encoders.huggingface import HuggingFaceEncoder
from taskmerge.embedders.media import load_audio

FLOOR = 2.0
"""Whisper's log-mel never lies further below the clip's loudest value: what silence is."""
DOWN = 2
"""Frames of log-mel a position of the encoder."""


@register_encoder("whisper_cut")
class CutWhisper(HuggingFaceEncoder):
    """Whisper's encoder over a cut window; options as for `HuggingFaceEncoder`.

    An item is its own frames of log-mel, at most the window; `forward` adds the silence behind it and gives back the
    vectors that stand on the item. `outputs` is a folder where these are kept by the content of the frames, or None.
    """

    outputs: Path | None = None
    computed: int = 0
    _prepared: dict[bytes, Tensor] = {}  # noqa: RUF012  (shared by all models of a run: they hear the same clips)

    def prepare(self, item: Any, modality: str) -> Tensor:
        wave = load_audio(item, int(self.preprocessor.sampling_rate))
        key = hashlib.sha256(wave.tobytes()).digest()
        if key not in self._prepared:
            step = DOWN * self.stride
            frames = super().prepare(wave, modality)
            own = len(wave) // int(self.preprocessor.hop_length)
            self._prepared[key] = frames[: min(len(frames), -(-own // step) * step)].clone()
        return self._prepared[key]

    def token_count(self, length: int) -> int:
        return -(-length // (DOWN * self.stride))

    @property
    def window(self) -> int:
        """Frames."""
        return DOWN * int(self.model.config.max_source_positions)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """values: (items, longest, mels); lengths: (items,) -> (items, tokens, width)."""
        found: list[Tensor | None] = [self._kept(row[:length]) for row, length in zip(values, lengths, strict=True)]
        missing = [number for number, row in enumerate(found) if row is None]
        if missing:
            type(self).computed += len(missing)
            heard = self._run(torch.stack([self._with_silence(values[n][: lengths[n]]) for n in missing]))
            for number, states in zip(missing, heard, strict=True):
                own = states[: self.token_count(int(lengths[number]))]
                self._keep(values[number][: lengths[number]], own)
                found[number] = own
        rows = [row for row in found if row is not None]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(values.device)

    def _with_silence(self, frames: Tensor) -> Tensor:
        silence = (frames.max() - FLOOR).expand(self.window - len(frames), frames.shape[1])
        return torch.cat([frames, silence])

    def _place(self, frames: Tensor) -> Path | None:
        if self.outputs is None:
            return None
        window = f"{self.window}:{self.stride}:".encode()
        name = hashlib.sha256(window + frames.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return self.outputs / name[:2] / f"{name}.npy"

    def _kept(self, frames: Tensor) -> Tensor | None:
        place = self._place(frames)
        return torch.from_numpy(np.load(place)) if place is not None and place.is_file() else None

    def _keep(self, frames: Tensor, output: Tensor) -> None:
        place = self._place(frames)
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch = place.with_suffix(".partial.npy")
            np.save(scratch, output.detach().cpu().numpy())
            scratch.replace(place)
