"""Configs side by side: what makes two models with tensors of the same shapes compute different things."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from taskmerge.checkpoints.config_sections import text_section
from taskmerge.words import modalities

# One name for what transformers' versions and architectures call differently.
_SPELLINGS = {
    "n_head": "num_attention_heads", "n_heads": "num_attention_heads", "num_heads": "num_attention_heads",
    "activation_function": "hidden_act", "hidden_activation": "hidden_act", "activation": "hidden_act",
    "norm_epsilon": "norm eps", "norm_eps": "norm eps", "layer_norm_eps": "norm eps", "rms_norm_eps": "norm eps",
    "layer_norm_epsilon": "norm eps", "n_positions": "max_position_embeddings",
}  # fmt: skip
_MEANINGLESS = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
_FUNCTION = re.compile(
    r"rope_\w+|partial_rotary_factor|rotary_\w+|max_position_embeddings|norm eps|layer_types|sliding_window\w*"
    r"|use_sliding_window|max_window_layers|attention_bias|attention_chunk_size|attn_logit_softcapping"
    r"|final_logit_softcapping|query_pre_attn_scalar|attn_scale|logits?_scal\w+|embedding_multiplier|residual_multiplier"
    r"|attention_multiplier|scale_\w+|position_embedding_type|is_causal|is_decoder|use_bidirectional_attention"
    r"|use_cache_position|qk_norm|use_qk_norm|parallel_attn|alibi|norm_topk_prob|num_experts_per_tok|router_\w+"
    r"|routed_scaling_factor|scoring_func|topk_method|pooling\w*|patch_size|temporal_patch_size|spatial_merge_size"
    r"|image_size|num_mel_bins|fullatt_block_indexes|deepstack_visual_indexes|window_size|n_window\w*"
    r"|mm_tokens_per_image|vision_feature_\w+|downsample_ratio|num_hidden_layers|tie_word_embeddings|problem_type"
)
_LAYERS = ("num_hidden_layers", "tie_word_embeddings")  # told by the tensors themselves, with the way on


@dataclass(frozen=True)
class Difference:
    """One setting that differs. key: its dotted name.  serious: whether weights of the two mean different things."""

    key: str
    ours: Any
    theirs: Any
    serious: bool


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Difference]:
    """Return the settings that differ between two models' configs and change the result of the same tensors.

    The language models' sections are compared, at any place, and those of each modality. A setting that only one
    of them has is a default of the other, which the file does not state: it is not compared.
    """
    found: list[Difference] = []
    for name, one, two in _pairs(ours, theirs):
        mine, other = _settings(one), _settings(two)
        for key in mine.keys() & other.keys():
            if mine[key] != other[key] and key not in _LAYERS:
                serious = key in _MEANINGLESS
                if serious or _FUNCTION.fullmatch(key.partition(".")[0]):
                    found.append(Difference(f"{name}.{key}" if name else key, mine[key], other[key], serious))
    return sorted(found, key=lambda one: (not one.serious, one.key))


def swapped_labels(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first class with different numbers in the two models: each one's name of that number; else None."""
    one, two = _labels(ours), _labels(theirs)
    for number in sorted(one.keys() & two.keys()):
        if one[number] != two[number]:
            return one[number], two[number]
    return None


def _labels(config: Mapping[str, Any]) -> dict[str, str]:
    """Number of a class -> its name, but for names that only count (LABEL_0)."""
    table = config.get("id2label")
    if not isinstance(table, Mapping):
        return {}
    said = {str(number): str(label) for number, label in table.items()}
    return {} if all(re.fullmatch(r"LABEL_[0-9]+", label) for label in said.values()) else said


def _pairs(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    mine, other = text_section(ours), text_section(theirs)
    yield "", mine, other
    for key, section in ours.items():
        if isinstance(section, Mapping) and section is not mine and isinstance(theirs.get(key), Mapping):
            spoken = modalities.tower_in(key.replace("-", "_").split("_")) is not None
            if spoken and section.get("model_type") == theirs[key].get("model_type"):
                yield key, section, theirs[key]


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by one name each; rope's, which older files keep at the top, as the newer ones do."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if value is None or (isinstance(value, Mapping) and not key.startswith("rope_")):
            continue
        if key in ("rope_parameters", "rope_scaling") and isinstance(value, Mapping):
            for inner, one in value.items():
                name = "rope_type" if inner == "type" else inner
                found[name if name.startswith("rope_") else f"rope_{name}"] = _plain(one)
        else:
            found[_SPELLINGS.get(key, key)] = _plain(value)
    if "rope_theta" in found:
        found.setdefault("rope_type", "default")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return float(value)
