"""Speech and sound as patches of a log-mel spectrogram."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from taskmerge.embedders.encoders import register_encoder
from taskmerge.embedders.encoders.base import Encoder, PatchTransformer
from taskmerge.embedders.media import load_audio
from taskmerge.errors import UsageError

#: Value of a band without energy after scaling.
SILENCE = (math.log(1e-5) + 6.0) / 4.0


@register_encoder("log_mel")
class LogMelEncoder(Encoder):
    """Log-mel spectrogram cut into patches of `patch_frames` frames, then optional transformer layers.

    sampling_rate: Hz, everything else is resampled to it.  window, hop: samples.  mels: bands between 50 Hz and
    7 kHz.  max_seconds: longer audio is cut, with a warning.  width=0: the patches themselves, no weights.
    """

    modalities = ("audio",)

    def __init__(
        self,
        sampling_rate: int = 16000,
        window: int = 512,
        hop: int = 192,
        mels: int = 64,
        patch_frames: int = 8,
        max_seconds: float = 30.0,
        layers: int = 0,
        width: int = 0,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.options = {
            "sampling_rate": sampling_rate, "window": window, "hop": hop, "mels": mels, "patch_frames": patch_frames,
            "max_seconds": max_seconds, "layers": layers, "width": width, "heads": heads,
        }  # fmt: skip
        if min(sampling_rate, window, hop, mels, patch_frames) <= 0 or max_seconds <= 0:
            raise UsageError(f"log_mel options must be positive: {self.options}", next_move="give numbers above 0")
        self.sampling_rate, self.window, self.hop = sampling_rate, window, hop
        self.mels, self.patch_frames, self.max_seconds = mels, patch_frames, max_seconds
        positions = int(max_seconds * sampling_rate / hop / patch_frames) + 2
        self.stack = PatchTransformer(mels * patch_frames, width, layers, heads, positions)
        self.output_size = self.stack.output_size
        self._bank: Tensor | None = None

    def prepare(self, item: Any, modality: str) -> Tensor:
        """Return a waveform as (patches, mels * patch_frames); see `load_audio` for valid inputs."""
        wave = torch.from_numpy(load_audio(item, self.sampling_rate))
        longest = int(self.max_seconds * self.sampling_rate)
        if len(wave) > longest:
            seconds = len(wave) / self.sampling_rate
            warnings.warn(
                f"audio of {seconds:.1f} s is truncated to {self.max_seconds:.1f} s (max_seconds)", stacklevel=2
            )
            wave = wave[:longest]
        wave = torch.nn.functional.pad(wave, (0, max(0, self.window - len(wave))))
        spectrum = torch.stft(
            wave, self.window, self.hop, window=torch.hann_window(self.window), return_complex=True, pad_mode="constant"
        )
        mel = torch.log(self._mel_bank() @ spectrum.abs().square() + 1e-5)
        frames = rearrange((mel + 6.0) / 4.0, "mel frame -> frame mel")  # about zero mean, unit variance for speech
        missing = -len(frames) % self.patch_frames
        frames = torch.nn.functional.pad(frames, (0, 0, 0, missing), value=SILENCE)
        return rearrange(frames, "(patch frame) mel -> patch (frame mel)", frame=self.patch_frames)

    def _mel_bank(self) -> Tensor:
        """(mels, window / 2 + 1), built once."""
        if self._bank is None:
            from transformers.audio_utils import mel_filter_bank

            highest = min(7000.0, self.sampling_rate / 2)
            bank = mel_filter_bank(self.window // 2 + 1, self.mels, 50.0, highest, self.sampling_rate, mel_scale="htk")
            self._bank = torch.from_numpy(rearrange(bank, "frequency mel -> mel frequency")).float()
        return self._bank

    def token_count(self, length: int) -> int:
        """Return the number of vectors for an item of this length: the same."""
        return length

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Encode prepared items."""
        return self.stack(values, lengths)
