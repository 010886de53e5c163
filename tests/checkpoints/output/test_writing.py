"""Saving: the exact bytes, read back by the safetensors library; side files, rights, nothing left after a failure."""

from __future__ import annotations

import gc
import json
import os
import stat
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import digests, random_model, read_model, same_bits, write_model
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, BertModel

from taskmerge import Checkpoint, fuse
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.output.layout import index_files, lay_out, natural
from taskmerge.checkpoints.output.saving import save_state_dict
from taskmerge.checkpoints.output.shard_writer import BUFFERS
from taskmerge.checkpoints.output.writing import JOURNAL, OutputFolder
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, OutputError, UsageError

FORMATS = ["F64", "F32", "BF16", "F16", "I64", "U8", "BOOL"]
MODELS = some.dictionaries(
    some.from_regex(r"[a-z]{1,3}(\.\d{1,2})?(\.[a-z]{1,3})?", fullmatch=True),
    some.tuples(some.sampled_from(FORMATS), some.lists(some.integers(0, 5), max_size=3)),
    max_size=12,
)


@given(model=MODELS, shard_size=some.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_the_layout_is_what_the_safetensors_library_reads(
    tmp_path_factory: pytest.TempPathFactory, model: dict[str, Any], shard_size: int
) -> None:
    infos = [TensorInfo(name, dtype, tuple(shape)) for name, (dtype, shape) in model.items()]
    shards = lay_out(infos, shard_size, {"": ""})
    assert lay_out(reversed(infos), shard_size, {"": ""}) == shards
    folder = tmp_path_factory.mktemp("layout")
    found: dict[str, tuple[str, list[int]]] = {}
    for shard in shards:
        data = np.random.default_rng(0).bytes(shard.size - len(shard.header))
        (folder / shard.file).write_bytes(shard.header + data)
        assert all(entry.start % entry.info.format.size == 0 for entry in shard.entries), "aligned"
        assert len(shard.entries) == 1 or sum(entry.info.nbytes for entry in shard.entries) <= shard_size
        with safe_open(folder / shard.file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                view = opened.get_slice(name)
                found[name] = (view.get_dtype(), view.get_shape())
    assert found == {info.name: (info.dtype, list(info.shape)) for info in infos}
    index = index_files(shards)
    assert len(shards) > 1 or not index
    if index:
        table = json.loads(index["model.safetensors.index.json"])
        assert table["weight_map"] == {name: shard.file for shard in shards for name in shard.names}
        assert table["metadata"]["total_size"] == sum(info.nbytes for info in infos)


def test_natural_order() -> None:
    names = ["layers.10.a", "layers.2.b", "layers.2.a", "norm", "embed"]
    assert sorted(names, key=natural) == ["embed", "layers.2.a", "layers.2.b", "layers.10.a", "norm"]


def test_names_may_hold_slashes(tmp_path: Path) -> None:
    tensors = {"a/b/kernel": torch.ones(2), "/c": torch.zeros(1), "plain": torch.ones(1)}
    Checkpoint.open(tensors).save(tmp_path / "out")
    assert set(read_model(tmp_path / "out")) == set(tensors)


# --- a saved model ------------------------------------------------------------------------------------------------


def test_a_model_saved_is_the_model(tmp_path: Path) -> None:
    tensors = random_model(0, "BF16") | {"count": torch.arange(3), "mask": torch.tensor([True])}
    path = Checkpoint.open(tensors).save(tmp_path / "deep" / "out", shard_size=300)
    saved = read_model(path)
    assert all(same_bits(saved[name], tensor) for name, tensor in tensors.items())
    assert len(list(path.glob("model-*.safetensors"))) > 2
    assert all(same_bits(tensor, Checkpoint.open(path)[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_format_rounds_once_as_torch_does(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(999) * 10, "count": torch.arange(3)}
    name = str(dtype).removeprefix("torch.")
    saved = read_model(Checkpoint.open(tensors).save(tmp_path / "out", dtype=name))
    assert same_bits(saved["a"], tensors["a"].to(dtype)) and same_bits(saved["count"], tensors["count"])


def test_transformers_loads_what_is_saved(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20)
    torch.manual_seed(0)
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "base")
    vector = Checkpoint.open(model) - Checkpoint.open(tmp_path / "base")
    path = (Checkpoint.open(tmp_path / "base") + vector).save(tmp_path / "out", dtype="float32", shard_size="5KB")
    loaded = AutoModel.from_pretrained(path).eval()
    words = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        assert torch.equal(loaded(words).last_hidden_state, model(words).last_hidden_state)


def test_files_follow_the_umask(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_model(0))
    (base / "tokenizer.json").write_text("{}")
    (base / "tokenizer.json").chmod(0o600)
    before = os.umask(0o027)
    try:
        Checkpoint.open(base).save(tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "taskmerge.json"), 0o640)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_side_files_travel_and_the_rest_stays(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_model(0), {"model_type": "llama", "torch_dtype": "float32"})
    travels = ["tokenizer.json", "merges.txt", "chat_template.jinja", "modeling_own.py", "LICENSE", "sub/config.json"]
    stays = ["pytorch_model.bin", "optimizer.pt", "trainer_state.json", "README.md", "notes.md", "sub/other.json"]
    for name in (*travels, *stays):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    (base / "modules.json").write_text('[{"path": ""}, {"path": "sub"}]')
    (base / "sub" / "other.json").unlink()
    saved = Checkpoint.open(base).save(tmp_path / "out", dtype="bfloat16")
    assert digests(saved).keys() == {*travels, "modules.json", "config.json", "model.safetensors", "taskmerge.json"}
    assert json.loads((saved / "config.json").read_text()) == {"model_type": "llama", "torch_dtype": "bfloat16"}
    assert same_text(base, Checkpoint.open(base).save(tmp_path / "same"), "config.json")


def same_text(one: Path, two: Path, name: str) -> bool:
    return (one / name).read_bytes() == (two / name).read_bytes()


def test_a_side_file_that_links_outside_is_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_model(0))
    (tmp_path / "secret.json").write_text("{}")
    (base / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="a link to a file outside the folder"):
        Checkpoint.open(base).save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "secret.json"]


def test_a_grafted_model_is_saved_with_the_grafts_config_and_files(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_model(0), {"model_type": "llama"})
    grafted = random_model(1, near=random_model(0)) | {"audio_tower.layers.0.weight": torch.ones(2, 2)}
    audio = write_model(tmp_path / "audio", grafted, {"model_type": "llama", "audio_config": {"d_model": 2}})
    (audio / "preprocessor_config.json").write_text('{"sampling_rate": 16000}')
    vector = Checkpoint.open(audio) - Checkpoint.open(base)
    moved = (Checkpoint.open(base) + vector).save(tmp_path / "moved")
    assert json.loads((moved / "config.json").read_text())["audio_config"] == {"d_model": 2}
    fused = fuse(base, {"audio": audio}).save(tmp_path / "fused")
    assert json.loads((fused / "config.json").read_text())["audio_config"] == {"d_model": 2}
    assert (fused / "preprocessor_config.json").exists()
    assert set(read_model(fused)) == set(grafted)


# --- failures -----------------------------------------------------------------------------------------------------


class Failing(MemoryStateDict):
    """Weights that cannot be read to the end."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name == "z":
            raise CheckpointError("the cable came out")
        return super().read(name, start, stop)


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    weights = Failing({"a": np.ones(3), "z": np.ones(3)})
    with pytest.raises(CheckpointError, match="the cable came out"):
        save_state_dict(weights, tmp_path / "new" / "out", shard_size=10)
    assert list(tmp_path.iterdir()) == []


def test_an_older_model_survives_a_failed_replacement(tmp_path: Path) -> None:
    Checkpoint.open({"a": np.ones(3)}).save(tmp_path / "out")
    before = digests(tmp_path)
    with pytest.raises(CheckpointError):
        save_state_dict(Failing({"a": np.ones(3), "z": np.ones(3)}), tmp_path / "out", shard_size=10, fresh=True)
    assert digests(tmp_path) == before


def test_saving_over_something_is_refused(tmp_path: Path) -> None:
    model = Checkpoint.open({"a": np.ones(3)})
    model.save(tmp_path / "out")
    with pytest.raises(OutputError, match="the output folder already exists"):
        model.save(tmp_path / "out")
    with pytest.raises(OutputError, match="the output would replace an input"):
        Checkpoint.open(tmp_path / "out").save(tmp_path / "out", fresh=True)
    Checkpoint.open({"b": np.ones(2)}).save(tmp_path / "out", fresh=True)
    assert set(read_model(tmp_path / "out")) == {"b"}


def test_a_killed_save_is_no_obstacle(tmp_path: Path) -> None:
    """A save cannot be gone on with, so what it leaves is thrown away by the next one; a fuse's is kept."""
    with OutputFolder(tmp_path / "out", identity="") as killed:
        killed.add_text("rubbish.json", "{}")
    Checkpoint.open({"a": np.ones(3)}).save(tmp_path / "out")
    assert digests(tmp_path / "out").keys() == {"model.safetensors", "taskmerge.json"}
    with OutputFolder(tmp_path / "other", identity="a fuse"):
        pass
    with pytest.raises(OutputError, match="an unfinished run"):
        Checkpoint.open({"a": np.ones(3)}).save(tmp_path / "other")


def test_a_journal_that_cannot_be_read_is_not_guessed_at(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", identity="a"):
        pass
    (tmp_path / ".out.partial" / JOURNAL).write_text("{")
    with pytest.raises(OutputError, match="--fresh deletes it"), OutputFolder(tmp_path / "out", identity="a"):
        pass


def test_unknown_dtypes_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        Checkpoint.open({"a": np.ones(3)}).save("never", dtype="bflat16")
    assert not Path("never").exists()


def test_the_output_appeared_meanwhile(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", identity="a") as output:
        output.add_text("config.json", "{}")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(OutputError, match="the output folder already exists"):
            output.publish()
    assert digests(tmp_path / "out").keys() == {"mine.txt"}


def test_the_journal_says_what_the_files_are(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0)}
    (shard,) = lay_out([TensorInfo("a", "F32", (5,))], 100, {"": ""})
    with OutputFolder(tmp_path / "out", identity="x") as output:
        with output.shard(shard) as writer:
            writer.write(tensors["a"].numpy())
        assert same_bits(load_file(output.staging / shard.file)["a"], tensors["a"])
        with pytest.raises(OutputError, match=r"wrote .* bytes of"), output.shard(shard) as writer:
            writer.write(tensors["a"].numpy()[:3])
        journal = json.loads((output.staging / JOURNAL).read_text())
        assert journal == {"identity": "x", "finished": {shard.file: digests(output.staging)[shard.file]}}
        output.publish()
    assert open_stored(tmp_path / "out").read("a").tolist() == [0, 1, 2, 3, 4]


def test_a_finished_file_gives_its_buffers_back(tmp_path: Path) -> None:
    """At once: the garbage collector is told to wait long, and a large model has hundreds of files."""
    (layout,) = lay_out([TensorInfo("weight", "BF16", (300_000,))], 1 << 30, {"": ""})
    gc.disable()
    try:
        with OutputFolder(tmp_path / "out", identity="") as output:
            with output.shard(layout) as writer:
                buffers = [writer.take() for _ in range(BUFFERS)]
                references = [weakref.ref(buffer) for buffer in buffers]
                buffers[0][:] = 0
                writer.put(buffers[0], layout.size)
                del buffers
            assert not any(reference() is not None for reference in references)
    finally:
        gc.enable()
