"""The JSON files beside a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, generator
from fuzz.generators.common import MERGE, merge_commands
from fuzz.mutation import NAMES, damage_json, damaged_value, json_text, odd_value

BESIDE: dict[str, Any] = {
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2], "temperature": 0.7},
    "preprocessor_config.json": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}},
    "processor_config.json": {"processor_class": "Qwen2AudioProcessor"},
    "config_sentence_transformers.json": {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": None},
    "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
    "special_tokens_map.json": {"pad_token": "<pad>"},
    "added_tokens.json": {"<x>": 14},
    "chat_template.json": {"chat_template": "{% for m in messages %}{{ m }}{% endfor %}"},
    "taskmerge.json": {"kind": "model", "version": "0.1.0"},
    "adapter_config.json": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
    "quantize_config.json": {"bits": 4, "group_size": 128},
    "vocab.json": {"a": 0, "b": 1},
}
KEYS: dict[str, Any] = {
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "auto_map": {"AutoModel": "modeling_evil.Evil"},
    "rope_scaling": {"type": "yarn", "factor": 4.0},
    "text_config": {"hidden_size": 8, "num_hidden_layers": 2},
    "vision_config": {"depth": 2, "hidden_size": 16},
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "vocab_size": 14,
    "num_experts": 2,
}


@generator("merge", share=5)
def model_configs(rng: Random, room: Path) -> list[Command]:
    """config.json: damaged anywhere, or one of the keys that we read made odd."""
    path = room / rng.choice(("base", "one")) / "config.json"
    if rng.random() < 0.5:
        damage_json(rng, path)
    else:
        table = json.loads(path.read_text())
        for key in rng.sample(sorted(KEYS), rng.randint(1, 2)):
            table[key] = rng.choice((KEYS[key], damaged_value(rng, {"x": KEYS[key]}), odd_value(rng)))
        path.write_bytes(json_text(rng, table))
    return merge_commands(rng) + ([rng.choice(MERGE)] if rng.random() < 0.15 else [])


@generator("tiny", share=5)
def files_beside(rng: Random, room: Path) -> list[Command]:
    """Tokenizer settings, processors, prompts, templates, records: right, damaged, or with odd values."""
    folder = room / rng.choice(("base", "one"))
    for name in rng.sample(sorted(BESIDE), rng.randint(1, 3)):
        value = BESIDE[name] if rng.random() < 0.2 else damaged_value(rng, BESIDE[name])
        (folder / name).write_bytes(json_text(rng, value))
    if rng.random() < 0.2:
        templates = folder / "additional_chat_templates"
        templates.mkdir()
        name = rng.choice(NAMES).replace("/", "_").replace("\0", "_")[:100] or "x"
        (templates / f"{name.encode('utf-8', 'replace').decode()}.jinja").write_bytes(rng.randbytes(20))
    return merge_commands(rng)
