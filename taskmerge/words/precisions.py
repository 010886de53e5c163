"""Precisions that models can be run in: what `--precision` and `precision=` may say. torch is imported when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from taskmerge.errors import UsageError, clipped, did_you_mean

if TYPE_CHECKING:
    import torch

Half = Literal["bfloat16", "float16"]
Precision = Literal["bfloat16", "float16", "float32", "float64"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def parse_precision(value: str | None) -> torch.dtype | None:
    """Return torch's number format of that name; None, for each model's own, stays. Raises UsageError for another."""
    if value is None:
        return None
    if value not in PRECISIONS:
        move = did_you_mean(str(value), PRECISIONS)
        raise UsageError(f"{clipped(repr(value), 80)} is not a precision that models run in", next_move=move)
    import torch

    found: torch.dtype = getattr(torch, value)
    return found


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of a torch number format, e.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")
