"""Which tensor is backbone, encoder, projector, head …: from header names and config.json alone.

Every tensor has exactly one component:

    backbone                         the language model; in a model of one tower, that tower
    embeddings                       its token embedding table(s), apart from the backbone because rows can be new
    head                             lm_head, classifiers, BERT's pooler, logit scales
    {vision,audio}_encoder           the tower of a modality
    {vision,audio,text}_projector    what leads from a tower into the backbone's (or the shared) space
    projector                        a projector shared by several modalities
    speech_decoder, image_decoder    talker and vocoder of a speaking model; what draws, in a drawing one
    buffers                          what is not trained by gradient, wherever it sits

Rules look at whole path components, never at parts of words: `out_proj` and `patch_embed.proj` are no projectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from taskmerge.checkpoints.selector import Selector, selected
from taskmerge.errors import MergeError, Problem
from taskmerge.numbers.dtypes import DTYPES
from taskmerge.words import modalities
from taskmerge.words.numerals import is_whole

BACKBONE, EMBEDDINGS, HEAD, BUFFERS = "backbone", "embeddings", "head", "buffers"
COMPONENTS: tuple[str, ...] = (
    BACKBONE,
    EMBEDDINGS,
    HEAD,
    *(f"{tower}_{part}" for tower in modalities.TOWERS for part in ("encoder", "projector")),
    "text_projector",
    "projector",
    "speech_decoder",
    "image_decoder",
    BUFFERS,
)

_MODALITY_WORD = f"({'|'.join((*modalities.WORDS, modalities.TEXT))})"
_PROJECTOR = re.compile(
    r"multi_modal_projector|mm_projector|projector|connector|adapter|adaptor|aligner|resampler|perceiver|mlp1|qformer"
    r"|query_tokens|language_projection|image_to_text_projection|visual_embeddings_table|modality_projection|image_newline|embed_vision|embed_audio"
    r"|(\w+_)?merger(_list)?|(up|down)_proj_for_\w+"
    rf"|(multi_modal_)?{_MODALITY_WORD}_(projection|projector|proj|adapter|adaptor|newline)(_(up|down))?"
)
# The last stage of a tower that has no projector outside it (Qwen's mergers and audio projections).
_TOWER_TAIL = re.compile(r"(\w+_)?merger(_list)?|proj\d?|ln_post|ln_q|projector|adapter")
_HEAD = re.compile(
    r"lm_head|cls|predictions|classifier|score|qa_outputs|embedding_proj_layer|custom_text_proj|logit_scale(_[at])?|logit_bias"
    r"|vocab_(transform|layer_norm|projector)|proj_out|generator_lm_head"
)
_TOKEN_TABLE = re.compile(
    r"embed_tokens(_per_layer)?|word_embeddings?|wte|tok_embeddings|token_embedding|embed_in|shared|word_embedding"
)
_BUFFER = re.compile(
    r"position_ids|token_type_ids|running_(mean|var)|num_batches_tracked|(original_)?inv_freq|masked_bias"
    r"|relative_position_index|relative_coords_table|(input|output)_(min|max)|layer_scalar|std_(bias|scale)"
    r"|global_(mean|invstd)|e_score_correction_bias|embed_scale|rotary_emb_inv_freq|final_logits_bias|pos_idx_to_embed"
)
_SPEECH_DECODER = re.compile(r"talker|token2wav|code2wav|code_predictor|vocoder")
_LAYERS = frozenset(
    ["layers", "layer", "blocks", "block", "h", "encoders", "resblocks", "stages", "decoder_layers", "encoder_layers"]
)
# Path components that arrange a model without naming it: what stands before them is the base model's prefix.
_STRUCTURE = frozenset(("encoder", "decoder", "transformer", "embeddings")) | _LAYERS
# Model types whose names do not tell the modality: top-level part (inside the base prefix) -> component.
_EXCEPTIONS: dict[str, dict[str, str]] = {
    "whisper": {"encoder": "audio_encoder"},
    "speech_to_text": {"encoder": "audio_encoder"},
    "moonshine": {"encoder": "audio_encoder"},
    "speech-encoder-decoder": {"encoder": "audio_encoder"},
    "granite_speech": {"encoder": "audio_encoder"},
    "vision-encoder-decoder": {"encoder": "vision_encoder"},
    "janus": dict.fromkeys(
        ("vqmodel", "generation_embeddings", "generation_aligner", "generation_head"), "image_decoder"
    ),
    "emu3": {"vqmodel": "image_decoder"},
    "chameleon": {"vqmodel": "image_decoder"},
}


class HasDtype(Protocol):
    """What of a tensor's header is looked at: its safetensors dtype name."""

    @property
    def dtype(self) -> str: ...


class Components(Mapping[str, str]):
    """name -> component, for every tensor of one checkpoint, and what follows from it."""

    def __init__(self, assigned: Mapping[str, str], homes: Mapping[str, str]) -> None:
        self._assigned = dict(assigned)
        self._homes = dict(homes)
        self._roots = {component: _root(self.names(component)) for component in set(self._assigned.values())}
        self._depths: dict[str, int] = {}
        for name, component in self._assigned.items():
            if (index := layer_index(name)) is not None:
                self._depths[component] = max(self._depths.get(component, 0), index + 1)

    def __getitem__(self, name: str) -> str:
        return self._assigned[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._assigned)

    def __len__(self) -> int:
        return len(self._assigned)

    def names(self, component: str) -> list[str]:
        """Names of the component's tensors, in file order."""
        return [name for name, own in self._assigned.items() if own == component]

    def home(self, name: str) -> str:
        """The component whose module holds the tensor: differs from self[name] only for buffers."""
        return self._homes[name]

    def inner_name(self, name: str, component: str | None = None) -> str:
        """The name inside its component: "layers.3.mlp.up_proj.weight" whatever the file puts before it.

        component: the one to look from, for a buffer its home; left out: its own.
        """
        root = self._roots.get(component or self._assigned[name], "")
        return name[len(root) + 1 :] if root and name.startswith(f"{root}.") else name

    def depth(self, component: str) -> int:
        """Number of numbered layers in the component, 0 when it has none."""
        return self._depths.get(component, 0)


def component_map(
    tensors: Mapping[str, HasDtype],
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Sequence[str]] | None = None,
) -> Components:
    """The component of every tensor, from its name, its dtype and the config; no tensor is read.

    overrides: component -> patterns (`Selector`'s, in the components found without them); they win, in the order given,
    and may name components of the user's own. Raises MergeError when an override names nothing.
    """
    config = config or {}
    overrides = overrides or {}
    homes = _homes(tensors, config)
    if not {BACKBONE, EMBEDDINGS} & set(homes.values()):
        towers = {home for home in homes.values() if home.endswith("_encoder")}
        if len(towers) == 1:  # a tower saved alone is a model of its own
            homes = {name: BACKBONE if home in towers else home for name, home in homes.items()}
    assigned = {name: BUFFERS if is_buffer(name, info) else homes[name] for name, info in tensors.items()}
    return _overridden(Components(assigned, homes), overrides) if overrides else Components(assigned, homes)


def _homes(tensors: Mapping[str, HasDtype], config: Mapping[str, Any]) -> dict[str, str]:
    """The component of each name. A grafted embedder's backbone is placed as the model that it is."""
    found = _Layout.of(list(tensors), config).homes(tensors)
    own, before = config.get(BACKBONE), f"{BACKBONE}."
    inside = {name[len(before) :]: info for name, info in tensors.items() if name.startswith(before)}
    if isinstance(own, Mapping) and inside:
        found |= {before + name: home for name, home in _Layout.of(list(inside), own).homes(inside).items()}
    return found


def is_buffer(name: str, info: HasDtype) -> bool:
    """Whether a tensor is state that no gradient trains: integers, running statistics, bounds, fixed tables."""
    return not DTYPES[info.dtype].kind.endswith("float") or _BUFFER.fullmatch(name.rsplit(".", 1)[-1]) is not None


def layer_index(name: str) -> int | None:
    """The number of the layer a tensor stands in ("….layers.3.…" -> 3), None outside numbered layers."""
    parts = name.split(".")
    for container, number in pairwise(parts):
        if container in _LAYERS and is_whole(number):
            return int(number)
    return None


def is_token_table(name: str) -> bool:
    """Whether a tensor is a table with one row per token of the vocabulary."""
    parts = name.split(".")
    return len(parts) > 1 and parts[-1] == "weight" and _TOKEN_TABLE.fullmatch(parts[-2]) is not None


@dataclass(frozen=True)
class _Layout:
    """What must be known of all names together before one can be placed."""

    prefix: tuple[str, ...]  # of the base model: ("bert",), ("model",), or () when the base model itself was saved
    sole_modality: str | None
    outside_projectors: frozenset[str]  # modalities ("*": unsaid) with a projector outside their tower
    exceptions: Mapping[str, str]

    @classmethod
    def of(cls, names: Sequence[str], config: Mapping[str, Any]) -> _Layout:
        sole = _sole_modality(names, config)
        outside = set()
        for parts in {tuple(_unnumbered(name)) for name in names}:
            tower = _tower(parts)
            for part in parts[:tower] if tower is not None else parts:
                if _PROJECTOR.fullmatch(part):
                    outside.add(_modality(parts) or sole or "*")
        exceptions = _EXCEPTIONS.get(str(config.get("model_type", "")), {})
        return cls(_base_prefix(names), sole, frozenset(outside), exceptions)

    def homes(self, names: Iterable[str]) -> dict[str, str]:
        """The component of each name; names that differ only after their first number share it."""
        known: dict[tuple[str, bool], str] = {}
        found = {}
        for name in names:
            key = "/".join(_unnumbered(name)) if "/" not in name else name, is_token_table(name)
            if key not in known:
                known[key] = self.home(name)
            found[name] = known[key]
        return found

    def home(self, name: str) -> str:
        parts = _unnumbered(name)
        if any(_SPEECH_DECODER.fullmatch(part) for part in parts[:2]):
            return "speech_decoder"
        inside = parts[len(self.prefix) :] if tuple(parts[: len(self.prefix)]) == self.prefix else parts
        if inside and inside[0] in self.exceptions:
            return self.exceptions[inside[0]]
        tower = _tower(parts)
        for part in parts[:tower] if tower is not None else parts:
            if _PROJECTOR.fullmatch(part):
                return _join(_modality(parts) or ("text" if "text" in part.split("_") else self.sole_modality))
        if tower is not None:
            return self._in_tower(parts, tower)
        if "/" in name or any(_HEAD.fullmatch(part) for part in parts[:3]):
            return HEAD
        # The pooler stands inside the base model, yet classes with a head of their own lack it.
        if inside[:1] in (["pooler"], ["head"]) or parts in (["decoder", "weight"], ["decoder", "bias"]):
            return HEAD
        if self.prefix and inside is parts and parts[0] != "language_model":
            return HEAD
        return EMBEDDINGS if is_token_table(name) else BACKBONE

    def _in_tower(self, parts: Sequence[str], tower: int) -> str:
        modality = _modality([parts[tower]])
        rest = parts[tower + 1 :]
        if any(_PROJECTOR.fullmatch(part) and not _TOWER_TAIL.fullmatch(part) for part in rest):
            return _join(modality)
        no_other = modality not in self.outside_projectors and "*" not in self.outside_projectors
        if rest and no_other and _TOWER_TAIL.fullmatch(rest[0]):
            return _join(modality)
        return f"{modality}_encoder"


def _join(modality: str | None) -> str:
    return f"{modality}_projector" if modality else "projector"


def _unnumbered(name: str) -> list[str]:
    """Path components up to the first number: towers and projectors are named before their layers are counted."""
    parts = name.replace("/", ".").split(".")
    stop = next((place for place, part in enumerate(parts) if is_whole(part)), len(parts))
    return parts[:stop]


def _modality(parts: Iterable[str]) -> str | None:
    return modalities.tower_in(word for part in parts for word in part.split("_"))


def _tower(parts: Sequence[str]) -> int | None:
    """Place of the path component that opens a modality's tower."""
    for place, part in enumerate(parts):
        if part in ("language_model", "text_model"):
            return None
        if _modality([part]) and not _PROJECTOR.fullmatch(part) and place < len(parts) - (parts[-1] == part):
            return place
    return None


def _sole_modality(names: Sequence[str], config: Mapping[str, Any]) -> str | None:
    """The one modality beside text, from the config's sections or, failing that, from the names; None if several."""
    sections = [key for key in config if key.endswith("_config") and isinstance(config[key], Mapping)]
    found = {modality for key in sections if (modality := _modality([key.replace("-", "_")]))}
    found = found or {modality for name in names if (modality := _modality(_unnumbered(name)))}
    if not found and (modality := _modality([str(config.get("model_type", "")).replace("-", "_")])):
        found = {modality}
    return found.pop() if len(found) == 1 else None


def _base_prefix(names: Sequence[str]) -> tuple[str, ...]:
    """Path components before the backbone's numbered layers that name the base model: "bert", "model", or none."""
    for name in names:
        parts = name.split(".")
        index = layer_index(name)
        if index is None or _tower(_unnumbered(name)) is not None:
            continue
        if any(_PROJECTOR.fullmatch(part) for part in parts):  # its own numbered layers are not the backbone's
            continue
        prefix = parts[:1] if parts[0] not in _STRUCTURE else []
        return () if prefix in (["language_model"], ["text_model"]) else tuple(prefix)
    return ()


def _root(names: Sequence[str]) -> str:
    """The longest path all names share, cut before their last part and before any numbered container."""
    if not names:
        return ""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for place, parts in enumerate(zip(*paths, strict=False)):
        followers = {path[place + 1] for path in paths if len(path) > place + 1}
        if len(set(parts)) > 1 or is_whole(parts[0]) or any(is_whole(part) for part in followers):
            break
        shared.append(parts[0])
    return ".".join(shared)


def _overridden(found: Components, overrides: Mapping[str, Sequence[str]]) -> Components:
    """The components with some tensors given to others by the user."""
    selector = Selector(found)
    problems: list[Problem] = []
    for component, patterns in overrides.items():
        problems += selector.check(patterns, None, f"components: {component}")
    if problems:
        raise MergeError(problems)
    said = {name: own for name in found if (own := selected(overrides, selector, name)) is not None}
    assigned = {name: said.get(name, component) for name, component in found.items()}
    return Components(assigned, {name: said.get(name, found.home(name)) for name in found})
