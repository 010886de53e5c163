"""Weights in few bits, written and read without the package: FP8 in blocks, 4 bits in groups."""

from __future__ import annotations

import torch

BLOCK, GROUP = 64, 32


def fp8(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """As DeepSeek stores it: written by torch's own conversion."""
    rows, columns = value.shape
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    scale = torch.empty(down, across)
    stored = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(down):
        for j in range(across):
            part = value[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            scale[i, j] = part.abs().max() / 448 * 1.1  # not what we would choose
            stored[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK] = (part / scale[i, j]).to(stored.dtype)
    return {f"{name}.weight": stored, f"{name}.weight_scale_inv": scale}


def int4(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """As compressed-tensors packs it, written out: eight numbers in a word, the first in its lowest bits."""
    groups = value.reshape(value.shape[0], -1, GROUP)
    scale = (groups.abs().amax(2) / 7.4).bfloat16()
    whole = (groups / scale.float()[..., None]).round().clamp(-8, 7).reshape(value.shape).to(torch.int64) + 8
    words = sum(whole[:, i::8] << (4 * i) for i in range(8))
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    shape = torch.tensor(value.shape)
    return {f"{name}.weight_packed": words, f"{name}.weight_scale": scale, f"{name}.weight_shape": shape}


def read_fp8(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    scale = stored[f"{name}.weight_scale_inv"].double()
    value = stored[f"{name}.weight"].double()
    spread = scale.repeat_interleave(BLOCK, 0)[: value.shape[0]].repeat_interleave(BLOCK, 1)[:, : value.shape[1]]
    return value * spread


def read_int4(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    words = stored[f"{name}.weight_packed"].to(torch.int64) & 0xFFFFFFFF
    whole = torch.stack([words >> 4 * i & 15 for i in range(8)], 2).reshape(words.shape[0], -1) - 8
    return whole.double() * stored[f"{name}.weight_scale"].double().repeat_interleave(GROUP, 1)


FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
INT4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}}},
}  # fmt: skip
