"""Tiny random models of every class a checkpoint may be of: one row per class; a new class is one row.

Each is a few thousand parameters, built from a config alone and saved in the ways users save it. No download, no
tokenizer, no processor: inputs are prepared tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Inputs = Callable[[], dict[str, torch.Tensor]]

VOCABULARY = 64
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT: dict[str, Any] = {
    key: TEXT[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
} | {
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
PICTURE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
WHISPER_ENCODER: dict[str, Any] = {
    "num_mel_bins": 8,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "max_source_positions": 50,
}
AUDIO_ENCODER = {
    "num_mel_bins": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_source_positions": 50,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "embed_dim": 16,
    "out_hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "window_size": 16,
}
SPECIAL = {
    "pad_token_id": 0,
    "image_token_id": 60,
    "audio_token_id": 61,
    "video_token_id": 62,
    "vision_start_token_id": 59,
    "audio_start_token_id": 58,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def text() -> dict[str, torch.Tensor]:
    """Two rows of token ids, no padding: int64 (2, 8)."""
    ids = torch.randint(3, 40, (2, 8), generator=torch.Generator().manual_seed(7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pixels(size: int = 16) -> Inputs:
    return lambda: {"pixel_values": _random(2, 3, size, size)}


def text_and(**extra: Inputs) -> Inputs:
    def make() -> dict[str, torch.Tensor]:
        given = text()
        for make_one in extra.values():
            given |= make_one()
        return given

    return make


def waveform() -> dict[str, torch.Tensor]:
    return {"input_values": _random(2, 400)}


def clap() -> dict[str, torch.Tensor]:
    return text() | {"input_features": _random(2, 1, 64, 16), "is_longer": torch.zeros(2, 1, dtype=torch.bool)}


def whisper() -> dict[str, torch.Tensor]:
    return {"input_features": _random(2, 8, 100), "decoder_input_ids": text()["input_ids"]}


def image_tokens(token: int, count: int, **extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two rows of text in which `count` places are the picture's (or sound's)."""
    ids = torch.cat([text()["input_ids"][:, :4], torch.full((2, count), token), text()["input_ids"][:, 4:]], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}


@dataclass(frozen=True)
class Kind:
    """One row: `classes` are those users save it from, the full one first; `config` makes the tiny one."""

    name: str
    model_type: str
    classes: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Inputs = text
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    auto: bool = True  # whether AutoModel knows it

    def build(self, class_name: str | None = None, seed: int = 0, variant: str | None = None) -> Any:
        """A random float32 model of transformers in eval mode; the same seed gives the same weights."""
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        settings = dict(self.config) | dict(self.variants.get(variant or "", {}))
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = CONFIG_MAPPING[self.model_type](**settings)
            config._attn_implementation = "eager"
            model = getattr(transformers, class_name or self.classes[0])(config)
        for parameter in model.parameters():
            if parameter.abs().max() == 0 or parameter.max() == parameter.min():  # biases at 0, norms at 1
                torch.nn.init.normal_(parameter, mean=float(parameter.detach().flatten()[0]), std=0.05)
        return model.eval()


def perturb(model: Any, seed: int, step: float = 0.05) -> Any:
    """The same model with every parameter and every floating buffer moved: a specialist, in place, and returned.

    Bounds of ±inf stay; buffers are stretched, so that variances stay positive.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(step * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1 + step * torch.rand(buffer.shape, generator=generator).to(buffer.dtype))
    return model


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32, shard_size: str = "5GB") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def _bert(name: str, model_type: str, stem: str, **config: Any) -> Kind:
    return Kind(name, model_type, (f"{stem}ForMaskedLM", f"{stem}Model"), BERT | config)


def _decoder(name: str, model_type: str, stem: str, **config: Any) -> Kind:
    untied = {"tie_word_embeddings": False}
    return Kind(
        name,
        model_type,
        (f"{stem}ForCausalLM", f"{stem}Model"),
        TEXT | untied | config,
        variants={"tied": {"tie_word_embeddings": True}},
    )


def _qwen_pixels(token: int, patches: int = 16) -> Inputs:
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])

    def make() -> dict[str, torch.Tensor]:
        given = image_tokens(token, patches // 4)
        kinds = (given["input_ids"] == token).int()
        return given | {
            "pixel_values": _random(2 * patches, 3 * 2 * 4 * 4),
            "image_grid_thw": grid,
            "mm_token_type_ids": kinds,
        }

    return make


KINDS: tuple[Kind, ...] = (
    _bert("BERT", "bert", "Bert"),
    _bert("RoBERTa", "roberta", "Roberta"),
    _bert("XLM-R", "xlm-roberta", "XLMRoberta"),
    _bert("MPNet", "mpnet", "MPNet"),
    _bert("ModernBERT", "modernbert", "ModernBert", pad_token_id=0, local_attention=8),
    Kind(
        "DistilBERT",
        "distilbert",
        ("DistilBertForMaskedLM", "DistilBertModel"),
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
    _decoder("Qwen2", "qwen2", "Qwen2"),
    _decoder("Qwen3", "qwen3", "Qwen3"),
    _decoder("Llama", "llama", "Llama"),
    _decoder("Mistral", "mistral", "Mistral"),
    Kind("Gemma 3 text", "gemma3_text", ("Gemma3ForCausalLM", "Gemma3TextModel"), TEXT),
    Kind(
        "T5 encoder",
        "t5",
        ("T5EncoderModel",),
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"tie_word_embeddings": True},
        auto=False,  # it gives the decoder too
    ),
    Kind(
        "CLIP",
        "clip",
        ("CLIPModel",),
        {"text_config": BERT | {"projection_dim": 16}, "vision_config": PICTURE, "projection_dim": 16},
        text_and(pixels=pixels()),
    ),
    Kind(
        "SigLIP",
        "siglip",
        ("SiglipModel",),
        {"text_config": BERT | {"hidden_size": 16}, "vision_config": PICTURE},
        text_and(pixels=pixels()),
    ),
    Kind("ViT", "vit", ("ViTForImageClassification", "ViTModel"), PICTURE, pixels()),
    Kind("DINOv2", "dinov2", ("Dinov2ForImageClassification", "Dinov2Model"), PICTURE | {"mlp_ratio": 2}, pixels()),
    Kind(
        "CLAP",
        "clap",
        ("ClapModel",),
        {
            "text_config": BERT | {"projection_dim": 16},
            "audio_config": {
                "window_size": 4,
                "num_mel_bins": 16,
                "spec_size": 64,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "patch_embeds_hidden_size": 8,
                "hidden_size": 16,
                "depths": [1, 1],
                "num_attention_heads": [2, 2],
                "projection_dim": 16,
            },
            "projection_dim": 16,
        },
        clap,
    ),
    Kind(
        "Wav2Vec2",
        "wav2vec2",
        ("Wav2Vec2ForCTC", "Wav2Vec2Model"),
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "conv_dim": [16, 16],
            "conv_stride": [5, 2],
            "conv_kernel": [10, 3],
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        },
        waveform,
    ),
    Kind(
        "Whisper",
        "whisper",
        ("WhisperForConditionalGeneration", "WhisperModel"),
        WHISPER_ENCODER
        | {
            "vocab_size": VOCABULARY,
            "decoder_layers": 2,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32,
            "max_target_positions": 40,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        whisper,
    ),
    Kind(
        "LLaVA",
        "llava",
        ("LlavaForConditionalGeneration", "LlavaModel"),
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **PICTURE, "projection_dim": 16},
            "image_token_index": 60,
        },
        lambda: image_tokens(60, 16, pixel_values=_random(2, 3, 16, 16)),
    ),
    Kind(
        "Qwen2-VL",
        "qwen2_vl",
        ("Qwen2VLForConditionalGeneration", "Qwen2VLModel"),
        {"text_config": TEXT | ROPE, "vision_config": QWEN_VISION | {"hidden_size": 32}, "image_token_id": 60},
        _qwen_pixels(60),
    ),
    Kind(
        "Qwen2.5-VL",
        "qwen2_5_vl",
        ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
        {"text_config": TEXT | ROPE, "vision_config": QWEN_VISION, "image_token_id": 60},
        _qwen_pixels(60),
    ),
    Kind(
        "Qwen3-VL",
        "qwen3_vl",
        ("Qwen3VLForConditionalGeneration", "Qwen3VLModel"),
        {"text_config": TEXT | ROPE, "vision_config": QWEN_VISION, "image_token_id": 60},
        _qwen_pixels(60),
    ),
    Kind(
        "Gemma 3",
        "gemma3",
        ("Gemma3ForConditionalGeneration", "Gemma3Model"),
        {
            "text_config": TEXT,
            "vision_config": {"model_type": "siglip_vision_model", **PICTURE},
            "mm_tokens_per_image": 4,
            "image_token_index": 60,
        },
        lambda: image_tokens(60, 4, pixel_values=_random(2, 3, 16, 16)),
    ),
    Kind(
        "Qwen2-Audio",
        "qwen2_audio",
        ("Qwen2AudioForConditionalGeneration", "Qwen2AudioModel"),
        {
            "text_config": {"model_type": "qwen2", "tie_word_embeddings": False, **TEXT},
            "audio_config": {"model_type": "qwen2_audio_encoder", **WHISPER_ENCODER},
            "audio_token_index": 61,
        },
        lambda: image_tokens(
            61, 25, input_features=_random(2, 8, 100), feature_attention_mask=torch.ones(2, 100, dtype=torch.long)
        ),
    ),
    Kind(
        "Voxtral",
        "voxtral",
        ("VoxtralForConditionalGeneration", "VoxtralModel"),
        {
            "text_config": {"model_type": "llama", **TEXT},
            "audio_config": {"model_type": "voxtral_encoder", **AUDIO_ENCODER, "intermediate_size": 64},
            "audio_token_id": 61,
        },
    ),
    Kind(
        "AudioFlamingo 3",
        "audioflamingo3",
        ("AudioFlamingo3ForConditionalGeneration", "AudioFlamingo3Model"),
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "audio_config": {"model_type": "audioflamingo3_encoder", **AUDIO_ENCODER},
            "audio_token_id": 61,
        },
    ),
    Kind(
        "Qwen2.5-Omni thinker",
        "qwen2_5_omni_thinker",
        ("Qwen2_5OmniThinkerForConditionalGeneration",),
        {
            "text_config": TEXT | ROPE,
            "audio_config": WHISPER_ENCODER | {"output_dim": 32, "n_window": 4},
            "vision_config": QWEN_VISION,
            **SPECIAL,
        },
    ),
    Kind(
        "Qwen3-Omni-MoE thinker",
        "qwen3_omni_moe_thinker",
        ("Qwen3OmniMoeThinkerForConditionalGeneration",),
        {
            "text_config": TEXT | ROPE | MOE,
            "audio_config": WHISPER_ENCODER | {"output_dim": 32, "n_window": 4, "downsample_hidden_size": 8},
            "vision_config": QWEN_VISION,
            **SPECIAL,
        },
    ),
    Kind(
        "EmbeddingGemma 2",
        "embedding_gemma2",
        ("EmbeddingGemma2Model",),
        {
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "global_head_dim": 16,
                "num_global_key_value_heads": 1,
                "hidden_size_per_layer_input": 8,
                "embedding_dim": 24,
                "max_position_embeddings": 256,
            },
            "vision_config": {
                "model_type": "gemma4_vision",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "position_embedding_size": 64,
            },
            "audio_config": {
                "model_type": "gemma4_audio",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "subsampling_conv_channels": [128, 4],
                "output_proj_dims": 20,
            },
            "image_token_id": 60,
            "audio_token_id": 61,
            "video_token_id": 62,
        },
    ),
    Kind(
        "Phi-4-multimodal",
        "phi4_multimodal",
        ("Phi4MultimodalForCausalLM", "Phi4MultimodalModel"),
        TEXT
        | {
            "vision_config": PICTURE | {"image_size": 24, "crop_size": 24},
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "depthwise_separable_out_channel": 16,
                "nemo_conv_channels": 16,
                "input_size": 16,
                "time_reduction": 4,
            },
        },
    ),
    Kind(
        "ColQwen2",
        "colqwen2",
        ("ColQwen2ForRetrieval",),
        {
            "vlm_config": {
                "model_type": "qwen2_vl",
                "text_config": TEXT | ROPE,
                "vision_config": QWEN_VISION | {"hidden_size": 32},
                "image_token_id": 60,
            },
            "embedding_dim": 8,
        },
        auto=False,
    ),
    Kind(
        "Qwen3-MoE",
        "qwen3_moe",
        ("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
        TEXT | MOE | {"tie_word_embeddings": False},
    ),
)

BY_NAME = {kind.name: kind for kind in KINDS}
