"""Second moments of the inputs of every linear layer of a specialist, in one streaming pass over unlabelled probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from taskmerge.checkpoints.components import BACKBONE, component_map
from taskmerge.checkpoints.covariances import InputCovariances
from taskmerge.checkpoints.selector import Selector
from taskmerge.declarations import COUNT, TEXTS, Listed, Text, checked_arguments, optional
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.embedders.prompts import Role
from taskmerge.errors import UsageError
from taskmerge.metrics.retrieval import collapse
from taskmerge.words.devices import device_or_default
from taskmerge.words.progress import work

if TYPE_CHECKING:
    from torch import Tensor, nn

    from taskmerge.embedders.takes import Model, PairSets, PromptSource

BATCH_SIZE = 32
CHUNK = 8
"""Batches whose sums are taken together, by whichever process: so several add the same numbers in the same order."""
DEFAULT_COMPONENTS = (BACKBONE, "vision_encoder", "audio_encoder", "vision_projector")


@checked_arguments(texts=optional(Listed(Text(), lone=False, empty=True)), components=TEXTS, batch_size=COUNT)
def collect_covariances(
    model: Model,
    probes: PairSets,
    texts: Sequence[str] | None = None,
    *,
    components: Sequence[str] = DEFAULT_COMPONENTS,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    prompts: PromptSource = None,
) -> InputCovariances:
    """Compute E[z zᵀ] of the inputs z of every linear layer, over the items of the probes plus the same over the texts.

    Each group (a modality, the texts) is normalised by its own number of tokens, so that a large group does not
    dominate the others; padding is left out. Memory: at most three float64 matrices per distinct input, whatever the
    number of probes.

    Args:
        model: a model that `open_embedder` takes.
        probes: pairs that `read_pairs` takes, or {name: pairs} for several modalities. Their texts need not be pairs,
            because nothing is trained.
        texts: default: the distinct texts of the probes.
        components: components whose layers are measured.
        batch_size: items per batch.
        device: device that the model runs on; default: the CPU for a path, else the model's own device.
        prompts: see `Embedder.prompted`; items and texts are embedded in their roles (see `Pairs.roles`).

    Returns:
        Matrices (input size, input size), keyed by the names of the weights in the model's file, see
        `Embedder.state_dict`.

    Raises:
        UsageError: for invalid probes, before the model runs.
    """
    data = Data.of(probes, texts, batch_size)
    collector = Collector(open_embedder(model, device=device_or_default(device)).prompted(prompts), components)
    collector.check(data)
    total = Total(data.groups)
    with work("items and texts", data.size) as told:
        for chunk in data.chunks:
            total.add(collector.run(chunk, told.advance))
    return total.result()


class Chunk(NamedTuple):
    """A few batches of one group, always the same ones: `source`'s entries [start, stop), `size` at a time.

    group: its place in `Data.groups`.
    """

    group: int
    modality: str
    role: Role
    source: Pairs | Sequence[str]
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Data:
    """The items and texts that are run through a model, in chunks. groups: all names, also those without chunks."""

    groups: tuple[str, ...]
    chunks: tuple[Chunk, ...]

    @property
    def size(self) -> int:
        """Items and texts, all together."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)

    @classmethod
    def of(cls, probes: PairSets, texts: Sequence[str] | None = None, batch_size: int = BATCH_SIZE) -> Data:
        """See `collect_covariances`. Raises UsageError for broken probes."""
        sets = _checked(probes)
        sources: list[tuple[int, str, Role, Pairs | Sequence[str]]] = [
            (group, pairs.modality, pairs.roles[0], pairs) for group, pairs in enumerate(sets.values())
        ]
        sources += [(len(sets), "text", role, wanted) for role, wanted in _texts(sets, texts).items()]
        most = CHUNK * batch_size
        chunks = [
            Chunk(*row, start, min(start + most, len(row[3])), batch_size)
            for row in sources
            for start in range(0, len(row[3]), most)
        ]
        if not chunks:
            raise UsageError("there are no items and no texts", next_move="give probes, or texts")
        return cls((*sets, "text"), tuple(chunks))


def _texts(sets: Mapping[str, Pairs], texts: Sequence[str] | None) -> dict[Role, list[str]]:
    """The texts by role: those that were passed, which the items search, else the distinct ones of the probes."""
    if texts is not None:
        return {"document": list(texts)}
    keys = [(pairs.roles[1], text) for pairs in sets.values() for text in pairs.texts if text]
    by_role: dict[Role, list[str]] = {}
    for role, text in collapse(keys)[0]:
        by_role.setdefault(role, []).append(text)
    return by_role


@dataclass
class Sums:
    """Σ z zᵀ over one chunk, float64, and its number of rows, by the name of a layer's weight.

    group: see `Chunk`. aliases: layer -> the layer that reads the same input.
    """

    group: int
    totals: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class Total:
    """The sums of all chunks, added in their order: E[z zᵀ] of every group, and the groups together."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._names = tuple(groups)
        self._groups = [Sums(place) for place in range(len(groups))]
        self._aliases: dict[str, str] = {}

    def add(self, chunk: Sums) -> None:
        """Add the sums of the next chunk."""
        held = self._groups[chunk.group]
        for own, owner in chunk.aliases.items():
            self._aliases.setdefault(own, owner)
        for own, total in chunk.totals.items():
            held.totals[own] = held.totals[own] + total if own in held.totals else total
            held.rows[own] = held.rows.get(own, 0) + chunk.rows[own]

    def result(self) -> InputCovariances:
        """Return the covariances of all chunks that were added."""
        found: dict[str, Tensor] = {}
        counts = dict.fromkeys(self._names, 0)
        for name, group in zip(self._names, self._groups, strict=True):
            counts[name] += max(group.rows.values(), default=0)
            for own in list(group.totals):
                share = group.totals.pop(own) / group.rows[own]
                found[own] = found[own] + share if own in found else share
        matrices = {name: total.cpu().numpy() for name, total in found.items()}
        aliases = {name: owner for name, owner in self._aliases.items() if owner in found}
        return InputCovariances(matrices, aliases, counts)


class Collector:
    """Runs chunks through a model, and sums what hooks before its linear layers see."""

    def __init__(self, embedder: Embedder, components: Sequence[str] = DEFAULT_COMPONENTS) -> None:
        self._embedder = embedder
        held = embedder.state_dict
        parts = component_map(held.tensors, held.config, embedder.components, strict=False)
        linear = embedder.linear_layers()
        self._layers = {name: linear[name] for name in Selector(parts).names(components, linear)}
        if not self._layers:
            raise UsageError(
                f"there is no linear layer in {', '.join(components)}",
                next_move=f"this model has {', '.join(sorted(set(parts.values())))}",
            )
        self._in_backbone = {name for name in self._layers if parts[name] == BACKBONE}
        self._sums = Sums(0)
        self._mask: Tensor | None = None
        self._seen: list[tuple[str, Tensor]] = []

    def check(self, data: Data) -> None:
        """Raise UsageError where the model does not take the items of the data."""
        for modality, source in {
            (one.modality, one.source.source) for one in data.chunks if isinstance(one.source, Pairs)
        }:
            self._embedder.check_takes(modality, source)

    def run(self, chunk: Chunk, advance: Callable[[int], object] = lambda _: None) -> Sums:
        """Return the sums over one chunk. advance: called with the number of items that were run."""
        self._sums = Sums(chunk.group)
        handles = [layer.register_forward_pre_hook(self._hook(own)) for own, layer in self._layers.items()]
        try:
            for start in range(chunk.start, chunk.stop, chunk.size):
                stop = min(start + chunk.size, chunk.stop)
                source = chunk.source
                self._run(source.load(start, stop) if isinstance(source, Pairs) else source[start:stop], chunk)
                advance(stop - start)
        finally:
            for handle in handles:
                handle.remove()
        return self._sums

    def _run(self, items: Sequence[Any], chunk: Chunk) -> None:
        """One batch through the whole model."""
        features = self._embedder.prepare(items, chunk.modality, chunk.role)
        self._mask = features.get("attention_mask")
        self._seen = []
        with self._embedder.inference():
            self._embedder.embed(features)
        self._seen = []

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            value = inputs[0]
            owner = self._owner(name, value)
            if owner == name:
                self._add(name, value)

        return hook

    def _owner(self, name: str, value: Tensor) -> str:
        """The first layer that read this very tensor: query, key and value share one matrix. Settled by the first
        batch of a chunk.
        """
        aliases = self._sums.aliases
        if name not in aliases:
            owner = next((own for own, seen in self._seen if seen is value), name)
            aliases[name] = owner
            if owner == name:
                self._seen.append((name, value))
        return aliases[name]

    def _add(self, name: str, value: Tensor) -> None:
        mask, sums = self._mask, self._sums
        if name in self._in_backbone and mask is not None and value.shape[:-1] == mask.shape:
            rows = value[mask.bool().to(value.device)]
        else:
            rows = value.reshape(-1, value.shape[-1])
        rows = rows.float()
        product = (rows.mT @ rows).double()
        sums.totals[name] = sums.totals[name] + product if name in sums.totals else product
        sums.rows[name] = sums.rows.get(name, 0) + len(rows)


def _checked(probes: Any) -> Mapping[str, Pairs]:
    if isinstance(probes, Mapping):
        return {str(name): read_pairs(source).check() for name, source in probes.items()}
    pairs = read_pairs(probes).check()
    return {pairs.modality: pairs}
