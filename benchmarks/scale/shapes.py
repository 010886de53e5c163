"""Models of the shape of frontier mixtures of experts, as sparse files: headers are real, bytes are holes.

    python benchmarks/scale/shapes.py FOLDER --layers 61 --experts 256 --hidden 7168 --width 2048

A hole reads as zeros and takes no room, so that a model of a terabyte can be planned, and read, on a small disk.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from taskmerge.checkpoints.formats.header import build_header
from taskmerge.checkpoints.output.layout import natural
from taskmerge.checkpoints.tensors import TensorInfo

SHARD = 5_000_000_000


def mixture(
    layers: int, experts: int, hidden: int, width: int, dtype: str = "BF16", scales: bool = False
) -> Iterator[TensorInfo]:
    """The tensors of a mixture of experts as DeepSeek-V3 names them. scales: with one beside every expert's matrix."""
    yield TensorInfo("model.embed_tokens.weight", "BF16", (129_280, hidden))
    yield TensorInfo("lm_head.weight", "BF16", (129_280, hidden))
    yield TensorInfo("model.norm.weight", "BF16", (hidden,))
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield TensorInfo(f"{start}.{name}.weight", "BF16", (hidden,))
        for name, rows in (("q_proj", hidden), ("k_proj", hidden // 8), ("v_proj", hidden // 8), ("o_proj", hidden)):
            yield TensorInfo(f"{start}.self_attn.{name}.weight", "BF16", (rows, hidden))
        yield TensorInfo(f"{start}.mlp.gate.weight", "BF16", (experts, hidden))
        for expert in range(experts):
            for name, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                full = f"{start}.mlp.experts.{expert}.{name}_proj.weight"
                yield TensorInfo(full, dtype, shape)
                if scales:
                    yield TensorInfo(f"{full}_scale_inv", "F32", tuple(-(-size // 128) for size in shape))


def write_sparse(folder: Path, tensors: Iterator[TensorInfo], shard_size: int = SHARD) -> tuple[int, int]:
    """Write headers and holes, an index and a config; number of tensors and bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[list[TensorInfo]] = [[]]
    filled = count = total = 0
    for info in sorted(tensors, key=lambda info: natural(info.name)):
        if groups[-1] and filled + info.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled, count, total = filled + info.nbytes, count + 1, total + info.nbytes
    weight_map = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        header, entries = build_header(group, {"format": "pt"})
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(entries[-1].stop)
        weight_map |= {info.name: name for info in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v3", "architectures": ["DeepseekV3"]}))
    return count, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, value in (("layers", 61), ("experts", 256), ("hidden", 7168), ("width", 2048)):
        parser.add_argument(f"--{name}", type=int, default=value)
    said = parser.parse_args()
    count, total = write_sparse(said.folder, mixture(said.layers, said.experts, said.hidden, said.width))
    print(f"{count:,} tensors, {total:,} bytes")


if __name__ == "__main__":
    main()
