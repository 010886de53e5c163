"""Components of a model from its tensor names and config.json alone; `components` also uses shapes.

Rules compare complete path components, never parts of words: `out_proj` and `patch_embed.proj` are not projectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from taskmerge.checkpoints.config_sections import layers, text_section, width
from taskmerge.checkpoints.structure import HasHeader, Stack, common, is_matrix, stacks
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
    "encoder",
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
TAIL = re.compile(r"(\w+_)?merger(_list)?|proj\d?|ln_post|ln_q|projector|adapter")
_HEAD = re.compile(
    r"lm_head|cls|predictions|classifier|score|qa_outputs|embedding_proj_layer|custom_text_proj|logit_scale(_[at])?|logit_bias"
    r"|vocab_(transform|layer_norm|projector)|proj_out|generator_lm_head"
)
_TOKEN_TABLE = re.compile(
    r"embed_tokens(_per_layer)?|word_embeddings?|wte|tok_embeddings|token_embedding|embed_in|shared|word_embedding"
    r"|embeddings|tokens_embed"
)
_ONLY_TABLES = frozenset(("embedding.weight", "emb_layer.weight", "embeddings"))
"""The complete names of token tables that are a model of their own: sentence-transformers' StaticEmbedding and
WordEmbeddings, and model2vec."""
_BUFFER = re.compile(
    r"position_ids|token_type_ids|running_(mean|var)|num_batches_tracked|(original_)?inv_freq|masked_bias"
    r"|relative_position_index|relative_coords_table|(input|output)_(min|max)|layer_scalar|std_(bias|scale)"
    r"|global_(mean|invstd)|e_score_correction_bias|embed_scale|rotary_emb_inv_freq|final_logits_bias|pos_idx_to_embed"
)
_SPEECH_DECODER = re.compile(r"talker|token2wav|code2wav|code_predictor|vocoder")
_LAYERS = frozenset(
    ["layers", "layer", "blocks", "block", "h", "encoders", "resblocks", "stages", "decoder_layers", "encoder_layers"]
)
# Path components that arrange a model without naming it: the part before them is the base model's prefix.
STRUCTURE = frozenset(("encoder", "decoder", "transformer", "embeddings")) | _LAYERS
# Words by which owners of a model call the language model in it.
_LANGUAGE = frozenset(("language", "text", "llm", "lm"))
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


def is_buffer(name: str, info: HasHeader) -> bool:
    """Return whether a tensor is state without gradients: integers, running statistics, bounds, fixed tables."""
    return not DTYPES[info.dtype].kind.endswith("float") or _is_state(name.rpartition(".")[2])


@lru_cache(maxsize=1024)
def _is_state(word: str) -> bool:
    return _BUFFER.fullmatch(word) is not None


def layer_index(name: str) -> int | None:
    """Return the number of a tensor's layer ("….layers.3.…" -> 3); None outside numbered layers."""
    parts = name.split(".")
    place = _layer_place(parts)
    return None if place is None else int(parts[place])


def with_layer(name: str, layer: int) -> str:
    """Return the name that a tensor of a layer has in another layer of the same kind."""
    parts = name.split(".")
    place = _layer_place(parts)
    return name if place is None else ".".join([*parts[:place], str(layer), *parts[place + 1 :]])


def _layer_place(parts: Sequence[str]) -> int | None:
    pairs = enumerate(pairwise(parts), 1)
    return next((place for place, (holder, number) in pairs if holder in _LAYERS and is_whole(number)), None)


def numbered(name: str) -> tuple[str, int | None]:
    """Return the path before the first number in a tensor's name, and that number."""
    number = _LATER_NUMBER.search(name)
    return (name, None) if number is None else (name[: number.start()], int(number[0][1:]))


def is_token_table(name: str) -> bool:
    """Return whether a tensor is a table with one row per token of the vocabulary."""
    return (name.endswith(".weight") and _is_table(name[:-7].rpartition(".")[2])) or name in _ONLY_TABLES


@lru_cache(maxsize=1024)
def _is_table(module: str) -> bool:
    return _TOKEN_TABLE.fullmatch(module) is not None


@dataclass(frozen=True)
class Placed:
    """The component of a tensor according to its name.

    sure: True if a word of the name decides it, False for the default. root: the path of the encoder or projector that
    contains it; () for other tensors.
    """

    component: str
    sure: bool = True
    root: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The properties of all names together that are needed to place one name."""

    prefix: tuple[str, ...]  # of the base model: ("bert",), ("model",), or () when the base model itself was saved
    sole_modality: str | None
    outside_projectors: frozenset[
        str
    ]  # modalities with a projector outside their tower; "*": one that does not say of what
    exceptions: Mapping[str, str]
    backbone: Stack | None  # None where no numbered layers can be told by their shapes
    stacks: tuple[Stack, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, HasHeader], config: Mapping[str, Any]) -> Layout:
        """Return the layout of one checkpoint, from headers and config."""
        sole = _sole_modality(tensors, config)
        outside = set()
        for path, leaf in {_before_numbers(name) for name in tensors}:
            parts = path.split(".") if path else []
            tower = _tower(parts, leaf)
            for part in parts[:tower] if tower is not None else parts:
                if _PROJECTOR.fullmatch(part):
                    outside.add(_modality(parts) or f"*{sole or ''}")
        exceptions = _EXCEPTIONS.get(str(config.get("model_type", "")), {})
        found = tuple(stacks(tensors))
        backbone = _backbone(found, tensors, config, exceptions)
        prefix = _base_prefix(list(tensors)) if backbone is None else _prefix_of(backbone.path)
        return cls(prefix, sole, frozenset(outside), exceptions, backbone, found)

    def placed(self, names: Iterable[str]) -> dict[str, Placed]:
        """Return the component of each name; names that differ only after their first number share it."""
        known: dict[tuple[str, bool, bool], Placed] = {}
        found = {}
        for name in names:
            path, leaf = _before_numbers(name)
            key = path if "/" not in name else name, leaf, is_token_table(name)
            if key not in known:
                known[key] = self.place(name)
            found[name] = known[key]
        return found

    def place(self, name: str) -> Placed:
        """Return the component of one name."""
        parts = _unnumbered(name)
        if any(_SPEECH_DECODER.fullmatch(part) for part in parts[:2]):
            return Placed("speech_decoder")
        inside = parts[len(self.prefix) :] if tuple(parts[: len(self.prefix)]) == self.prefix else parts
        if inside and inside[0] in self.exceptions:
            return Placed(self.exceptions[inside[0]])
        tower = _tower(parts, _before_numbers(name)[1])
        for at, part in enumerate(parts[:tower] if tower is not None else parts):
            if _PROJECTOR.fullmatch(part):
                said = _modality(parts) or ("text" if "text" in part.split("_") else None)
                return Placed(joined(said or self.sole_modality), said is not None, tuple(parts[: at + 1]))
        if tower is not None:
            return self._in_tower(parts, tower)
        if "/" in name or any(_HEAD.fullmatch(part) for part in parts[:3]):
            return Placed(HEAD)
        # The pooler is inside the base model, yet classes with a head of their own lack it.
        if inside[:1] in (["pooler"], ["head"]) or parts in (["decoder", "weight"], ["decoder", "bias"]):
            return Placed(HEAD)
        if self.prefix and inside is parts and parts[:1] != ["language_model"]:
            return Placed(HEAD, False)
        return Placed(EMBEDDINGS if is_token_table(name) else BACKBONE, False)

    def _in_tower(self, parts: Sequence[str], tower: int) -> Placed:
        modality, root = _modality([parts[tower]]), tuple(parts[: tower + 1])
        rest = parts[tower + 1 :]
        if any(_PROJECTOR.fullmatch(part) and not TAIL.fullmatch(part) for part in rest):
            return Placed(joined(modality), True, root)
        if rest and TAIL.fullmatch(rest[0]):
            outside = {"*", f"*{modality}", modality} & self.outside_projectors
            return (
                Placed(f"{modality}_encoder", False, (*root, rest[0]))
                if outside
                else Placed(joined(modality), True, root)
            )
        return Placed(f"{modality}_encoder", True, root)


_FIRST_NUMBER = re.compile(r"[0-9]{1,18}(?![^.])")
_LATER_NUMBER = re.compile(r"[.][0-9]{1,18}(?![^.])")


def joined(modality: str | None) -> str:
    """Return the name of the projector of a modality; "projector" for several modalities or an unknown one."""
    return f"{modality}_projector" if modality else "projector"


def _before_numbers(name: str) -> tuple[str, bool]:
    """The path up to the first number in a name, and whether it is the tensor's own: its name has no number."""
    if "/" in name:
        name = name.replace("/", ".")
    if name[:1].isdigit() and _FIRST_NUMBER.match(name):
        return "", False
    number = _LATER_NUMBER.search(name)
    return (name, True) if number is None else (name[: number.start()], False)


def _unnumbered(name: str) -> list[str]:
    """Path components up to the first number: towers and projectors are named before their layers are counted."""
    path, _ = _before_numbers(name)
    return path.split(".") if path else []


def _modality(parts: Iterable[str]) -> str | None:
    return modalities.tower_in(word for part in parts for word in part.split("_"))


def _tower(parts: Sequence[str], leaf: bool = True) -> int | None:
    """Place of the path component that opens a modality's tower. leaf: the last is a tensor, which holds nothing."""
    for place, part in enumerate(parts):
        if part in ("language_model", "text_model"):
            return None
        if _modality([part]) and not _PROJECTOR.fullmatch(part) and place < len(parts) - leaf:
            return place
    return None


def _sole_modality(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The one modality other than text, from the config's sections or else from the names; None if several."""
    sections = [key for key in config if key.endswith("_config") and isinstance(config[key], Mapping)]
    found = {modality for key in sections if (modality := _modality([key.replace("-", "_")]))}
    found = found or {modality for name in names if (modality := _modality(_unnumbered(name)))}
    if not found and (modality := _modality([str(config.get("model_type", "")).replace("-", "_")])):
        found = {modality}
    return found.pop() if len(found) == 1 else None


def _backbone(
    found: Sequence[Stack], tensors: Mapping[str, HasHeader], config: Mapping[str, Any], exceptions: Mapping[str, str]
) -> Stack | None:
    """The language model's layers; in a model of one tower, that tower's: the largest that no word calls a tower."""
    section = text_section(config)
    tables = [(tuple(name.split(".")), info.shape[-1]) for name, info in tensors.items()
              if is_token_table(name) and is_matrix(info.shape)]  # fmt: skip

    def rank(stack: Stack) -> tuple[bool, bool, bool, bool, int, int]:
        path = stack.path
        beside = max((common(path, table) for table, size in tables if size == stack.width), default=0)
        fits = stack.width == width(section) and stack.layers == layers(section)
        foreign = any(modalities.tower_of_encoder(part) for part in path)
        language = any(_LANGUAGE & set(part.split("_")) for part in path)
        return fits, not foreign, language, beside > 0 or (bool(tables) and len(path) == 1), beside, stack.entries

    free = [
        stack
        for stack in found
        if _tower(stack.path, leaf=False) is None and not any(_PROJECTOR.fullmatch(part) for part in stack.path)
        and not any(_SPEECH_DECODER.fullmatch(part) or part in exceptions for part in stack.path[:2])
    ]  # fmt: skip
    return max(free, key=rank, default=None)


def _prefix_of(path: Sequence[str]) -> tuple[str, ...]:
    prefix = path[:1] if path[0] not in STRUCTURE else ()
    return () if tuple(prefix) in (("language_model",), ("text_model",)) else tuple(prefix)


def _base_prefix(names: Sequence[str]) -> tuple[str, ...]:
    """Path components before the backbone's numbered layers that name the base model: "bert", "model", or none."""
    for name in names:
        parts = name.split(".")
        index = layer_index(name)
        if index is None or _tower(_unnumbered(name), leaf=False) is not None:
            continue
        if any(_PROJECTOR.fullmatch(part) for part in parts):  # its own numbered layers are not the backbone's
            continue
        return _prefix_of(parts)
    return ()
