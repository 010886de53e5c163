"""What every linear layer of a specialist sees: one streaming pass over unlabelled probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.components import BACKBONE, component_map
from taskmerge.checkpoints.covariances import InputCovariances
from taskmerge.checkpoints.selector import Selector
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.embedders.prompts import Role
from taskmerge.errors import UsageError
from taskmerge.metrics.retrieval import collapse
from taskmerge.words.devices import device_or_default

if TYPE_CHECKING:
    from torch import Tensor, nn

    from taskmerge.embedders.takes import Model, PairSets, PromptSource

BATCH_SIZE = 32
DEFAULT_COMPONENTS = (BACKBONE, "vision_encoder", "audio_encoder", "vision_projector")


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
    """E[z zᵀ] of the inputs z of every linear layer, over the probes' items plus the same over the texts.

    model: what `open_embedder` takes.  probes: what `read_pairs` takes, or {name: …} for several modalities;
    their texts need not be pairs: nothing is trained.  texts: default: the probes' own distinct texts.  components:
    whose layers are measured.  prompts: see `Embedder.prompted`; items and texts are embedded in their roles (see
    `Pairs.roles`).  Each group (a modality, the texts) is normalised by its own number of tokens, so that many tokens
    of one do not drown the other; padding is left out.

    Memory: one float64 matrix a distinct input, whatever the number of probes. The result is keyed by the names the
    tensors have in the model's file, see `Embedder.state_dict`. Raises UsageError for broken
    probes before the model runs.
    """
    device = device_or_default(device)
    sets = _checked(probes)
    embedder = open_embedder(model, device=device).prompted(prompts)
    for pairs in sets.values():
        embedder.check_takes(pairs.modality, pairs.source)
    sums = _Sums(embedder, components)
    for name, pairs in sets.items():
        with sums.group(name):
            for items, _ in pairs.batches(batch_size):
                sums.run(items, pairs.modality, pairs.roles[0])
    with sums.group("text"):
        for role, wanted in _texts(sets, texts).items():
            for start in range(0, len(wanted), batch_size):
                sums.run(wanted[start : start + batch_size], "text", role)
    return sums.result()


def _texts(sets: Mapping[str, Pairs], texts: Sequence[str] | None) -> dict[Role, list[str]]:
    """The texts by role: those handed in, which are found by the items, else the distinct ones of the probes."""
    if texts is not None:
        return {"document": list(texts)}
    keys = [(pairs.roles[1], text) for pairs in sets.values() for text in pairs.texts if text]
    by_role: dict[Role, list[str]] = {}
    for role, text in collapse(keys)[0]:
        by_role.setdefault(role, []).append(text)
    return by_role


class _Sums:
    """Σ z zᵀ of every linear layer, by the name of its weight, filled by hooks."""

    def __init__(self, embedder: Embedder, components: Sequence[str]) -> None:
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
        self._totals: dict[str, Tensor] = {}
        self._group: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._mask: Tensor | None = None
        self._aliases: dict[str, str] = {}
        self._seen: list[tuple[str, Tensor]] = []
        self._counts: dict[str, int] = {}

    @contextmanager
    def group(self, name: str) -> Iterator[None]:
        """What runs inside is one group: added to the total divided by its own number of rows."""
        self._group, self._rows = {}, {}
        handles = [layer.register_forward_pre_hook(self._hook(own)) for own, layer in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for own, total in self._group.items():
            share = total / self._rows[own]
            self._totals[own] = self._totals[own] + share if own in self._totals else share
        self._counts[name] = max(self._rows.values(), default=0)

    def run(self, items: Sequence[Any], modality: str, role: Role) -> None:
        """One batch through the whole model."""
        features = self._embedder.prepare(items, modality, role)
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
        batch.
        """
        if name not in self._aliases:
            owner = next((own for own, seen in self._seen if seen is value), name)
            self._aliases[name] = owner
            if owner == name:
                self._seen.append((name, value))
        return self._aliases[name]

    def _add(self, name: str, value: Tensor) -> None:
        mask = self._mask
        if name in self._in_backbone and mask is not None and value.shape[:-1] == mask.shape:
            rows = value[mask.bool().to(value.device)]
        else:
            rows = value.reshape(-1, value.shape[-1])
        rows = rows.float()
        product = (rows.mT @ rows).double()
        self._group[name] = self._group[name] + product if name in self._group else product
        self._rows[name] = self._rows.get(name, 0) + len(rows)

    def result(self) -> InputCovariances:
        matrices = {name: total.cpu().numpy() for name, total in self._totals.items()}
        aliases = {name: owner for name, owner in self._aliases.items() if owner in self._totals}
        return InputCovariances(matrices, aliases, self._counts)


def _checked(probes: Any) -> Mapping[str, Pairs]:
    if isinstance(probes, Mapping):
        return {str(name): read_pairs(source).check() for name, source in probes.items()}
    pairs = read_pairs(probes).check()
    return {pairs.modality: pairs}
