"""Small checkpoints on disk, written and read back by the safetensors library, and recipes beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

SHAPES: dict[str, tuple[int, ...]] = {
    "model.layers.0.gate": (),
    "model.layers.0.empty.weight": (0,),
    "model.layers.0.hollow.weight": (3, 0, 2),
    "model.layers.0.one.bias": (1,),
    "model.layers.0.norm.weight": (7,),
    "model.layers.0.proj.weight": (5, 3),
    "model.layers.1.norm.weight": (33,),
    "model.layers.1.conv.weight": (4, 3, 3, 3),
    "model.layers.2.proj.weight": (13, 17),
    "model.layers.10.proj.weight": (1, 29),
}
"""Of every kind: a scalar, empty, one entry, vectors, odd matrices, a convolution."""

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
Tensors = dict[str, torch.Tensor]


def random_model(seed: int, dtype: str = "F32", near: Mapping[str, torch.Tensor] | None = None) -> Tensors:
    """Entries around 0.02; near: another model to stay close to, with entries left alone, equal steps and zeros."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in SHAPES.items():
        values = 0.02 * rng.standard_normal(shape)
        if near is not None:
            step = np.round(0.004 * rng.standard_normal(shape), 4) * (rng.random(shape) < 0.8)
            values = near[name].double().numpy() + step
        tensors[name] = torch.from_numpy(np.asarray(values)).to(TORCH[dtype])
    return tensors


def write_model(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint folder of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else dict(config)))
    return folder


def write_recipe(folder: Path, **said: Any) -> Path:
    """merge.yaml in `folder`."""
    path = folder / "merge.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    return path


def read_model(folder: Path) -> Tensors:
    """Every tensor of every safetensors file of a folder, by the safetensors library."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weight_digests(folder: Path) -> dict[str, str]:
    """sha256 of the weight files and indexes alone."""
    return {name: digest for name, digest in digests(folder).items() if ".safetensors" in name}


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    return one.dtype == two.dtype and one.shape == two.shape and bytes_of(one) == bytes_of(two)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, repo: str, files: dict[str, bytes], revision: str = "main") -> Path:
    """A repository in a hub cache, as the hub client lays it out: blobs, and a snapshot of links to them."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / COMMIT
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)
    for number, (name, data) in enumerate(files.items()):
        (folder / "blobs" / f"{number:040d}").write_bytes(data)
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        depth = "../" * (2 + name.count("/"))
        path.symlink_to(f"{depth}blobs/{number:040d}")
    return snapshot


def prepare(folder: Path, layers: int, size: int) -> Path:
    """Models of `layers` matrices, and a recipe that writes each into a shard of its own."""
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.mlp.weight" for i in range(layers)]
    for label in ("base", "image", "audio"):
        held = {name: torch.from_numpy(rng.standard_normal((size, size))).bfloat16() for name in names}
        write_model(folder / label, held)
    (folder / "base" / "tokenizer.json").write_text("{}")
    write_recipe(
        folder,
        base="base",
        specialists={"image": "image", "audio": {"model": "audio", "weight": 0.5}},
        merge={"method": "dare_ties", "density": 0.4},
        output={"path": "out", "shard_size": size * size * 2},
        seed=3,
    )
    return folder
