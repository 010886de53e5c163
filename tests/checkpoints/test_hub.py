"""Hub ids and hf:// uris: from the local cache alone, and online through huggingface-hub's own functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoint_files import COMMIT, bytes_of, cached, random_model, write_model, write_recipe
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import SafetensorsFileMetadata, TensorInfo
from safetensors.torch import save_file

from taskmerge import Checkpoint, recipes
from taskmerge.checkpoints.formats.header import read_file_header
from taskmerge.checkpoints.formats.reading import local_folder, open_stored
from taskmerge.checkpoints.hub import HubPlace, locate
from taskmerge.checkpoints.output.record import described as describe_inputs
from taskmerge.errors import CheckpointError
from taskmerge.merging import execute, plan
from taskmerge.merging.identity import identity

NAME = "model.layers.0.norm.weight"


def packed(folder: Path, tensors: dict[str, torch.Tensor]) -> bytes:
    save_file(tensors, folder / "packed.safetensors", {"format": "pt"})
    return (folder / "packed.safetensors").read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the client is offline."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


# --- what a text means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("owner/name", HubPlace("owner/name")),
        ("owner/name@main", HubPlace("owner/name", "main")),
        ("Qwen/Qwen3-VL-8B-Instruct@refs/pr/3", HubPlace("Qwen/Qwen3-VL-8B-Instruct", "refs/pr/3")),
        ("hf://owner/name", HubPlace("owner/name", certain=True)),
        ("hf://owner/name@v1.0", HubPlace("owner/name", "v1.0", certain=True)),
        ("hf://owner/name/text_encoder", HubPlace("owner/name", None, "text_encoder", certain=True)),
    ],
)
def test_what_a_text_means(text: str, place: HubPlace, cache: Path) -> None:
    assert locate(text) == place


@pytest.mark.parametrize("text", ["./owner/name", "/owner/name", "~/owner/name", "name", "a/b/c", "owner/na me", ""])
def test_what_is_no_hub_id(text: str, cache: Path) -> None:
    if text:
        with pytest.raises(CheckpointError, match="no file or folder"):
            locate(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [("hf://datasets/owner/name", "the uri is that of a dataset, not of a model"), ("hf://", "not an hf:// uri")],
)
def test_uris_of_something_else(text: str, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate(text)
    assert words in str(caught.value) and "write hf://owner/name[@revision]" in str(caught.value)


def test_a_folder_of_this_disk_wins(cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "owner" / "name", random_model(0))
    assert locate("owner/name") == Path("owner/name")
    assert open_stored("owner/name").beside.commit is None


# --- offline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["owner/name", "owner/name@main", f"owner/name@{COMMIT}", "hf://owner/name@main"])
def test_a_cached_repository(cache: Path, tmp_path: Path, text: str) -> None:
    cached(cache, "owner/name", {"model.safetensors": packed(tmp_path, random_model(0)), "config.json": b'{"a": 1}'})
    weights = open_stored(text)
    assert (weights.beside.commit, weights.label, weights.config) == (COMMIT, text, {"a": 1})
    assert weights.read(NAME).tobytes() == bytes_of(random_model(0)[NAME])


def test_a_cached_repository_as_a_folder_for_other_libraries(cache: Path, tmp_path: Path) -> None:
    files = {
        "model.safetensors": packed(tmp_path, random_model(0)),
        "config.json": b"{}",
        "1_Pooling/config.json": b"{}",
    }
    snapshot = cached(cache, "owner/name", files)
    assert local_folder("owner/name") == local_folder("hf://owner/name@main") == snapshot
    write_model(tmp_path / "here" / "model", random_model(0))
    assert local_folder("model", tmp_path / "here") == tmp_path / "here" / "model"
    with pytest.raises(
        CheckpointError, match="owner/absent: there is no file or folder 'owner/absent', and it cannot be"
    ):
        local_folder("owner/absent")


def test_a_folder_inside_a_repository(cache: Path, tmp_path: Path) -> None:
    files = {
        "model.safetensors": packed(tmp_path, random_model(0)),
        "encoder/model.safetensors": packed(tmp_path, random_model(1)),
        "encoder/config.json": b'{"b": 2}',
    }
    cached(cache, "owner/name", files)
    weights = open_stored("hf://owner/name/encoder")
    assert weights.config == {"b": 2}
    assert weights.read(NAME).tobytes() == bytes_of(random_model(1)[NAME])


def test_a_cached_sentence_transformers_repository(cache: Path, tmp_path: Path) -> None:
    files = {
        "model.safetensors": packed(tmp_path, random_model(0)),
        "modules.json": b'[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]',
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": packed(tmp_path, {"linear.weight": torch.ones(2, 2)}),
    }
    cached(cache, "owner/name", files)
    weights = open_stored("owner/name")
    assert weights.read("2_Dense/linear.weight").tolist() == [1.0] * 4
    moved = Checkpoint(weights) + (Checkpoint(weights) - Checkpoint(weights))
    saved = open_stored(moved.save(tmp_path / "saved"))
    assert saved.beside.module_folders == {"": "", "1_Pooling": "1_Pooling", "2_Dense": "2_Dense"}
    assert not any(path.is_symlink() for path in (tmp_path / "saved").rglob("*"))


def test_what_is_not_cached_is_told(cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    with pytest.raises(CheckpointError) as caught:
        open_stored("owner/absent")
    said = str(caught.value)
    assert "owner/absent: there is no file or folder 'owner/absent', and it cannot be downloaded from the hub: " in said
    assert "HF_HUB_OFFLINE (uses only cached files)" in said
    with pytest.raises(CheckpointError, match=r"hf://owner/absent|owner/absent: cannot be downloaded from the hub"):
        open_stored("hf://owner/absent")


def test_a_half_downloaded_repository_is_told(cache: Path, tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    one = packed(tmp_path, {"a": torch.ones(1)})
    cached(cache, "owner/name", {"model.safetensors.index.json": index, "model-00001-of-00002.safetensors": one})
    with pytest.raises(CheckpointError, match="lists 1 missing file: model-00002-of-00002") as caught:
        open_stored("owner/name")
    assert caught.value.problems[0].next_move == "finish the download"


# --- online -------------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for the hub: a repository in a folder, and a list of what was asked for."""

    def __init__(self, remote: Path, local: Path) -> None:
        self.remote, self.local = remote, local / "snapshots" / COMMIT
        self.asked: list[str] = []

    def _get(self, name: str) -> Path:
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.remote / name).read_bytes())
        return target

    def snapshot_download(self, repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append(f"small files of {repo}@{revision}")
        assert not any("safetensors" in pattern and "json" not in pattern for pattern in allow_patterns)
        self.local.mkdir(parents=True, exist_ok=True)
        for path in self.remote.rglob("*"):
            name = str(path.relative_to(self.remote))
            if path.is_file() and any(Path(name).match(pattern) for pattern in allow_patterns):
                self._get(name)
        return str(self.local)

    def model_info(self, _: Any, repo: str, revision: str, files_metadata: bool) -> SimpleNamespace:
        self.asked.append(f"list of {repo}@{revision}")
        names = [str(path.relative_to(self.remote)) for path in self.remote.rglob("*") if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, lfs=self._lfs(name)) for name in names])

    def _lfs(self, name: str) -> SimpleNamespace | None:
        data = (self.remote / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return SimpleNamespace(size=len(data), sha256=digest) if name.endswith(".safetensors") else None

    def parse_safetensors_file_metadata(self, _: Any, repo: str, name: str, revision: str) -> SafetensorsFileMetadata:
        self.asked.append(f"header of {name}@{revision}")
        header = read_file_header(self.remote / name)
        rows = {
            entry.info.name: TensorInfo(
                dtype=entry.info.dtype,  # type: ignore[arg-type]
                shape=list(entry.info.shape),
                data_offsets=(entry.start - header.size, entry.stop - header.size),
            )
            for entry in header.entries
        }
        return SafetensorsFileMetadata(metadata={}, tensors=rows)

    def hf_hub_download(self, repo: str, name: str, revision: str) -> str:
        self.asked.append(f"{name}@{revision}")
        return str(self._get(name))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "remote", tmp_path / "local")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    for name in ("model_info", "parse_safetensors_file_metadata"):
        asked: Callable[..., Any] = getattr(hub, name)
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda api, *words, asked=asked, **more: asked(api, *words, **more)
        )
    monkeypatch.chdir(tmp_path)
    write_model(hub.remote, random_model(0))
    return hub


def test_online_only_headers_are_fetched_until_a_tensor_is_read(hub: Hub) -> None:
    weights = open_stored("owner/name@v2")
    assert hub.asked == [
        "small files of owner/name@v2",
        f"list of owner/name@{COMMIT}",
        f"header of model.safetensors@{COMMIT}",
    ]
    assert {name: info.shape for name, info in weights.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in random_model(0).items()
    }
    assert not weights.file_of(NAME).local
    for _ in range(2):
        assert weights.read(NAME, 1, 4).tobytes() == bytes_of(random_model(0)[NAME][1:4])
    assert hub.asked[3:] == [f"model.safetensors@{COMMIT}"]


def test_online_a_whole_repository_is_downloaded_for_other_libraries(hub: Hub) -> None:
    assert local_folder("owner/name@v2") == hub.local
    assert hub.asked[-1] == f"model.safetensors@{COMMIT}"
    assert sorted(path.name for path in hub.local.iterdir()) == sorted(path.name for path in hub.remote.iterdir())


def test_a_merge_from_the_hub_downloads_when_it_runs(hub: Hub, tmp_path: Path) -> None:
    write_model(tmp_path / "image", random_model(1, near=random_model(0)))
    recipe = recipes.load(write_recipe(tmp_path, base="owner/name", specialists={"image": "image"}))
    decided = plan(recipe)
    assert not any(asked == f"model.safetensors@{COMMIT}" for asked in hub.asked)
    before = identity(decided, recipe)
    execute(decided, recipe, tmp_path / "out")
    assert open_stored(tmp_path / "out").read(NAME).tobytes() == bytes_of(random_model(1, near=random_model(0))[NAME])
    described = describe_inputs(decided.inputs)["base"]
    assert described["source"] == "owner/name" and described["commit"] == COMMIT
    assert identity(plan(recipe), recipe) == before, "an interrupted run goes on after its download"


def test_a_file_that_changed_since_its_header_was_read(hub: Hub) -> None:
    weights = open_stored("owner/name")
    write_model(hub.remote, {NAME: torch.ones(3)})
    with pytest.raises(CheckpointError, match="the downloaded file is not the one whose header was read"):
        weights.read(NAME)


@pytest.mark.parametrize("which", ["snapshot_download", "hf_hub_download"])
def test_the_hubs_own_words_reach_the_user(hub: Hub, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RepositoryNotFoundError(
            "401 Client Error.\nmore lines",
            response=SimpleNamespace(headers={}, request=None),  # type: ignore[arg-type]
        )

    monkeypatch.setattr(huggingface_hub, which, refuse)
    with pytest.raises(CheckpointError) as caught:
        open_stored("owner/name").read(NAME)
    said = str(caught.value)
    assert "cannot be downloaded from the hub: 401 Client Error." in said and "more lines" not in said
    assert "HF_TOKEN for private models" in said


def test_a_header_the_hub_cannot_parse(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("no such file")

    monkeypatch.setattr(huggingface_hub.HfApi, "parse_safetensors_file_metadata", refuse)
    with pytest.raises(CheckpointError, match="its header cannot be fetched from the hub: no such file"):
        open_stored("owner/name")
