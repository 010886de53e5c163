"""What sharded training leaves, put together here, against torch.distributed's own tensors and its own loader."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sharded_files
import torch

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.errors import CheckpointError
from taskmerge.numbers.rounding import decode

FOLDERS = ("ranks", "mesh", "sharded", "dcp", "dcp_plain")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, sharded_files.__file__, str(root)], env=environment, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return root


def by_torch(folder: Path) -> dict[str, torch.Tensor]:
    """As torch.distributed.checkpoint itself loads the folder, on one process."""
    import torch.distributed.checkpoint as dcp

    empty = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in sharded_files.whole_model().items()}
    state = {"model": empty} if folder.name == "dcp" else empty
    dcp.load(state, checkpoint_id=folder)
    return empty


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_layout_gives_the_whole_tensors(saved: Path, folder: str) -> None:
    weights = open_stored(saved / folder)
    expected = by_torch(saved / folder) if folder.startswith("dcp") else sharded_files.whole_model()
    assert set(weights.tensors) == set(expected)
    for name, value in expected.items():
        info = weights.tensors[name]
        assert info.shape == tuple(value.shape)
        flat = value.double().numpy().reshape(-1)
        np.testing.assert_array_equal(decode(weights.read(name), info.dtype), flat, err_msg=name)
        for start, stop in ((0, 1), (2, 3), (flat.size // 3, flat.size - 1), (flat.size - 1, flat.size), (1, 1)):
            np.testing.assert_array_equal(decode(weights.read(name, start, stop), info.dtype), flat[start:stop])
    assert "joined from" in " ".join(weights.beside.notes)
    others = {".metadata"} if folder.startswith("dcp") else set()
    assert set(weights.beside.files) | others == {path.name for path in (saved / folder).iterdir()} | others


def test_the_optimizer_beside_a_model_is_left_and_said(saved: Path) -> None:
    notes = " ".join(open_stored(saved / "dcp").beside.notes)
    assert "the model is taken from ['model'], not 'optimizer', 'step'" in notes


def test_a_checkpoint_folder_leads_to_the_weights_below_it(saved: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-10"
    shutil.copytree(saved / "dcp", checkpoint / "pytorch_model_fsdp_0")
    torch.save({"state": {}}, checkpoint / "scheduler.pt")
    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    weights = open_stored(checkpoint)
    assert set(weights.tensors) == set(sharded_files.SHAPES) and weights.config["model_type"] == "llama"
    assert "the weights are in pytorch_model_fsdp_0/" in weights.beside.notes


def test_settings_are_found_where_verl_puts_them(saved: Path, tmp_path: Path) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(saved / "ranks", actor)
    torch.save({}, actor / "optim_world_size_4_rank_0.pt")
    torch.save({}, actor / "extra_state_world_size_4_rank_0.pt")
    (actor / "huggingface").mkdir()
    (actor / "huggingface" / "config.json").write_text('{"model_type": "qwen3"}')
    weights = open_stored(actor)
    assert weights.config["model_type"] == "qwen3" and weights.beside.tokenizer_folder == actor / "huggingface"


def broken(folder: Path, case: str) -> None:
    first = next(iter(sorted(folder.glob("*rank_0.pt"))), None)
    if case == "a rank is missing":
        (folder / "model_world_size_4_rank_2.pt").unlink()
    elif case == "two saves":
        shutil.copy(folder / "model_world_size_4_rank_0.pt", folder / "model_world_size_2_rank_0.pt")
    elif case == "one rank twice":
        shutil.copy(folder / "model_world_size_4_rank_0.pt", folder / "model_world_size_4_rank_2.pt")
    elif case == "a rank cut off":
        assert first is not None
        first.write_bytes(first.read_bytes()[:-100])
    elif case == "a .distcp is missing":
        (folder / "__2_0.distcp").unlink()
    elif case == "no metadata":
        (folder / ".metadata").unlink()
    elif case == "foreign metadata":
        (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    elif case == "a .distcp cut off":
        path = folder / "__0_0.distcp"
        path.write_bytes(path.read_bytes()[:50])


BROKEN = {
    "a rank is missing": ("ranks", "the files of ranks 2 of 4 are missing"),
    "two saves": ("ranks", "files of several checkpoints"),
    "one rank twice": ("ranks", "do not add up to the complete tensor"),
    "a rank cut off": ("ranks", "rank_0.pt"),
    "a .distcp is missing": ("dcp", "'__2_0.distcp' is missing"),
    "no metadata": ("dcp", "no .metadata, which describes the .distcp files"),
    "foreign metadata": ("dcp", "not the metadata of torch.distributed.checkpoint"),
    "a .distcp cut off": ("dcp", "is shorter than .metadata states"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_whole_is_refused(saved: Path, tmp_path: Path, case: str) -> None:
    source, words = BROKEN[case]
    folder = tmp_path / "model"
    shutil.copytree(saved / source, folder)
    broken(folder, case)
    with pytest.raises(CheckpointError) as caught:
        open_stored(folder)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) >= 2


def test_one_rank_alone_leads_to_its_folder(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="name the folder that contains the files of all ranks"):
        open_stored(saved / "ranks" / "model_world_size_4_rank_0.pt")
