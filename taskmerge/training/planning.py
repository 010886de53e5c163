"""Estimate of the needs of a training stage: bytes on each device, floating-point operations.

Only names and shapes are used. Activations are the tensors that autograd keeps for a transformer layer, linear layer by
linear layer: see `Layer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

_LAYER = re.compile(r"^(.*?\.)?(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)\.weight$")
_ATTENTION = re.compile(r"(q_proj|k_proj|v_proj|query|\bkey|value|qkv|in_proj|c_attn|q_lin|k_lin|v_lin)$")
_BACK = re.compile(r"(o_proj|out_proj|attention\.output\.dense|attn\.proj|out_lin|self_attn\.dense)$")
_FLOAT = 4
_MOMENTS = 8
"""Bytes an optimizer keeps of each trained parameter: two moments in float32."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that a model will have. size: bytes of an entry."""

    shape: tuple[int, ...]
    size: int
    component: str

    @property
    def count(self) -> int:
        """The number of entries."""
        found = 1
        for length in self.shape:
            found *= length
        return found


@dataclass
class Layer:
    """One transformer layer: its linear layers' (out, in), and which of them are trained.

    Kept of each token, in numbers: what attention was given and gave (q, k, v and its output, in the order of heads and
    joined again), what both norms were given, what the activation function was given (and of a gated one, its two
    factors). Of a trained layer also what went into its linear layers.
    """

    attention: list[tuple[int, int]] = field(default_factory=list)
    back: list[tuple[int, int]] = field(default_factory=list)
    others: list[tuple[int, int]] = field(default_factory=list)
    trained: int = 0
    count: int = 0
    rms: bool = False

    def kept(self) -> int:
        """Return the numbers that autograd keeps here per token for the backward pass."""
        width = max((inner for _, inner in self.attention + self.others), default=0)
        if self.attention:
            width = self.attention[0][1]
        heads = sum(out for out, _ in self.attention)
        joined = sum(inner for _, inner in self.back) or width
        ups = [out for out, inner in self.others if inner == width and out != width]
        middle = max(ups, default=0)
        gated = len([out for out in ups if out == middle]) > 1
        found = heads + joined + 2 * width + middle * (3 if gated else 1)
        if self.trained:
            found += 2 * width + joined + middle + (2 * width if self.rms else 0)
        return found


@dataclass(frozen=True)
class Machine:
    """count: devices.  memory: bytes of each.  speed: floating-point operations a second that one really does."""

    count: int
    memory: int
    speed: float


@dataclass(frozen=True)
class Load:
    """The data that passes through a model in one step on one device.

    items: number that is embedded at once.  item_tokens, text_tokens: of each.  texts_run: whether texts run with the
    items.  width: of a number in a forward pass, in bytes.  trained_width: the same in layers that are trained
    completely.
    """

    items: int
    item_tokens: int
    text_tokens: int
    texts_run: bool
    width: int = _FLOAT
    trained_width: int = _FLOAT

    @property
    def tokens(self) -> int:
        """The number of tokens of all items, and of texts that run with them."""
        return self.items * (self.item_tokens + (self.text_tokens if self.texts_run else 0))


@dataclass(frozen=True)
class Needs:
    """Bytes on each device, numbers of parameters, operations of one step on one device.

    host: bytes of every process in addition to its device: initial values of the trained tensors.
    widened: bytes of the weights that are added because half-precision weights are trained in float32.
    """

    trained: int
    frozen: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    operations: float
    host: int = 0
    widened: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


def layers_of(tensors: Mapping[str, Tensor], trained: Iterable[str]) -> dict[str, list[Layer]]:
    """Component -> its transformer layers. trained: names."""
    chosen = set(trained)
    found: dict[tuple[str, str, int], Layer] = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match is None:
            continue
        place = (tensor.component, match[1] or "", int(match[2]))
        layer = found.setdefault(place, Layer())
        layer.count += tensor.count
        layer.trained += tensor.count if name in chosen else 0
        kind = match[3]
        if len(tensor.shape) == 1:
            layer.rms = layer.rms or (name.removesuffix(".weight") + ".bias") not in tensors
        elif len(tensor.shape) == 2:
            shape = (tensor.shape[0], tensor.shape[1])
            group = layer.attention if _ATTENTION.search(kind) else layer.back if _BACK.search(kind) else layer.others
            group.append(shape)
    by_component: dict[str, list[Layer]] = {}
    for (component, _, _), layer in sorted(found.items(), key=lambda row: row[0]):
        by_component.setdefault(component, []).append(layer)
    return by_component


def needs(
    tensors: Mapping[str, Tensor],
    trained: Sequence[str],
    load: Load,
    *,
    way: Sequence[str],
    apart: Sequence[str] = (),
    shards: int = 1,
    lora_rank: int | None = None,
    recomputed: bool = False,
    twice: bool = False,
) -> Needs:
    """Estimate the memory of one device.

    Args:
        tensors: of the model.  trained: names of those that learn.  load: of one step.
        way: components that items run through in a step.  apart: components that are frozen and run by themselves
            before: they are whole on each device, and leave no activations.
        shards: devices that parameters are divided among.
        lora_rank: of adapters that are trained in place of matrices.
        recomputed: gradient checkpointing.  twice: a gradient cache embeds everything twice.
    """
    chosen = set(trained)
    learnt = sum(_learnt(tensors[name], lora_rank) for name in chosen)
    count = sum(tensor.count for tensor in tensors.values())
    whole = sum(tensor.count * tensor.size for tensor in tensors.values() if tensor.component in apart)
    rest = sum(tensor.count * tensor.size for tensor in tensors.values() if tensor.component not in apart)
    gradients = sum(_learnt(tensors[name], lora_rank) * max(_FLOAT, tensors[name].size) for name in chosen)
    if lora_rank is not None:
        gradients, widened = learnt * _FLOAT, 0
        rest += learnt * _FLOAT
        load = replace(load, trained_width=load.width)
    else:
        widened = sum(tensors[name].count * max(0, _FLOAT - tensors[name].size) for name in chosen)
        rest += widened
    layers = layers_of(tensors, chosen)
    passed = [layer for component in way if component not in apart for layer in layers.get(component, [])]
    return Needs(
        trained=learnt,
        frozen=count - (0 if lora_rank else learnt),
        weights=whole + rest // shards,
        gradients=gradients // shards,
        optimizer=learnt * _MOMENTS // shards,
        activations=_activations(passed, load, recomputed),
        operations=_operations(passed, load, recomputed or twice),
        host=sum(tensors[name].count * tensors[name].size for name in chosen),
        widened=widened // shards,
    )


def _learnt(tensor: Tensor, lora_rank: int | None) -> int:
    if lora_rank is None:
        return tensor.count
    return lora_rank * sum(tensor.shape) if len(tensor.shape) == 2 else 0


def _activations(passed: Sequence[Layer], load: Load, recomputed: bool) -> int:
    if not passed:
        return 0
    widths = [load.trained_width if layer.trained else load.width for layer in passed]
    kept = [layer.kept() * width for layer, width in zip(passed, widths, strict=True)]
    if recomputed:
        inner = max((inner for layer in passed for _, inner in layer.attention), default=0)
        return load.tokens * (sum(widths) * inner + max(kept))
    return load.tokens * sum(kept)


def _operations(passed: Sequence[Layer], load: Load, again: bool) -> float:
    """Two a parameter and token forward, two for what flows back, two for what is learnt."""
    every = sum(layer.count for layer in passed)
    learnt = sum(layer.trained for layer in passed)
    return float(load.tokens) * (2 * every * (3 if again else 2) + 2 * learnt)
