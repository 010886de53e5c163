"""Pictures, pages and films as patches of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from taskmerge.embedders.encoders import register_encoder
from taskmerge.embedders.encoders.base import Encoder, PatchTransformer
from taskmerge.embedders.media import load_frames, load_picture
from taskmerge.errors import UsageError

CONTRAST = 2.5
"""Brings drawings and type, mostly ground, to about unit variance."""


@register_encoder("patches")
class PatchEncoder(Encoder):
    """A picture is scaled to `height` pixels, cut into patches and read by a small transformer; a video is its
    frames one after the other, each read by itself.

    height: of the scaled picture.  max_width: the scaled width is kept to the aspect ratio, rounded to whole
    patches, at most this.  patch_height, patch_width: pixels, height must be a multiple of patch_height.
    channels: 1 grey, 3 colour.  max_frames: longer films are thinned evenly.
    """

    modalities = ("image", "video")

    def __init__(
        self,
        height: int = 32,
        max_width: int = 128,
        patch_height: int = 32,
        patch_width: int = 8,
        channels: int = 3,
        max_frames: int = 8,
        layers: int = 1,
        width: int = 192,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.options = {
            "height": height, "max_width": max_width, "patch_height": patch_height, "patch_width": patch_width,
            "channels": channels, "max_frames": max_frames, "layers": layers, "width": width, "heads": heads,
        }  # fmt: skip
        if height % patch_height or max_width % patch_width or channels not in (1, 3) or max_frames < 1:
            raise UsageError(
                f"{patch_height} x {patch_width} patches of {channels} channels do not tile {height} x {max_width}",
                next_move="make height a multiple of patch_height, max_width one of patch_width, and channels 1 or 3",
            )
        self.height, self.max_width, self.channels, self.max_frames = height, max_width, channels, max_frames
        self.patch_height, self.patch_width = patch_height, patch_width
        self.rows, self.max_columns = height // patch_height, max_width // patch_width
        patch_size = patch_height * patch_width * channels
        self.stack = PatchTransformer(patch_size, width, layers, heads, self.rows * self.max_columns)
        self.output_size = self.stack.output_size

    @property
    def mode(self) -> str:
        """The colour mode of Pillow: "RGB" for three channels, else "L"."""
        return "RGB" if self.channels == 3 else "L"

    def prepare(self, item: Any, modality: str) -> Tensor:
        """Return a picture as (patches, 1 + patch entries), a video as the patches of its frames in order.

        Column 0 is 1.0 on the first patch of every frame, so that frames can be told apart again.
        """
        if modality == "image":
            return self._patches(load_picture(item, self.mode))
        frames = load_frames(item, self.mode)
        kept = np.linspace(0, len(frames) - 1, min(len(frames), self.max_frames)).round().astype(int)
        return torch.cat([self._patches(frames[index]) for index in kept])

    def _patches(self, picture: Any) -> Tensor:
        from PIL import Image

        columns = round(picture.width * self.height / picture.height / self.patch_width)
        columns = min(max(columns, 1), self.max_columns)
        scaled = picture.resize((columns * self.patch_width, self.height), Image.Resampling.BILINEAR)
        values = np.array(scaled, dtype=np.float32)
        values = (values[..., None] if values.ndim == 2 else values) / 255.0  # grey pictures have no channel axis
        # what differs from the ground: paper and sky are zero, whatever their colour
        pixels = torch.from_numpy((values - np.median(values, axis=(0, 1))) * CONTRAST)
        patches = rearrange(  # column by column, as one reads
            pixels, "(row y) (column x) channel -> (column row) (y x channel)", y=self.patch_height, x=self.patch_width
        )
        first = torch.zeros(len(patches), 1)
        first[0] = 1.0
        return torch.cat([first, patches], dim=1)

    def token_count(self, length: int) -> int:
        """Return the number of vectors for an item of this length: the same."""
        return length

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Encode prepared items, each frame of a video by itself."""
        first, patches = values[..., 0] > 0.5, values[..., 1:]
        items, longest = first.shape
        inside = torch.arange(longest, device=values.device)[None, :] < lengths[:, None]
        frame = first.cumsum(dim=1) - 1  # (items, longest): which frame of its item each patch is in
        frames = int(frame.max()) + 1
        if frames == 1:
            return self.stack(patches, lengths)
        start = torch.where(first, torch.arange(longest, device=values.device), 0).cummax(dim=1).values
        offset = torch.arange(longest, device=values.device)[None, :] - start
        row = (torch.arange(items, device=values.device)[:, None] * frames + frame)[inside]
        offset = offset[inside]
        stacked = patches.new_zeros(items * frames, int(offset.max()) + 1, patches.shape[-1])
        stacked[row, offset] = patches[inside]
        counts = torch.zeros(items * frames, dtype=torch.long, device=values.device)
        counts.index_add_(0, row, torch.ones_like(row))
        used = counts > 0
        place = used.cumsum(dim=0) - 1
        encoded = self.stack(stacked[used], counts[used])
        output = encoded.new_zeros(items, longest, self.output_size)
        output[inside] = encoded[place[row], offset]
        return output
