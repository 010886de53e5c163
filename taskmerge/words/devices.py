"""Devices: what `--device` and `device=` may say. The only parser; torch is imported for what is not the CPU alone."""

from __future__ import annotations

import re
from typing import Any

from taskmerge.errors import UsageError, clipped

NEXT_MOVE = "write cpu, cuda, cuda:1 or mps; `taskmerge doctor` lists the devices of this machine"
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(?::([0-9]{1,3}))?")


def parse_device(value: Any) -> str:
    """Return the name of a device that is there.

    Args:
        value: "cpu", "cuda", "cuda:1", "mps", "xpu", or a torch.device.

    Returns:
        The name as torch takes it.

    Raises:
        UsageError: for another name, and for a device that this machine or this PyTorch lacks.
    """
    text = str(value)
    match = _DEVICE.fullmatch(text)
    if match is None:
        raise UsageError(f"{clipped(repr(text), 80)} is not a device", next_move=NEXT_MOVE)
    kind, number = match[1], int(match[2] or 0)
    if kind == "cpu":
        if number:
            raise UsageError(f"there is no device {text!r}: the CPU is a single device", next_move="write cpu")
        return text
    there = _count(kind)
    if number >= there:
        has = f"this machine has {there} {kind} device{'s' if there > 1 else ''}" if there else _lacking(kind)
        raise UsageError(f"there is no device {text!r}: {has}", next_move=NEXT_MOVE)
    return text


def device_or_default(value: Any) -> str | None:
    """Return the name of a device that is there; None, for whatever is the default, stays. Raises as `parse_device`."""
    return None if value is None else parse_device(value)


def _count(kind: str) -> int:
    import torch

    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "xpu":
        return torch.xpu.device_count() if torch.xpu.is_available() else 0
    return int(torch.backends.mps.is_available())


def _lacking(kind: str) -> str:
    import torch

    return f"PyTorch {torch.__version__} finds no {kind} device on this machine"
