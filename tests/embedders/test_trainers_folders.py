"""A model is run from whatever its trainer left: prefixes, wrappers, files of ranks; it embeds as the plain folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drift_models import qwen2_audio
from omni_models import tiny_backbone
from safetensors.torch import load_file, save_file

from taskmerge.embedders import open_embedder
from taskmerge.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
TEXTS = ["a dog", "sound of rain", "high tone"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a random BERT of 2 layers, mean pooling."""
    from sentence_transformers import SentenceTransformer

    home = tmp_path_factory.mktemp("plain")
    SentenceTransformer(str(tiny_backbone(home / "bert")), device="cpu").save_pretrained(str(home / "model"))
    return home / "model"


def embeddings(folder: Path) -> torch.Tensor:
    embedder = open_embedder(folder)
    with torch.no_grad():
        return embedder.embed(embedder.prepare(TEXTS))


def safetensors(tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def renamed(change: Callable[[str], str]) -> Callable[[Tensors, Path], None]:
    return lambda tensors, folder: safetensors({change(name): one for name, one in tensors.items()}, folder)


def saved(name: str, change: Callable[[Tensors], object], **how: bool) -> Callable[[Tensors, Path], None]:
    return lambda tensors, folder: torch.save(change(tensors), folder / name, **how)


LEFT: dict[str, Callable[[Tensors, Path], None]] = {
    "module.": renamed(lambda name: f"module.{name}"),
    "_orig_mod.": renamed(lambda name: f"_orig_mod.{name}"),
    "model.": renamed(lambda name: f"model.{name}"),
    "module.model.": renamed(lambda name: f"module.model.{name}"),
    "_orig_mod.module.": renamed(lambda name: f"_orig_mod.module.{name}"),
    "compiled inside": renamed(lambda name: name.replace("encoder.", "encoder._orig_mod.", 1)),
    "checkpointed inside": renamed(lambda name: name.replace("layer.0.", "layer.0._checkpoint_wrapped_module.")),
    "wrapped by FSDP": renamed(lambda name: f"_fsdp_wrapped_module.{name}"),
    "Lightning": saved(
        "last.ckpt",
        lambda tensors: {"state_dict": {f"model.{name}": one for name, one in tensors.items()}, "epoch": 3},
    ),
    "only model.pt": saved("model.pt", dict),
    "wrapped": saved("pytorch_model.bin", lambda tensors: {"model_state_dict": tensors, "step": 7}),
    "before 1.6": saved("pytorch_model.bin", dict, _use_new_zipfile_serialization=False),
    "wrapped, before 1.6": saved(
        "weights.pth", lambda tensors: {"module": tensors}, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_embeds_as_the_plain_folder(plain: Path, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    LEFT[case](tensors, folder)
    torch.testing.assert_close(embeddings(folder), embeddings(plain), rtol=0, atol=0)


def test_files_of_ranks_are_run(plain: Path, tmp_path: Path) -> None:
    """Replicated whole in each, as plain data parallelism leaves them."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for rank in range(2):
        torch.save(tensors, folder / f"model_world_size_2_rank_{rank}.pt")
    torch.testing.assert_close(embeddings(folder), embeddings(plain), rtol=0, atol=0)


def test_a_model_of_several_towers_under_a_prefix(tmp_path: Path) -> None:
    model = qwen2_audio(tmp_path / "model")
    expected = model.encode(TEXTS, convert_to_tensor=True)
    file = next((tmp_path / "model").rglob("model.safetensors"))
    safetensors({f"module.{name}": one for name, one in load_file(file).items()}, file.parent)
    torch.testing.assert_close(embeddings(tmp_path / "model"), expected.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lost", ["encoder.layer.1.", "embeddings.word_embeddings"])
@pytest.mark.parametrize("prefix", ["module.", "model.", ""])
def test_half_a_model_is_refused_under_any_prefix(plain: Path, tmp_path: Path, prefix: str, lost: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    safetensors({f"{prefix}{name}": one for name, one in tensors.items() if not name.startswith(lost)}, folder)
    with pytest.raises(CheckpointError, match="missing from the file"):
        open_embedder(folder)


def test_other_shapes_are_refused_under_a_prefix(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    tensors[name] = torch.zeros(tensors[name].shape[0], 3)
    safetensors({f"module.{one}": value for one, value in tensors.items()}, folder)
    with pytest.raises(CheckpointError, match="missing from the file"):
        open_embedder(folder)
