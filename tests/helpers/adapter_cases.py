"""Configurations that several tests of adapters share."""

from __future__ import annotations

import zoo

GPT2 = zoo.Kind(
    "GPT-2",
    "gpt2",
    ("GPT2LMHeadModel",),
    {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
)
MIXTRAL = zoo.Kind(
    "Mixtral", "mixtral", ("MixtralForCausalLM",), zoo.TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2}
)
BY_NAME = zoo.BY_NAME | {kind.name: kind for kind in (GPT2, MIXTRAL)}
