"""Whatever the format of an input, a change in any file that a fuse opens makes it run again.

Seen on an earlier commit: only `pytorch_model.bin` had changed, and the fuse was "unchanged, skipped".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import random_model, write_model
from pipeline_projects import run_quietly, running
from safetensors.torch import load_file, save_file

from taskmerge import Checkpoint
from taskmerge.pipeline import Places, Run
from taskmerge.pipeline.steps import fuse_steps
from taskmerge.recipes import loads

PLAIN = "base: base\nspecialists: {one: one}\noutput: {path: out}\n"
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["proj"], "task_type": "FEATURE_EXTRACTION"}


def as_bin(folder: Path, name: str = "pytorch_model.bin", *, key: str | None = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors if key is None else {key: tensors, "epoch": 3}, folder / name)
    (folder / "model.safetensors").unlink()


def in_shards(folder: Path, suffix: str) -> None:
    """Two files and their index, in the format of `suffix`."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    table: dict[str, str] = {}
    for number, names in enumerate((list(tensors)[:5], list(tensors)[5:]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        part = {name: tensors[name] for name in names}
        if suffix == "safetensors":
            save_file(part, folder / file, {"format": "pt"})
        else:
            torch.save(part, folder / file)
        table |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": table}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def distributed(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    dcp.save({"model": tensors}, checkpoint_id=folder, no_dist=True)


def as_adapter(folder: Path, suffix: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    generator = torch.Generator().manual_seed(0)
    prefix = "base_model.model.model.layers.2.proj"
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(2, 17, generator=generator),
        f"{prefix}.lora_B.weight": torch.randn(13, 2, generator=generator),
    }
    if suffix == "safetensors":
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    else:
        torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(LORA))


def extracted(folder: Path) -> None:
    vector = Checkpoint.open(folder) - Checkpoint.open(folder.with_name("base"))
    saved = vector.save(folder.with_name("vector"))
    shutil.rmtree(folder)
    saved.rename(folder)


def add(name: str, text: str = "{}") -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return put


def modules(folder: Path) -> None:
    add("1_Pooling/config.json", '{"word_embedding_dimension": 8}')(folder)
    rows = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(rows))


def nothing(folder: Path) -> None:
    """As it is."""


ADAPTER = PLAIN.replace("one: one", "one: {model: base, adapter: one}")
INPUTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "safetensors": (nothing, "one/model.safetensors", PLAIN),
    "a shard": (lambda one: in_shards(one, "safetensors"), "one/model-00002-of-00002.safetensors", PLAIN),
    "an index": (lambda one: in_shards(one, "safetensors"), "one/model.safetensors.index.json", PLAIN),
    "pytorch_model.bin": (as_bin, "one/pytorch_model.bin", PLAIN),
    "a shard of PyTorch's": (lambda one: in_shards(one, "bin"), "one/pytorch_model-00002-of-00002.bin", PLAIN),
    "an index of PyTorch's": (lambda one: in_shards(one, "bin"), "one/pytorch_model.bin.index.json", PLAIN),
    "model.pt": (lambda one: as_bin(one, "model.pt"), "one/model.pt", PLAIN),
    "a trainer's file": (lambda one: as_bin(one, "last.ckpt", key="state_dict"), "one/last.ckpt", PLAIN),
    "a single file": (nothing, "one/model.safetensors", PLAIN.replace("one: one", "one: one/model.safetensors")),
    "a single file of PyTorch's": (
        lambda one: as_bin(one, "x.pt"), "one/x.pt", PLAIN.replace("one: one", "one: one/x.pt"),
    ),
    "a distributed checkpoint": (distributed, "one/__0_0.distcp", PLAIN),
    "its metadata": (distributed, "one/.metadata", PLAIN),
    "an adapter": (lambda one: as_adapter(one, "safetensors"), "one/adapter_model.safetensors", ADAPTER),
    "an adapter of PyTorch's": (lambda one: as_adapter(one, "bin"), "one/adapter_model.bin", ADAPTER),
    "an adapter's config": (lambda one: as_adapter(one, "safetensors"), "one/adapter_config.json", ADAPTER),
    "a task vector": (extracted, "one/task_vector.safetensors", PLAIN),
    "a base of its own": (nothing, "own/model.safetensors", PLAIN.replace("one: one", "one: {model: one, base: own}")),
    "a checkpoint of a soup": (nothing, "run/checkpoint-2/model.safetensors",
                               PLAIN.replace("one: one", "one: {model: 'run/checkpoint-*'}")),
    "config.json": (nothing, "one/config.json", PLAIN),
    "a tokenizer": (add("tokenizer.json", '{"model": {"vocab": {}}}'), "one/tokenizer.json", PLAIN),
    "merges.txt": (add("merges.txt", "a b"), "one/merges.txt", PLAIN),
    "vocab.txt": (add("vocab.txt", "a"), "one/vocab.txt", PLAIN),
    "generation settings": (add("generation_config.json"), "one/generation_config.json", PLAIN),
    "a chat template": (add("chat_template.jinja"), "one/chat_template.jinja", PLAIN),
    "another chat template": (
        add("additional_chat_templates/x.jinja"), "one/additional_chat_templates/x.jinja", PLAIN,
    ),
    "code": (add("modeling_own.py", "x = 1"), "one/modeling_own.py", PLAIN),
    "a module's settings": (modules, "one/1_Pooling/config.json", PLAIN),
}  # fmt: skip


def changed(path: Path) -> None:
    """One byte more or less near the end, where it hurts least, at a later time; the size is the same."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def stored(room: Path) -> Path:
    """A base, its twin, a specialist and a training's checkpoints."""
    base = random_model(0)
    for place, seed in (("base", 0), ("own", 0), ("one", 1), ("run/checkpoint-1", 2), ("run/checkpoint-2", 3)):
        write_model(room / place, base if not seed else random_model(seed, near=base))
    return room / "one"


def is_done(room: Path, text: str) -> bool:
    recipe = loads(text, "recipe.yaml", room)
    run = Run(recipe, Places.of(recipe))
    return all(run.is_done(step) for step in fuse_steps(run))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # a checkpoint that one process saves
@pytest.mark.parametrize("what", INPUTS)
def test_every_file_that_a_fuse_opens_is_an_input(tmp_path: Path, what: str) -> None:
    make, name, text = INPUTS[what]
    one = stored(tmp_path)
    make(one)
    if name.endswith("task_vector.safetensors"):
        name = str(next(one.glob("*.safetensors")).relative_to(tmp_path))
    assert (tmp_path / name).is_file(), sorted(one.rglob("*"))
    _, said = run_quietly(tmp_path, text, start="fuse", until="fuse")
    assert running(said) == ["fuse"]
    for place in one.parent.glob("*/README.md"):
        place.write_text("# a card decides nothing")
    assert is_done(tmp_path, text)
    _, said = run_quietly(tmp_path, text, start="fuse", until="fuse")
    assert running(said) == []
    changed(tmp_path / name)
    assert not is_done(tmp_path, text), name


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-extra.safetensors", "adapter_config.json", "vocab.json"])
def test_a_file_that_was_not_there_is_a_change(tmp_path: Path, name: str) -> None:
    one = stored(tmp_path)
    run_quietly(tmp_path, PLAIN, start="fuse", until="fuse")
    assert is_done(tmp_path, PLAIN)
    (one / name).write_text("{}")
    assert not is_done(tmp_path, PLAIN)
    (one / name).unlink()
    assert is_done(tmp_path, PLAIN)


def test_a_checkpoint_that_was_saved_since(tmp_path: Path) -> None:
    text = INPUTS["a checkpoint of a soup"][2]
    stored(tmp_path)
    run_quietly(tmp_path, text, start="fuse", until="fuse")
    assert is_done(tmp_path, text)
    shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "run" / "checkpoint-3")
    assert not is_done(tmp_path, text)
