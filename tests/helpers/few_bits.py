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
    words = torch.stack([whole[:, i::8] << (4 * i) for i in range(8)]).sum(0)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    shape = torch.tensor(value.shape)
    return {f"{name}.weight_packed": words, f"{name}.weight_scale": scale, f"{name}.weight_shape": shape}


_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def _in_mxfp4(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (…, groups, 32) and scales (…, groups), of groups of the last side, by the recipe of the standard."""
    groups = value.double().reshape(*value.shape[:-1], -1, 32)
    exponent = groups.abs().amax(-1).clamp_min(2.0**-100).log2().floor() - 2
    scaled = groups / torch.exp2(exponent)[..., None]
    codes = (scaled.abs()[..., None] - _FP4).abs().argmin(-1) + 8 * (scaled < 0)
    return codes.to(torch.uint8), (exponent + 127).to(torch.uint8)


def _halves(codes: torch.Tensor) -> torch.Tensor:
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _out_of_mxfp4(halves: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    codes = torch.stack([halves & 15, halves >> 4], -1).reshape(*scales.shape, 32).long()
    values = torch.cat([_FP4, -_FP4])[codes] * torch.exp2(scales.double() - 127)[..., None]
    return values.reshape(*scales.shape[:-1], -1)


def mxfp4(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """As compressed-tensors packs it."""
    codes, scales = _in_mxfp4(value)
    return {f"{name}.weight_packed": _halves(codes).reshape(value.shape[0], -1), f"{name}.weight_scale": scales}


def read_mxfp4(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return _out_of_mxfp4(stored[f"{name}.weight_packed"], stored[f"{name}.weight_scale"])


def gpt_oss(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Experts (E, in, out) as gpt-oss stores them."""
    codes, scales = _in_mxfp4(value.transpose(1, 2))
    return {f"{name}_blocks": _halves(codes), f"{name}_scales": scales}


def read_gpt_oss(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return _out_of_mxfp4(stored[f"{name}_blocks"], stored[f"{name}_scales"]).transpose(1, 2)


def check_nearest_in_mxfp4(scales: torch.Tensor, found: torch.Tensor, exact: torch.Tensor) -> None:
    """Every number within half a step of the format at its place, and the nearest that its group's scale has."""
    scale = torch.exp2(scales.double() - 127).repeat_interleave(32, -1)
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    wanted, error = (exact / scale).abs(), ((found - exact) / scale).abs()
    assert (error <= (wanted[..., None] - sizes).abs().amin(-1) + 1e-6).all()
    step = torch.where(wanted >= 4, 2.0, torch.where(wanted >= 2, 1.0, 0.5))
    assert (error <= step / 2 + 1e-6).all() and error.max() > 0


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
MXFP4 = {
    "quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}}},
}  # fmt: skip
INT4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}}},
}  # fmt: skip
