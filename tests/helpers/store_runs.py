"""Models in a store of this machine, and fuses of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from s3_server import S3

from taskmerge import recipes
from taskmerge.checkpoints.stores import mirrors, opening
from taskmerge.merging import plan
from taskmerge.merging.parts import Job
from taskmerge.words.places import StoreUri


def upload(server: S3, folder: Path, key: str) -> None:
    """Put every file of a folder into the store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            server.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def in_store(server: S3, folder: Path, bucket: str = "bucket") -> Path:
    """The recipe of a folder as one of models in the store, beside it: remote.yaml."""
    said = yaml.safe_load((folder / "merge.yaml").read_text())
    names = {said["base"], *(row if isinstance(row, str) else row["model"] for row in said["specialists"].values())}
    for name in names:
        upload(server, folder / name, f"{bucket}/{name}")
    remote = {
        **said,
        "base": f"s3://{bucket}/{said['base']}",
        "specialists": {
            label: {**({"model": row} if isinstance(row, str) else row),
                    "model": f"s3://{bucket}/{row if isinstance(row, str) else row['model']}"}
            for label, row in said["specialists"].items()
        },
    }  # fmt: skip
    path = folder / "remote.yaml"
    path.write_text(yaml.safe_dump(remote, sort_keys=False))
    return path


def local_job(folder: Path, out: str = "parts", **options: Any) -> Job:
    """The merge of a folder's recipe, to be shared by parts."""
    recipe = recipes.load(folder / "merge.yaml")
    return Job(plan(recipe), recipe, folder / out, **options)


def store_job(recipe: Path, out: str = "s3://bucket/out", **options: Any) -> Job:
    loaded = recipes.load(recipe)
    return Job(plan(loaded), loaded, StoreUri(out), **options)


def weights(server: S3, key: str = "bucket/out") -> dict[str, str]:
    """Weight file -> sha256, of what lies in the store."""
    return {
        name.removeprefix(f"{key}/"): hashlib.sha256(one.data).hexdigest()
        for name, one in server.objects.items()
        if name.startswith(f"{key}/") and name.endswith(".safetensors")
    }


def local_weights(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}


def forget() -> None:
    """Let nothing of another server be remembered."""
    opening.open_store.cache_clear()
    mirrors.forget()
