"""Models of somebody else's class: a backbone, an encoder and a projector under names of their owner's choice.

One row per layout of names; a new layout is one row. Encoders are small, of other widths than the backbone's (some of
the same), built from transformers' configs or by hand as other libraries write them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import zoo
from torch import nn

HIDDEN = 32  # of every backbone in the zoo's text table


class Frames(nn.Module):
    """Joins neighbouring frames, then leads into the backbone's width."""

    def __init__(self, width: int, count: int = 2) -> None:
        super().__init__()
        self.count = count
        self.linear_in, self.linear_out = nn.Linear(width * count, 24), nn.Linear(24, HIDDEN)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        kept = frames[:, : frames.shape[1] // self.count * self.count]
        return self.linear_out(
            torch.nn.functional.silu(self.linear_in(kept.reshape(len(kept), -1, kept.shape[2] * self.count)))
        )


class Block(nn.Module):
    """A layer as timm writes it: one matrix for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.attn["qkv"](self.norm1(hidden)).chunk(3, dim=-1)
        hidden = hidden + self.attn["proj"](torch.nn.functional.scaled_dot_product_attention(query, key, value))
        return hidden + self.mlp["fc2"](torch.nn.functional.gelu(self.mlp["fc1"](self.norm2(hidden))))


class Eyes(nn.Module):
    """A vision transformer of no library's names: stem, blocks, norm."""

    def __init__(self, width: int = 16, stem: str = "stem", blocks: str = "blocks") -> None:
        super().__init__()
        self.names = stem, blocks
        self.add_module(stem, nn.Conv2d(3, width, 4, 4))
        self.add_module(blocks, nn.ModuleList(Block(width) for _ in range(3)))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = getattr(self, self.names[0])(pixels).flatten(2).transpose(1, 2)
        for block in getattr(self, self.names[1]):
            hidden = block(hidden)
        return self.norm(hidden)


class Ears(nn.Module):
    """A speech encoder of no library's names: convolutions over bands, torch's own layers, norm."""

    def __init__(self, width: int = 16, bands: int = 8, layers: str = "stack") -> None:
        super().__init__()
        self.layers = layers
        self.front = nn.Conv1d(bands, width, 3, 2, 1)
        own = (nn.TransformerEncoderLayer(width, 2, 32, batch_first=True, dropout=0.0) for _ in range(2))
        self.add_module(layers, nn.ModuleList(own))
        self.after = nn.LayerNorm(width)

    def forward(self, bands: torch.Tensor) -> torch.Tensor:
        hidden = self.front(bands).transpose(1, 2)
        for layer in getattr(self, self.layers):
            hidden = layer(hidden)
        return self.after(hidden)


def _transformers(kind: str, class_name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from importlib import import_module

        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = CONFIG_MAPPING[kind](**config)
            settings._attn_implementation = "eager"
            place = import_module(f"transformers.models.{kind.removesuffix('_vision_model')}.modeling_"
                                  f"{kind.removesuffix('_vision_model')}")  # fmt: skip
            return getattr(place, class_name)(settings)

    return build


ENCODERS: Mapping[str, Callable[[], nn.Module]] = {
    "whisper": _transformers("whisper", "WhisperEncoder", **zoo.WHISPER_ENCODER),
    "wav2vec2": _transformers(
        "wav2vec2", "Wav2Vec2Model", vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, conv_dim=[8, 8], conv_stride=[5, 2], conv_kernel=[10, 3], num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    ),
    "siglip": _transformers("siglip_vision_model", "SiglipVisionModel", **zoo.PICTURE),
    "dinov2": _transformers("dinov2", "Dinov2Model", **zoo.PICTURE, mlp_ratio=2),
    "ears": Ears,
    "wide ears": lambda: Ears(HIDDEN),
    "eyes": Eyes,
    "wide eyes": lambda: Eyes(HIDDEN),
    "open_clip": lambda: Eyes(16, "conv1", "resblocks"),
}  # fmt: skip


class Turned(nn.Sequential):
    """A convolution over frames, as (batch, frames, width)."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return super().forward(frames.transpose(1, 2)).transpose(1, 2)


PROJECTORS: Mapping[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(width, HIDDEN),
    "mlp": lambda width: nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, HIDDEN)),
    "norm and mlp": lambda width: nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)
    ),
    "frames": Frames,
    "convolution": lambda width: Turned(nn.Conv1d(width, HIDDEN, 1)),
}


@dataclass(frozen=True)
class Foreign:
    """One layout. backbone: what its owner puts before the base's own names.  encoder, projector: their paths.

    config: what its config.json says beside the base's.
    """

    name: str
    modality: str
    backbone: str
    encoder: str
    projector: str
    kind: str
    shape: str = "mlp"
    config: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, seed: int = 0) -> tuple[nn.Module, nn.Module]:
        """Encoder and projector, random."""
        torch.manual_seed(seed)
        encoder = ENCODERS[self.kind]()
        width = HIDDEN if self.kind.startswith("wide") else 16
        projector = PROJECTORS[self.shape](width)
        for parameter in (*encoder.parameters(), *projector.parameters()):
            if parameter.max() == parameter.min():
                nn.init.normal_(parameter, mean=float(parameter.detach().flatten()[0]), std=0.05)
        return encoder.eval(), projector.eval()

    def tensors(self, backbone: Mapping[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
        """All tensors under the owner's names. backbone: the base's, under its own."""
        encoder, projector = self.parts(seed)
        return {
            **{self.backbone + name: tensor for name, tensor in backbone.items()},
            **{f"{self.encoder}.{name}": tensor for name, tensor in encoder.state_dict().items()},
            **{f"{self.projector}.{name}": tensor for name, tensor in projector.state_dict().items()},
        }


LAYOUTS: tuple[Foreign, ...] = (
    Foreign("issue", "audio", "", "whisper", "audio_mlp", "whisper"),
    Foreign("in the model", "audio", "", "model.whisper", "model.audio_mlp", "whisper"),
    Foreign("SLAM", "audio", "llm.", "encoder", "encoder_projector", "whisper", "frames"),
    Foreign("SALMONN", "audio", "llama_model.", "speech_encoder", "speech_llama_proj", "whisper", "linear"),
    Foreign("Ultravox", "audio", "language_model.", "audio_tower", "multi_modal_projector", "whisper", "frames"),
    Foreign("wav2vec", "audio", "", "wav2vec2", "bridge", "wav2vec2", "linear"),
    Foreign("wave inside", "audio", "", "audio.model", "audio.to_llm", "wav2vec2"),
    Foreign("nameless ears", "audio", "", "frontend", "link", "ears"),
    Foreign("ears as wide", "audio", "", "frontend", "link", "wide ears"),
    Foreign("ears hold it", "audio", "", "ear.net", "ear.out", "ears", "linear"),
    Foreign("keyed", "audio", "", "modality_encoders.speech", "modality_projectors.speech", "ears"),
    Foreign("adapter", "audio", "backbone.", "net.enc", "adapter", "ears", "norm and mlp"),
    Foreign("convolution", "audio", "", "tower_a", "tower_a_out", "ears", "convolution"),
    Foreign("LLaVA", "vision", "", "model.vision_tower.vision_tower", "model.mm_projector", "siglip"),
    Foreign("InternVL", "vision", "language_model.", "vision_model", "mlp1", "siglip", "norm and mlp"),
    Foreign("Prismatic", "vision", "llm_backbone.llm.", "vision_backbone.dino_featurizer", "projector", "dinov2"),
    Foreign("named after it", "vision", "", "siglip2", "connector", "siglip", "linear"),
    Foreign("nameless eyes", "vision", "", "seeing", "to_words", "eyes"),
    Foreign("eyes as wide", "vision", "", "seeing", "to_words", "wide eyes"),
    Foreign("eyes in the model", "vision", "", "model.sight", "model.sight_proj", "eyes"),
    Foreign("visual alone", "vision", "", "visual.trunk", "visual.head", "open_clip", "linear"),
    Foreign("a list of one", "audio", "", "encoders.0", "projectors.0", "wav2vec2", "linear"),
    Foreign("called a projector", "audio", "", "embed_audio.tower", "embed_audio.proj", "wide ears", "linear"),
    Foreign("in sequence", "vision", "", "model.image_encoder.0", "model.image_encoder.1", "eyes", "linear"),
    Foreign("called a perceiver", "vision", "transformer.", "perceiver", "to_lm", "eyes"),
    Foreign("hyphens", "audio", "", "acoustic-model", "acoustic-adapter", "ears"),
    Foreign("config tells", "audio", "", "trunk", "joint", "ears", config={"audio_config": {"hidden_size": 16}}),
)  # fmt: skip
BY_NAME = {layout.name: layout for layout in LAYOUTS}
BASES: tuple[str, ...] = ("Qwen3", "Qwen3-VL", "BERT")


def media(layout: Foreign) -> torch.Tensor:
    """What the layout's encoder takes, two items."""
    generator = torch.Generator().manual_seed(11)
    shape = {"whisper": (2, 8, 100), "wav2vec2": (2, 400), "ears": (2, 8, 40), "wide ears": (2, 8, 40)}
    return torch.randn(*shape.get(layout.kind, (2, 3, 16, 16)), generator=generator)


def hear_and_read(backbone: Any, encoder: nn.Module, projector: nn.Module, layout: Foreign) -> torch.Tensor:
    """What the whole model makes of two items and the text after them: (2, length, width)."""
    with torch.no_grad():
        frames = encoder(media(layout))
        frames = frames if isinstance(frames, torch.Tensor) else frames.last_hidden_state
        words = backbone.get_input_embeddings()(zoo.text()["input_ids"])
        return backbone(inputs_embeds=torch.cat([projector(frames[:, :24]), words], dim=1))[0]
