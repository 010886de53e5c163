"""Small grafted models and media for tests: random weights, real tokenizer and file formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = "a dog cat bird rain sound of high low red blue left right".split()


def tiny_backbone(folder: Path, causal: bool = False) -> Path:
    """A 2-layer random BERT (or Llama) with a word-level tokenizer, saved as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]", "[unused1]"]
    vocabulary = {token: index for index, token in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if not causal:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        padding_side="left" if causal else "right",
    )  # fmt: skip
    size: dict[str, Any] = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    network = LlamaModel(LlamaConfig(**size)) if causal else BertModel(BertConfig(**size))
    network.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tone(frequency: float, seconds: float = 0.4, rate: int = 16000) -> np.ndarray:
    """A sine, float32."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def picture(shade: int, width: int = 48, height: int = 32) -> Any:
    """A PIL picture whose left half is of that shade of red."""
    from PIL import Image

    values = np.full((height, width, 3), 240, np.uint8)
    values[:, : width // 2] = (shade, 20, 20)
    return Image.fromarray(values)
