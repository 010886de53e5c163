"""Tiny vision-language models with random weights and a real processor each, saved as transformers saves them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo
from omni_models import WORDS

START, IMAGE, VIDEO, END = "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"
QWEN = {START: 59, IMAGE: 60, VIDEO: 62, END: 63, "<|im_start|>": 57, "<|im_end|>": 58}
GEMMA = {"<start_of_image>": 59, "<image_soft_token>": 60, "<end_of_image>": 61, "<unused0>": 62}
TEMPLATE = (
    "{% for message in messages %}OPEN {{ message.role }} {% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}PICTURE{% elif part.type == 'video' %}"
    "FILM{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %} CLOSE{% endfor %}"
)


@dataclass(frozen=True)
class Seeing:
    """special: the family's own tokens.  marks: what the chat template writes.  films: whether it takes them."""

    kind: zoo.Kind
    special: dict[str, int]
    marks: dict[str, str]
    films: bool = False


def _gemma() -> zoo.Kind:
    kind = zoo.BY_NAME["Gemma 3"]
    return replace(kind, config={**kind.config, "boi_token_index": 59, "eoi_token_index": 61})


_QWEN = {"OPEN": "<|im_start|>", "CLOSE": "<|im_end|>", "PICTURE": START + IMAGE + END, "FILM": START + VIDEO + END}
SEEING = {
    "Qwen3-VL": Seeing(zoo.BY_NAME["Qwen3-VL"], QWEN, _QWEN, films=True),
    "Qwen2.5-VL": Seeing(zoo.BY_NAME["Qwen2.5-VL"], QWEN, _QWEN, films=True),
    "Gemma 3": Seeing(_gemma(), GEMMA, {"OPEN": "", "CLOSE": "", "PICTURE": "<start_of_image>", "FILM": ""}),
    "LLaVA": Seeing(zoo.BY_NAME["LLaVA"], {"<image>": 60}, {"OPEN": "", "CLOSE": "", "PICTURE": "<image>", "FILM": ""}),
}


def vision_model(
    name: str,
    folder: Path,
    headed: bool = True,
    template: bool = True,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """A model of `SEEING` with 2 layers, saved with its processor.

    headed: saved from the class with an lm_head, else from the bare model.  template: with a chat template.
    dtype: of the file.  config: changes at the top of its config.
    """
    own = SEEING[name]
    kind = replace(own.kind, config=_with_video({**own.kind.config, **config}, own.films))
    zoo.save(kind.build(kind.classes[0 if headed else -1]), folder, dtype)
    processor(name, template).save_pretrained(folder)
    return folder


def _with_video(config: dict[str, Any], films: bool) -> dict[str, Any]:
    return config | {"video_token_id": 62, "vision_start_token_id": 59, "vision_end_token_id": 63} if films else config


def processor(name: str, template: bool = True) -> Any:
    """The family's own processor over a word-level tokenizer of 64 tokens."""
    own = SEEING[name]
    words = _tokenizer(own.special)
    text = TEMPLATE
    for mark, written in own.marks.items():
        text = text.replace(mark, written)
    return _PROCESSORS[name](words, text if template else None)


def _tokenizer(special: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    first = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, "user", "system"]
    vocabulary = {word: index for index, word in enumerate(first)} | special
    taken = set(vocabulary.values())
    vocabulary |= {f"filler{index}": index for index in range(zoo.VOCABULARY) if index not in taken}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names: dict[str, str] = {}
    if "<start_of_image>" in special:
        names = {
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"
        }  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        padding_side="left", extra_special_tokens=names,
    )  # fmt: skip
    fast.add_tokens(list(special), special_tokens=True)
    return fast


def _qwen(processor_class: str, video_class: str) -> Any:
    def make(tokenizer: Any, template: str | None) -> Any:
        import transformers
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        from taskmerge.embedders.processors import video_processor_class, without_torchvision

        patches: dict[str, Any] = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
        eyes = Qwen2VLImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 256}, **patches)
        films = video_processor_class(video_class)(size={"shortest_edge": 64, "longest_edge": 1024}, **patches)
        made = getattr(transformers, processor_class)
        with without_torchvision():
            return made(image_processor=eyes, tokenizer=tokenizer, video_processor=films, chat_template=template)

    return make


def _gemma_processor(tokenizer: Any, template: str | None) -> Any:
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    eyes = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return Gemma3Processor(image_processor=eyes, tokenizer=tokenizer, image_seq_length=4, chat_template=template)


def _llava_processor(tokenizer: Any, template: str | None) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    eyes = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        image_processor=eyes, tokenizer=tokenizer, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


_PROCESSORS = {
    "Qwen3-VL": _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "Qwen2.5-VL": _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "Gemma 3": _gemma_processor,
    "LLaVA": _llava_processor,
}


def film(frames: int = 4, seed: int = 0) -> np.ndarray:
    """A film of noise, (frames, height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 255, (frames, 16, 24, 3), dtype=np.uint8)


def whisper_folder(folder: Path) -> Path:
    """A random Whisper of 2 layers with its feature extractor: 1 s windows, 8 mel bands."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        **zoo.WHISPER_ENCODER, vocab_size=20, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    return folder
