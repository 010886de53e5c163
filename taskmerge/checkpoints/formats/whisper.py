"""openai-whisper's files ({dims, model_state_dict}) under the names and the config of transformers' Whisper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

Tensor = TypeVar("Tensor")

_INSIDE = {
    "attn": "self_attn", "attn_ln": "self_attn_layer_norm",
    "cross_attn": "encoder_attn", "cross_attn_ln": "encoder_attn_layer_norm",
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj",
    "mlp_ln": "final_layer_norm", "blocks": "layers", "token_embedding": "embed_tokens",
    "ln_post": "layer_norm",
}  # fmt: skip
_SIZES = {
    "n_mels": "num_mel_bins", "n_vocab": "vocab_size",
    "n_audio_ctx": "max_source_positions", "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads", "n_audio_layer": "encoder_layers",
    "n_text_ctx": "max_target_positions", "n_text_head": "decoder_attention_heads", "n_text_layer": "decoder_layers",
}  # fmt: skip


def whisper_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under transformers' names; in both, the head is the token table."""
    return {_renamed(name): value for name, value in tensors.items()}


def whisper_config(dims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of transformers' WhisperConfig that follow from the sizes of an openai-whisper file."""
    sizes = {theirs: dims[ours] for ours, theirs in _SIZES.items() if type(dims.get(ours)) is int}
    config: dict[str, Any] = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], **sizes}
    if "d_model" in sizes:
        config |= {"encoder_ffn_dim": 4 * sizes["d_model"], "decoder_ffn_dim": 4 * sizes["d_model"]}
    return config | {"tie_word_embeddings": True}


def _renamed(name: str) -> str:
    name = re.sub(r"\bmlp\.0\.", "fc1.", re.sub(r"\bmlp\.2\.", "fc2.", name))
    name = re.sub(r"\bpositional_embedding$", "embed_positions.weight", name)
    name = re.sub(r"^decoder\.ln\.", "decoder.layer_norm.", name)
    return "model." + ".".join(_INSIDE.get(part, part) for part in name.split("."))
