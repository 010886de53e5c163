"""The record beside a fused model, and what `verify` finds when something is no longer as recorded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import SHAPES, digests, random_model, write_model, write_recipe
from safetensors.torch import load_file, save_file

from taskmerge import __version__, recipes
from taskmerge.errors import CheckpointError
from taskmerge.merging import execute, plan
from taskmerge.merging.verify import verified, verify

NAME = "model.layers.2.proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models, a recipe and what it makes."""
    base = random_model(0)
    write_model(tmp_path / "base", base)
    for seed, label in ((1, "image"), (2, "audio")):
        write_model(tmp_path / label, random_model(seed, near=base))
    path = write_recipe(
        tmp_path,
        base="base",
        specialists={"image": {"model": "image", "weight": 0.3}, "audio": "audio"},
        merge={"method": "dare_ties", "rules": [{"match": "*.norm.weight", "keep": "base"}]},
        output={"shard_size": 600},
        seed=9,
    )
    recipe = recipes.load(path)
    execute(plan(recipe), recipe, tmp_path / "made" / "out")
    return tmp_path


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "made" / "out" / "taskmerge.json").read_text())


def test_the_record_says_everything(folder: Path) -> None:
    record, out = record_of(folder), folder / "made" / "out"
    assert record["recipe"] == (folder / "merge.yaml").read_text()
    assert (out / record["recipe_folder"]).resolve() == folder.resolve()
    assert (record["taskmerge"], record["seed"]) == (__version__, 9)
    assert {"python", "numpy", "safetensors"} <= record["versions"].keys()
    for label in ("base", "image", "audio"):
        found = hashlib.sha256((folder / label / "model.safetensors").read_bytes()).hexdigest()
        assert record["inputs"][label] == {"source": label, "files": {"model.safetensors": found}, "declared": [{}]}
    files = {name: digest for name, digest in digests(out).items() if name != "taskmerge.json"}
    assert record["outputs"] == files and sum(name.endswith(".safetensors") for name in files) > 1
    assert (record["kind"], record["stage"]) == ("fused", "fuse")
    said = {name: record["rules"][number] for name, number in record["tensors"].items()}
    assert set(said) == set(SHAPES)
    assert said["model.layers.0.norm.weight"] == "keep from base: rule '*.norm.weight'"
    assert said[NAME].startswith("dare_ties (average weight, density 0.5, ")
    assert said[NAME].endswith("of image 0.3, audio 1: no rule matches it")


def test_the_card_says_what_it_was_made_from(folder: Path) -> None:
    text = (folder / "made" / "out" / "README.md").read_text()
    assert text.startswith("---\n") and '\ntags: ["merge", "taskmerge"]\n' in text
    assert "# out" in text and "| backbone | 8 | 2 | 0 |" in text
    assert (folder / "merge.yaml").read_text().rstrip() in text
    assert "base_model" not in text, "paths of this disk mean nothing there"


def test_what_is_as_recorded(folder: Path, command: Callable[..., Any]) -> None:
    out = folder / "made" / "out"
    assert verify(out) == []
    ran = command("verify", out)
    assert (ran.code, ran.out) == (0, "")
    assert "checked: 10 tensors: merged again, every bit compared" in ran.err
    assert "not checked: tensors" not in ran.err and "as recorded, in everything that was checked" in ran.err
    ran = command("verify", out, "--json", "--hashes-only")
    said = json.loads(ran.out)
    assert (said["path"], said["same"], said["differences"]) == (str(out), True, [])
    assert said["checked"] == [
        "6 files of the folder: sha256 of all bytes",
        "3 weight files of 3 inputs: sha256 of all bytes",
        "10 tensors: compared with the recipe's plan",
    ]
    assert said["unchecked"] == [
        "README.md: not compared, because users may edit the card",
        "tensors: not merged again (--hashes-only)",
    ]
    ran = command("verify", out, "--hashes-only")
    assert "not checked: tensors: not merged again" in ran.err and "every bit" not in ran.err


def test_it_may_be_moved_with_everything(folder: Path) -> None:
    moved = folder.rename(folder.parent / "elsewhere")
    assert verify(moved / "made" / "out") == []


def test_moved_alone_it_is_told_where_the_recipe_lay(folder: Path, command: Callable[..., Any]) -> None:
    out = folder / "far" / "away" / "from" / "it"
    out.parent.mkdir(parents=True)
    (folder / "made" / "out").rename(out)
    ran = command("verify", out)
    assert ran.code == 2 and "no file or folder 'base'" in ran.err
    assert f"relative to the model, the recipe was in {folder / 'far' / 'away'}" in ran.err
    assert "verify --recipe-folder FOLDER" in ran.err
    ran = command("verify", out, "--recipe-folder", folder)
    assert (ran.code, ran.out) == (0, "")
    assert "as recorded, in everything that was checked" in ran.err


Change = Callable[[Path], object]


def edit(path: str, position: int) -> Change:
    def apply(folder: Path) -> None:
        data = bytearray((folder / path).read_bytes())
        data[position] ^= 1
        (folder / path).write_bytes(data)

    return apply


def edit_tensor(folder: Path) -> None:
    out = folder / "made" / "out"
    path = out / json.loads((out / "model.safetensors.index.json").read_text())["weight_map"][NAME]
    tensors = load_file(path)
    tensors[NAME][2, 3:5] += 1
    save_file(tensors, path, {"format": "pt"})


def edit_record(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        record = record_of(folder)
        change(record)
        (folder / "made" / "out" / "taskmerge.json").write_text(json.dumps(record))

    return apply


DIFFERENCES: dict[str, tuple[Change, list[str]]] = {
    "a tensor of the output": (
        edit_tensor,
        ["its sha256 is not the recorded one", f"tensor {NAME}: 2 entries differ, first at entry 37"],
    ),
    "an input": (edit("image/model.safetensors", -1), ["input image: model.safetensors is not the recorded file"]),
    "another seed": (
        edit_record(lambda record: record.update(recipe=record["recipe"].replace("seed: 9", "seed: 8"))),
        ["entries differ"],
    ),
    "another rule": (
        edit_record(lambda record: record.update(recipe=record["recipe"].replace("'*.norm.weight'", "'*.one.bias'"))),
        ['tensor model.layers.0.norm.weight: recorded "keep from base: rule'],
    ),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_what_differs_is_said(folder: Path, kind: str, command: Callable[..., Any]) -> None:
    change, expected = DIFFERENCES[kind]
    change(folder)
    findings = verify(folder / "made" / "out")
    for words in expected:
        assert any(words in line for line in findings), findings
    ran = command("verify", folder / "made" / "out")
    assert ran.code == 1 and ran.out.splitlines() == findings
    assert "differs from its record" in ran.err


def test_a_file_that_is_gone(folder: Path) -> None:
    gone = next((folder / "made" / "out").glob("model-*.safetensors"))
    gone.unlink()
    assert verify(folder / "made" / "out", rederive=False) == [f"{gone.name}: missing"]


def test_hashes_alone_do_not_fuse_again(folder: Path) -> None:
    edit_record(lambda record: record.update(recipe=record["recipe"].replace("seed: 9", "seed: 8")))(folder)
    assert verify(folder / "made" / "out", rederive=False) == []


def test_an_input_that_is_gone_is_named(folder: Path, command: Callable[..., Any]) -> None:
    shutil.rmtree(folder / "audio")
    ran = command("verify", folder / "made" / "out")
    assert ran.code == 2 and "audio: there is no file or folder 'audio'" in ran.err


def test_what_was_not_made_here(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no taskmerge\.json: it was not made by taskmerge"):
        verify(folder / "base")
    edit_record(lambda record: record.pop("outputs"))(folder)
    with pytest.raises(CheckpointError, match=r"taskmerge\.json: it lacks 'outputs'"):
        verify(folder / "made" / "out")
    (folder / "made" / "out" / "taskmerge.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="it must be a table, not a list of 1"):
        verify(folder / "made" / "out")


@pytest.mark.parametrize("name", ["../../merge.yaml", "/etc/hostname"])
def test_a_record_that_points_outside(folder: Path, name: str) -> None:
    edit_record(lambda record: record["outputs"].update({name: "0" * 64}))(folder)
    assert f"{name}: is outside the folder" in verify(folder / "made" / "out", rederive=False)


@pytest.mark.parametrize("place", ["beside it", "as the hub's cache lies"])
@pytest.mark.parametrize("whose", ["made/out", "image"])
def test_a_link_named_by_the_recorded_hash_fools_nobody(folder: Path, place: str, whose: str) -> None:
    """The hub's cache names a file by its hash, and a link leads there: so can anybody's."""
    path = sorted((folder / whose).glob("model*.safetensors"))[0]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    blob = folder / whose / digest if place == "beside it" else folder / whose / "models--a--b" / "blobs" / digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    path.unlink()
    path.symlink_to(blob)
    findings = verify(folder / "made" / "out", rederive=False)
    said = "its sha256 is not the recorded one" if whose != "image" else "input image: model.safetensors is not the"
    assert any(said in line for line in findings), findings


def test_a_file_that_changed_behind_a_remembered_hash(folder: Path) -> None:
    """Size and times of change are as they were when its hash was remembered."""
    from taskmerge.checkpoints import hashing

    path = sorted((folder / "made" / "out").glob("model*.safetensors"))[0]
    digest, stat = hashing.sha256_of(path), path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    hashing.remember([(path, path.stat(), digest)])
    assert verify(folder / "made" / "out", rederive=False) == [f"{path.name}: its sha256 is not the recorded one"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.safetensors", "modeling_own.py"])
def test_what_a_loader_may_take_and_the_record_does_not_know(folder: Path, name: str) -> None:
    (folder / "made" / "out" / name).write_bytes(b"anything")
    assert verify(folder / "made" / "out", rederive=False) == [f"{name}: not in the record"]


def test_a_config_that_was_edited(folder: Path) -> None:
    (folder / "made" / "out" / "config.json").write_text('{"model_type": "llama", "rope_theta": 1}')
    assert verify(folder / "made" / "out", rederive=False) == ["config.json: its sha256 is not the recorded one"]
    (folder / "made" / "out" / "notes.txt").write_text("mine")
    unchecked = verified(folder / "made" / "out", rederive=False).unchecked
    assert "files that are not in the record: notes.txt" in unchecked


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_terabyte_of_holes_is_not_hashed(folder: Path, name: str) -> None:
    """It would take a quarter of an hour: its size alone says that it is another file."""
    out = folder / "made" / "out"
    path = next(iter(sorted(out.glob(name.replace("model.", "model*.")))))
    os.truncate(path, 2**40)
    findings = verify(out, rederive=False)
    assert f"{path.name}: its sha256 is not the recorded one" in findings
