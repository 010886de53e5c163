"""Results that were accepted, read again by the safetensors library, torch and NumPy, and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fuzz.cases import Ended

Tensors = dict[str, torch.Tensor]


def read(folder: Path) -> Tensors | None:
    """A folder's tensors by other libraries; None where they read none, or refuse."""
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    tensors: Tensors = {}
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not files:
            for path in sorted(filter(Path.is_file, folder.glob("*.bin"))):
                tensors |= torch.load(path, weights_only=True)
    except Exception:
        return None
    return tensors


def whole_file(path: Path) -> bool:
    """Whether the safetensors library takes a file."""
    try:
        with safe_open(path, "pt") as file:
            list(file.keys())
    except (SafetensorError, OSError):
        return False
    return True


def inspected(folder: str):  # type: ignore[no-untyped-def]
    """A check: what `inspect --json --tensors` says of a folder is what the safetensors library finds in its files."""

    def check(room: Path, ended: Ended) -> Iterator[str]:
        said = json.loads(ended.out)
        files = sorted((room / folder).glob("*.safetensors"))
        refused = [path.name for path in files if not whole_file(path)]
        if refused:
            yield f"accepted a file that the safetensors library refuses: {refused}"
            return
        found = read(room / folder)
        if found is None:
            return
        rows = said["tensors"]
        if rows.keys() != found.keys():
            yield f"other names than the safetensors library: {sorted(rows.keys() ^ found.keys())[:5]}"
            return
        for name, tensor in found.items():
            if list(rows[name]["shape"]) != list(tensor.shape):
                yield f"{name}: shape {rows[name]['shape']}, by safetensors {list(tensor.shape)}"

    return check


def fused(weight: float = 0.5, base: str = "base", one: str = "one", out: str = "out"):  # type: ignore[no-untyped-def]
    """A check: the fused model is base + weight (one - base), in float64 from other libraries' readings."""

    def check(room: Path, _: Ended) -> Iterator[str]:
        first, second, made = read(room / base), read(room / one), read(room / out)
        if made is None or not made:
            yield "the output cannot be read by the safetensors library"
            return
        if first is None or second is None:
            yield "accepted inputs that other libraries cannot read"
            return
        for name in first.keys() & second.keys() & made.keys():
            a, b, c = (table[name] for table in (first, second, made))
            if not a.is_floating_point() or not a.shape == b.shape == c.shape or a.dtype != c.dtype:
                continue
            expected = a.double() + weight * (b.double() - a.double())
            if not torch.allclose(c.double(), expected.to(c.dtype).double(), rtol=1e-6, atol=1e-12, equal_nan=True):
                yield f"{name} is not the formula's: off by {(c.double() - expected).abs().max():g}"
        lost = first.keys() - made.keys()
        if lost and not any(name.endswith("lm_head.weight") for name in lost):
            yield f"tensors of the base are not in the output: {sorted(lost)[:5]}"

    return check
