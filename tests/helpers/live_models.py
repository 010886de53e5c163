"""Small live models of every kind that `fuse` takes, with the folders that their libraries save."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omni_models import tiny_backbone
from torch import nn

TEXTS = ["a dog", "red sound of a cat", "low"]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Libraries warn of their own ways; what taskmerge says is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def moved(module: Any, seed: int) -> Any:
    """A fine-tuned copy: every parameter moved a little."""
    found = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.03 * step).to(parameter))
    return found


def causal(tied: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """A Llama of two layers with its head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
                         tie_word_embeddings=tied)  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def _embedder(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    body = modules.Transformer(str(tiny_backbone(folder / "backbone")), max_seq_length=32)
    return SentenceTransformer(
        modules=[body, modules.Pooling(32, "mean"), modules.Dense(32, 12), modules.Normalize()], device="cpu",
        prompts={"query": "red ", "document": ""}, similarity_fn_name="dot",
    )  # fmt: skip


def _with_head(folder: Path, kind: str, **options: Any) -> Path:
    import transformers

    tiny_backbone(folder)
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    torch.manual_seed(1)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


def _cross_encoder(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(
        str(_with_head(folder / "backbone", "BertForSequenceClassification", num_labels=1)), device="cpu"
    )


def _sparse_encoder(folder: Path) -> Any:
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(_with_head(folder / "backbone", "BertForMaskedLM")), device="cpu")


MAKERS: dict[str, Callable[[Path], Any]] = {
    "SentenceTransformer": _embedder,
    "CrossEncoder": _cross_encoder,
    "SparseEncoder": _sparse_encoder,
    "tied": lambda _: causal(),
    "untied": lambda _: causal(tied=False),
}


def opened(kind: Any, folder: Path) -> Any:
    """A folder as its own library opens it."""
    with without_warnings():
        if hasattr(kind, "encode") or hasattr(kind, "predict"):
            return kind(str(folder), device="cpu")
        return kind.from_pretrained(folder, dtype="auto")


def save(module: Any, folder: Path) -> Path:
    """A model as its own library saves it."""
    with without_warnings():
        if hasattr(module, "model_card_data"):
            module.save_pretrained(str(folder), create_model_card=False)
        else:
            module.save_pretrained(folder)
    return folder


def check_same(one: nn.Module, two: nn.Module) -> None:
    """Both hold the same tensors, bit for bit."""
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


class Plain(nn.Module):
    """A network of no library: shared weights, buffers of both kinds, counters, a matrix that lies crosswise."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        self.register_buffer("scale", torch.ones(6))
        self.register_buffer("unsaved", torch.arange(6.0), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.norm(self.again(self.first(values)) * self.scale + self.get_buffer("unsaved")) @ self.turned
