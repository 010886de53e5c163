"""Random numbers that depend on what is drawn, never on when: a counter-based generator.

Four elements share an output of SplitMix64 (Steele, Lea, Flood 2014), `mix(key + (i + 1) · golden)`, entered at any
i: element e has 16 bits of output e // 4, from bit 16 (e mod 4) on, as its upper half. Its lower half is the same of
a second stream, which few decisions need: one in 65,536 of those against one limit. The key is hashed from seed,
specialist and tensor name. So no order of tensors, no thread, chunk or shard changes a bit, and any of them can be
drawn alone.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
FIRST_FACTOR = 0xBF58476D1CE4E5B9
SECOND_FACTOR = 0x94D049BB133111EB


def stream_key(seed: int, specialist: str, tensor: str) -> int:
    """Return the 64-bit key of one tensor of one specialist; distinct inputs give unrelated keys (BLAKE2b)."""
    parts = [str(int(seed)), specialist, tensor]
    text = b"".join(len(part := word.encode()).to_bytes(8, "little") + part for word in parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def keep_limit(density: float) -> int:
    """Return the limit below which an entry's bits must be to keep it: `floor(density · 2^32)`; density 1 keeps all."""
    return min(max(math.floor(density * 2.0**32), 0), 2**32)


def second_key(key: int) -> int:
    """Return the key of the stream of the lower halves."""
    return key ^ (2**64 - 1)


def uniform_bits(key: int, start: int, count: int) -> np.ndarray:
    """Return 32 uniform random bits for each of elements [start, start + count): uint32 (count,). start < 2^63."""
    upper, lower = (_halves(each, start, count) for each in (key, second_key(key)))
    return (upper.astype(np.uint32) << np.uint32(16)) | lower


def _halves(key: int, start: int, count: int) -> np.ndarray:
    """16 bits for each element: uint16 (count,)."""
    first = start // 4
    with np.errstate(over="ignore"):
        z = np.arange(first + 1, (start + count + 3) // 4 + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST_FACTOR)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND_FACTOR)
        z ^= z >> np.uint64(31)
    return z.astype("<u8").view("<u2")[start - 4 * first :][:count].astype(np.uint16)


def uniform_bits_torch(key: int, start: int, count: int, device: Any = "cpu") -> Any:
    """Return the same bits as `uniform_bits`, as an int64 tensor with values in [0, 2^32), on any torch device."""
    upper, lower = (_halves_torch(each, start, count, device) for each in (key, second_key(key)))
    return (upper << 16) | lower


def _halves_torch(key: int, start: int, count: int, device: Any) -> Any:
    import torch

    first, last = start // 4, (start + count + 3) // 4
    z = torch.arange(first + 1, last + 1, dtype=torch.int64, device=device) * _signed(GOLDEN) + _signed(key)
    z = (z ^ _shifted(z, 30)) * _signed(FIRST_FACTOR)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND_FACTOR)
    z = z ^ _shifted(z, 31)
    four = torch.stack([(z >> by) & 0xFFFF for by in (0, 16, 32, 48)], dim=1)
    return four.flatten()[start - 4 * first :][:count]


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch takes."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(z: Any, by: int) -> Any:
    """Logical right shift of int64 (torch's own copies the sign)."""
    return (z >> by) & ((1 << (64 - by)) - 1)
