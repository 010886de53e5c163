"""Models of the hub that are read in ranges: the same merge, and only the bytes that it needs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoint_files import weight_digests, write_model, write_recipe
from hub_server import COMMIT, hub

from taskmerge.checkpoints import hub as hub_client
from taskmerge.checkpoints.hub import HubPlace, Snapshot, why_in_ranges
from taskmerge.checkpoints.stores import cached
from taskmerge.words.sizes import show_bytes

LARGE = 3 << 20


def models(folder: Path) -> None:
    """A base and a specialist of three tensors of 3 MiB and a small one."""
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{at}.proj.weight": torch.randn(768, 1024, generator=generator) for at in range(3)}
    base["model.norm.weight"] = torch.randn(64, generator=generator)
    write_model(folder / "base", base)
    write_model(folder / "law", {name: one + 0.01 for name, one in base.items()})


@pytest.mark.parametrize("options", [[], ["--cache-size", "1GB"]])
def test_a_merge_reads_what_it_needs_and_downloads_no_file(options: list[str], tmp_path: Path) -> None:
    models(tmp_path)
    rules = [{"match": "model.layers.[12].*", "weight": 0.0}]
    said = {"merge": {"method": "linear", "rules": rules}, "output": {"path": "out"}}
    write_recipe(tmp_path, base="base", specialists={"law": {"model": "hf://owner/law", "weight": 0.5}}, **said)
    with hub() as there:
        there.repositories["owner/law"] = {path.name: path.read_bytes() for path in (tmp_path / "law").iterdir()}
        env = {**os.environ, "HF_ENDPOINT": there.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
               "HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache"),
               "TASKMERGE_THREADS": "1"}  # fmt: skip
        words = [sys.executable, "-m", "taskmerge", "fuse", str(tmp_path / "merge.yaml"), "--out"]
        done = subprocess.run(
            [*words, str(tmp_path / "far"), *options], env=env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        sent = there.sent["model.safetensors"]
    stored = [
        path
        for path in (tmp_path / "home").rglob("*")
        if not path.is_symlink() and path.is_file() and path.stat().st_size >= LARGE
    ]
    if options:
        assert LARGE <= sent <= LARGE + (1 << 17), f"{sent:,} bytes: one tensor of three, and the first 64 KiB"
        assert not stored and "read from the hub in ranges" in done.stderr
    else:
        assert sent >= 3 * LARGE and len(stored) == 1 and "in ranges" not in done.stderr
    source = json.loads((tmp_path / "far" / "taskmerge.json").read_text())["inputs"]["law"]
    assert source["commit"] == COMMIT
    whole = hashlib.sha256((tmp_path / "law" / "model.safetensors").read_bytes()).hexdigest()
    assert source["files"] == {"model.safetensors": whole}
    write_recipe(tmp_path, base="base", specialists={"law": {"model": "law", "weight": 0.5}}, **said)
    from taskmerge import recipes
    from taskmerge.merging import execute, plan

    recipe = recipes.load(tmp_path / "merge.yaml")
    execute(plan(recipe), recipe, tmp_path / "near")
    assert weight_digests(tmp_path / "near") == weight_digests(tmp_path / "far")


def test_when_files_are_read_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk has no space for all that is still to be downloaded, and where a cache of ranges is wanted."""
    monkeypatch.setattr(hub_client, "_downloads", {})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))

    def snapshot(name: str, size: int) -> Snapshot:
        (tmp_path / name).mkdir(exist_ok=True)
        return Snapshot(HubPlace(f"owner/{name}"), COMMIT, tmp_path / name, ("a",), (), {"a": (size, "0" * 64)})

    assert why_in_ranges(snapshot("one", 600), ["a"]) == ""
    assert why_in_ranges(snapshot("one", 600), ["a"]) == "", "the same files once more"
    assert show_bytes(1200) in why_in_ranges(snapshot("two", 600), ["a"])
    assert why_in_ranges(snapshot("three", 400), ["a"]) == ""
    (tmp_path / "two" / "a").write_bytes(b"")
    assert why_in_ranges(snapshot("two", 600), ["a"]) == "", "it is here already"
    monkeypatch.setattr(cached, "_used", object())
    assert why_in_ranges(snapshot("four", 1), ["a"]).startswith("--cache-size")
