"""Small embedders for the drift tests: a grafted one and one that owns its audio tower, with sounds to probe them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = ["a", "dog", "cat", "red", "blue", "sound", "of", "tone", "high", "low", "bird", "rain"]


def qwen2_audio(folder: Path) -> Any:
    """A random Qwen2-Audio of 2 layers as a SentenceTransformer; written to `folder`."""
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    special = ["<pad>", "<eos>", "<unk>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left",
        extra_special_tokens={
            "audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"
        },
    )  # fmt: skip
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    audio = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 8,
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "max_source_positions": 50,
    }
    placeholder: Any = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    config = Qwen2AudioConfig(text_config=text, audio_config=audio, audio_token_index=placeholder)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type']=='audio' %}"
        "<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ c['text'] }}{% endif %} {% endfor %}{% endfor %}"
    )
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1, n_fft=400, hop_length=160)
    torch.manual_seed(0)
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer, chat_template=template).save_pretrained(
        folder
    )
    return SentenceTransformer(str(folder), device="cpu")


def tiny_grafted(folder: Path) -> Any:
    """A random BERT of 2 layers with a grafted log-mel ear, as a SentenceTransformer; written below `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from taskmerge.embedders import graft

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    return graft(
        str(folder / "backbone"), "audio", encoder="log_mel", projector="linear", out=folder / "grafted", pooling="mean"
    )


def moved(model: Any, amount: float, *, seed: int = 1, names: str = "layers.") -> Any:
    """A copy of an embedder with noise of relative size `amount` on tensors whose name has `names` (no towers)."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other[0].named_parameters():
            if names in name and "audio_tower" not in name and "audio_encoder" not in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(amount * parameter.float().std().nan_to_num(0.0) * noise)
    return other


def sounds(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` pairs of a noise of its own spectrum and a text."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        time = np.arange(3200 + 160 * (number % 7)) / 16000
        wave = np.sin(2 * np.pi * rng.uniform(200, 4000) * time) * 0.3 + 0.02 * rng.standard_normal(len(time))
        text = " ".join(rng.choice(WORDS, 4))
        pairs.append({"audio": {"array": wave.astype(np.float32), "sampling_rate": 16000}, "text": text})
    return pairs
