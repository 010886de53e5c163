"""Stored entries to float64 tensors on a device and back, rounded once; the bits are the compiled kernels'."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_BITS = {"BF16": torch.int16, "F16": torch.int16, "F32": torch.int32, "F64": torch.int64}
_INFINITE = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
_TOP = {"BF16": 0x7FFF, "F16": 0x7FFF, "F32": 0x7FFFFFFF, "F64": 0x7FFFFFFFFFFFFFFF}


def upload(entries: np.ndarray, dtype: str, device: torch.device) -> Tensor:
    """Copy stored entries to a tensor of their own dtype on the device, through page-locked memory if that helps."""
    staging = torch.empty(entries.size, dtype=_BITS[dtype], pin_memory=device.type == "cuda")
    staging.numpy().view(np.uint8)[:] = np.ascontiguousarray(entries).view(np.uint8)
    return staging.to(device, non_blocking=True).view(_TORCH[dtype])


def encode(values: Tensor, dtype: str) -> Tensor:
    """Round float64 (entries,) to entries of `dtype` as integers of its width, to nearest even."""
    if dtype == "F64":
        return values.view(torch.int64)
    if dtype == "F32":
        return values.to(torch.float32).view(torch.int32)
    odd = round_to_odd(values)
    if dtype == "F16":
        half = odd.view(torch.float32).to(torch.float16).view(torch.int16)
        return torch.where(values.isnan(), 0x7E00, half)
    rounded = (odd + 0x7FFF + ((odd >> 16) & 1)) >> 16
    return torch.where(values.isnan(), 0x7FC0, rounded).to(torch.int16)


def round_to_odd(values: Tensor) -> Tensor:
    """Return the bits (int32) of the float32 next to each value towards zero, last bit set if inexact.

    Rounding these again to a shorter format rounds the value itself correctly.
    """
    near = values.to(torch.float32)
    wide = near.to(torch.float64)
    bits = near.view(torch.int32)
    bits = bits - (wide.abs() > values.abs()).to(torch.int32)
    return bits | (wide != values).to(torch.int32)


def count_nonfinite(bits: Tensor, dtype: str) -> Tensor:
    """Count the entries, given as integers of the format's width, that are NaN or infinite: int64 ()."""
    return ((bits & _TOP[dtype]) >= _INFINITE[dtype]).sum()


def bits_of(tensor: Tensor, dtype: str) -> Tensor:
    """Return the entries of a tensor as integers of the format's width."""
    return tensor.view(_BITS[dtype])
