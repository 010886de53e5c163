"""Tokenizers as files, for tests of whose row is whose."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = "a dog cat red blue sound of tone high low".split()


def tokenizer(words: list[str], added: tuple[str, ...] = (), template: str | None = None) -> PreTrainedTokenizerFast:
    tokens = {token: row for row, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": list(added)})
    made.chat_template = template
    return made
