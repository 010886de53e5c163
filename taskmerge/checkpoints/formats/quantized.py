"""Quantised checkpoints: 8-bit floats with scales are read as the numbers they stand for; other formats are refused.

| stored                                 | stands for              | written by                            |
|----------------------------------------|-------------------------|---------------------------------------|
| weight, weight_scale_inv (per block)   | weight × scale of block | DeepSeek, Qwen "-FP8"; 128 × 128      |
| weight, weight_scale () or (out, 1)    | weight × scale          | compressed-tensors, FBGEMM, ModelOpt  |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError
from taskmerge.numbers.rounding import decode, encode

_SCALES = ("_scale_inv", "_scale")
# What goes with quantised arithmetic alone and means nothing to plain weights.
BYPRODUCTS = ("input_scale", "input_scale_ub", "activation_scale", "k_scale", "v_scale", "output_scale")
_PACKED = (
    "qweight",
    "qzeros",
    "weight_packed",
    "weight_shape",
    "absmax",
    "quant_map",
    "g_idx",
    "SCB",
    "weight_scale_2",
    "_blocks",
    "_scales",
)


@dataclass(frozen=True, slots=True)
class Scaled:
    """The name of a weight's scale. block: rows and columns that share one entry of the scale."""

    scale: str
    block: tuple[int, int]


def packed_modules(state_dict: StateDict) -> dict[str, frozenset[str]]:
    """Module -> its tensors, of the modules whose numbers are packed in a way that is not known here: INT4 and the
    like, with their scales and zero points. Biases are numbers as others are."""
    modules = {_module(name) for name in state_dict.tensors if name.endswith(_PACKED)}
    if not modules:  # nearly always, and names may be very many
        return {}
    found: dict[str, set[str]] = {module: set() for module in modules}
    for name in state_dict.tensors:
        module = _module(name)
        if module in found and not name.endswith("bias"):
            found[module].add(name)
    return {module: frozenset(names) for module, names in found.items()}


def _module(name: str) -> str:
    """The module of a tensor: of `q_proj.weight.absmax` as of `q_proj.qweight` it is `q_proj`."""
    before, inner, _ = name.rpartition(".weight.")
    return before if inner else name.rpartition(".")[0]


def dequantized(state_dict: StateDict, *, keep_packed: bool = False) -> StateDict:
    """Return `state_dict` with scaled 8-bit floats as float32 numbers; itself if nothing is quantised.

    8-bit floats without a scale are left as they are, for a rule to keep. keep_packed: so are packed numbers, for a
    plan that does not use them. Raises CheckpointError naming format and tensor for anything else that is
    quantised.
    """
    if keep_packed and packed_modules(state_dict):
        return state_dict
    if not _is_quantized(state_dict):
        return state_dict
    small = [name for name, info in state_dict.tensors.items() if info.format.kind == "small_float"]
    scaled = scaled_weights(state_dict)
    if small and not scaled and not state_dict.config.get("quantization_config"):
        return state_dict
    packed = next((name for name in state_dict.tensors if name.endswith(_PACKED)), None)
    if packed is None and not small and all(_is_plain(info) for info in state_dict.tensors.values()):
        return state_dict  # what its settings say is quantised is not among these tensors
    if packed is not None or not scaled:
        method = dict(state_dict.config.get("quantization_config") or {}).get("quant_method", "an unknown method")
        raise CheckpointError(
            f"quantised by {method}: this format is not supported",
            f"{state_dict.label}: {packed or next(iter(state_dict.tensors))}",
            "name the model that it was made from, or save it dequantised with transformers (model.dequantize())",
        )
    return Dequantized(state_dict, scaled)


class Dequantized(StateDict):
    """A `StateDict` of the numbers of scaled 8-bit floats, to be written in the format the model was trained in."""

    def __init__(self, source: StateDict, scaled: Mapping[str, Scaled]) -> None:
        self.source = source
        self.label = source.label
        config = {key: value for key, value in source.config.items() if key != "quantization_config"}
        trained_in = str(source.config.get("dtype") or source.config.get("torch_dtype") or "bfloat16")
        self.beside = replace(source.beside, config=config, output_dtype=trained_in)
        self._scaled = dict(scaled)
        gone = {own.scale for own in scaled.values()}
        self.tensors = {
            name: replace(info, dtype="F32") if name in scaled else info
            for name, info in source.tensors.items()
            if name not in gone and not name.endswith(BYPRODUCTS)
        }

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        return self.source.stored_name(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`; weight × scale in float64, rounded once to float32."""
        own = self._scaled.get(name)
        if own is None:
            return self.source.read(name, start, stop)
        info = self.source.tensors[name]
        stop = info.count if stop is None else min(stop, info.count)
        values = eight_bit_values(info.dtype)[self.source.read(name, start, stop).view(np.uint8)]
        scale_info = self.source.tensors[own.scale]
        scale = decode(self.source.read(own.scale), scale_info.dtype)
        if scale.size > 1:
            columns = math.prod(info.shape[1:])
            places = np.arange(start, stop)
            across = -(-columns // own.block[1])
            scale = scale[places // columns // own.block[0] * across + places % columns // own.block[1]]
        return encode(values * scale, "F32")


@cache
def eight_bit_values(dtype: str) -> np.ndarray:
    """Return the 256 numbers of an 8-bit float format, by bit pattern: float64 (256,). E4M3 has no infinities."""
    exponent_bits, bias = {"F8_E4M3": (4, 7), "F8_E5M2": (5, 15)}[dtype]
    mantissa_bits = 7 - exponent_bits
    bits = np.arange(256)
    exponent = (bits >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (bits & (2**mantissa_bits - 1)) / 2**mantissa_bits
    size = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if dtype == "F8_E5M2":
        size = np.where(exponent == 31, np.where(mantissa == 0, np.inf, np.nan), size)
    else:
        size = np.where((bits & 0x7F) == 0x7F, np.nan, size)
    return np.where(bits >= 128, -size, size)


def _is_plain(info: TensorInfo) -> bool:
    """Whether a tensor is numbers as they are, or a buffer: packed numbers are matrices of integers."""
    return info.format.mergeable or len(info.shape) < 2


def _is_quantized(state_dict: StateDict) -> bool:
    small = any(info.format.kind == "small_float" for info in state_dict.tensors.values())
    return small or bool(state_dict.config.get("quantization_config"))


def scaled_weights(state_dict: StateDict) -> dict[str, Scaled]:
    """Weight -> its scale, of those that are stored as 8-bit floats with scales."""
    said = dict(state_dict.config.get("quantization_config") or {}).get("weight_block_size") or [128, 128]
    small = [info for info in state_dict.tensors.values() if info.dtype in ("F8_E4M3", "F8_E5M2")]
    return {info.name: found for info in small if (found := _scaled(state_dict, info, said)) is not None}


def _scaled(state_dict: StateDict, info: TensorInfo, said: Sequence[int]) -> Scaled | None:
    """said: rows and columns of a block, as the settings have it."""
    tensors = state_dict.tensors
    name, scale = info.name, ""
    for ending in _SCALES:
        if f"{name}{ending}" in tensors:
            scale = f"{name}{ending}"
            break
    if not scale or len(info.shape) != 2:
        return None
    shape = tensors[scale].shape
    if math.prod(shape) == 1:
        return Scaled(scale, info.shape)
    block = (1, info.shape[1])
    if scale.endswith("_scale_inv"):
        if len(said) != 2 or min(said) < 1:
            raise CheckpointError(
                f"weight_block_size must be two numbers, each at least 1, not {said}",
                state_dict.label,
                "correct weight_block_size in config.json, or get the file again",
            )
        block = (said[0], said[1])
    expected = (-(-info.shape[0] // block[0]), -(-info.shape[1] // block[1]))
    if shape not in (expected, expected[:1]) or (shape == expected[:1] and expected[1] != 1):
        raise CheckpointError(
            f"scales of shape {list(shape)} for {list(info.shape)}, expected {list(expected)}",
            f"{state_dict.label}: {scale}",
            "get the file again",
        )
    return Scaled(scale, block)
