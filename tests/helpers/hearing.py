"""An audio specialist that somebody else saved: a class of its own, names of its own, tokens of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from places import ROOT

EXAMPLES = ROOT / "examples" / "own_embedder"
sys.path.insert(0, str(EXAMPLES))
EAR = {
    "num_mel_bins": 8, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "max_source_positions": 50, "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    "decoder_start_token_id": 1,
}  # fmt: skip


def hearing_specialist(base: Path, folder: Path, step: float = 0.02, seed: int = 0) -> Path:
    """`hearing_model.HearingModel` on a Qwen3-VL folder, with four tokens more, its language model moved by `step`."""
    import hearing_model
    from transformers import AutoConfig, AutoTokenizer, Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(hearing_model.NEW_TOKENS), special_tokens=True)
    config: Any = AutoConfig.from_pretrained(base)
    config.audio_config, config.architectures = dict(EAR), ["HearingModel"]
    config.audio_token_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    model = hearing_model.HearingModel(config)
    model.load_state_dict(Qwen3VLForConditionalGeneration.from_pretrained(base).model.state_dict(), strict=False)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(step * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
