"""Places of checkpoints that the user names: a local path, a hub id with a revision, or an hf:// uri."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.table import READABLE
from taskmerge.checkpoints.stores.cached import is_cache_used
from taskmerge.checkpoints.stores.mirrors import mirror
from taskmerge.errors import CheckpointError, clipped, first_line
from taskmerge.words.places import StoreUri, parse_place, repository_of
from taskmerge.words.sizes import show_bytes

_SIDE_FILES = (
    "*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken", "*.md", "LICENSE*", "*/config.json",
)  # fmt: skip


@dataclass(frozen=True)
class HubPlace:
    """A model repository on the hub: id, revision as the user gave it (None: the default branch), folder within.

    certain: the user wrote hf://; otherwise a mistyped path of this disk may be meant.
    """

    repo: str
    revision: str | None = None
    folder: str = ""
    certain: bool = False

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}" + (f"/{self.folder}" if self.folder else "")


def locate(text: str, relative_to: Path | None = None) -> Path | HubPlace:
    """Return the place that the user's text means.

    An hf:// uri is on the hub; the uri of a store has a folder of this disk in its place (`stores.mirrors`); then an
    existing path; then ``owner/name[@revision]``.

    relative_to: the folder that relative paths start from (the recipe's). Raises CheckpointError if the text is
    neither an existing path nor a possible hub id, UsageError for a text that cannot be a path or a uri.
    """
    place = parse_place(text, "a model")
    if place.kind == "hub":
        return _parse_uri(place.text)
    if place.kind == "store":
        return mirror(StoreUri(place.text))
    path = place.path
    if relative_to is not None and not path.is_absolute() and _exists(relative_to / path):
        return relative_to / path
    if _exists(path):
        return path
    if repository := repository_of(text):
        return HubPlace(*repository)
    raise CheckpointError(
        f"there is no file or folder {clipped(repr(text), 300)}, and it is not a hub id (owner/name[@revision]) either",
        text,
        "check the path; relative paths are looked up in the recipe's folder, then in the current one",
    )


def _exists(path: Path) -> bool:
    """Whether it is there; a name too long for the system to ask about is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _parse_uri(text: str) -> HubPlace:
    from huggingface_hub.utils import parse_hf_uri

    try:
        uri = parse_hf_uri(text)
    except Exception as error:
        raise CheckpointError(f"not an hf:// uri: {error}", text, "write hf://owner/name[@revision]") from None
    if uri.type != "model":
        raise CheckpointError(
            f"the uri is that of a {uri.type}, not of a model", text, "write hf://owner/name[@revision]"
        )
    return HubPlace(uri.id, uri.revision, uri.path_in_repo, certain=True)


@dataclass(frozen=True)
class Snapshot:
    """A hub repository at one commit. folder: local folder with all files but the weights.

    weight_files: names of those whose headers can be read there, relative to `folder`; `fetch` downloads one
    when it is first needed. others: names of the remaining files. stated: size and sha256 of the weight files of which
    the hub states them.
    """

    place: HubPlace
    commit: str
    folder: Path
    weight_files: tuple[str, ...]
    others: tuple[str, ...] = ()
    stated: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def fetch(self, name: str) -> Path:
        """Return the local path of weight file `name`, downloaded (resumably, into the shared cache) if absent."""
        from huggingface_hub import hf_hub_download

        inside = f"{self.place.folder}/{name}" if self.place.folder else name
        return Path(_asked(self.place, lambda: hf_hub_download(self.place.repo, inside, revision=self.commit)))


def open_snapshot(place: HubPlace) -> Snapshot:
    """Resolve the revision to a commit and fetch everything small; weight files are not downloaded.

    With HF_HUB_OFFLINE=1 only the local cache is consulted. Raises CheckpointError with the hub's own words.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    prefix = f"{place.folder}/" if place.folder else ""
    patterns = [prefix + pattern for pattern in _SIDE_FILES]
    root = Path(_asked(place, lambda: snapshot_download(place.repo, revision=place.revision, allow_patterns=patterns)))
    folder = root / place.folder if place.folder else root
    commit = root.name
    if constants.HF_HUB_OFFLINE:
        names: Sequence[str] = [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]
    else:
        info: Any = _asked(place, lambda: HfApi().model_info(place.repo, revision=commit, files_metadata=True))
        files = {one.rfilename.removeprefix(prefix): one for one in info.siblings if one.rfilename.startswith(prefix)}
        names = list(files)
    weight_files = tuple(sorted(name for name in names if any(row.remote and row.called(name) for row in READABLE)))
    stated = {} if constants.HF_HUB_OFFLINE else _stated({name: files[name] for name in weight_files})
    return Snapshot(place, commit, folder, weight_files, tuple(sorted(set(names) - set(weight_files))), stated)


def _stated(files: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    large = {name: one.lfs for name, one in files.items() if one.lfs is not None}
    return {name: (int(lfs.size), str(lfs.sha256)) for name, lfs in large.items()}


_downloads: dict[str, int] = {}
"""Folder of a snapshot -> bytes that are to be downloaded there, of all that this process opened."""


def why_in_ranges(snapshot: Snapshot, names: Sequence[str]) -> str:
    """Return why weight files are not downloaded but read in ranges; "" where they are downloaded.

    They are downloaded to the hub's cache, which serves the next run and other programs; not where the user wants a
    cache of ranges of limited size, and where the disk is too small for them and what else is still to be downloaded.
    """
    missing = [name for name in names if name in snapshot.stated and not (snapshot.folder / name).exists()]
    size = sum(snapshot.stated[name][0] for name in missing)
    if not size:
        return ""
    if is_cache_used():
        return "--cache-size limits what is kept of them"
    key = str(snapshot.folder)
    others = sum(count for place, count in _downloads.items() if place != key)
    free = shutil.disk_usage(snapshot.folder).free
    if size + others > free:
        return (
            f"{show_bytes(size + others)} must be downloaded, but the disk of the hub's cache has "
            f"{show_bytes(free)} free"
        )
    _downloads[key] = size
    return ""


def _asked(place: HubPlace, call: Any) -> Any:
    """Runs a hub call; its failures become one line in our own form."""
    try:
        return call()
    except Exception as error:  # the hub client raises many kinds: network, rights, missing, offline
        what = f"cannot be downloaded from the hub: {first_line(error)}"
        raise CheckpointError(
            what if place.certain else f"there is no file or folder {str(place)!r}, and it {what}",
            str(place),
            "check the path or id and revision, HF_TOKEN for private models, and HF_HUB_OFFLINE (uses only "
            "cached files)",
        ) from None


def upload(folder: Path, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload every file of `folder` to a model repository, made if necessary; return the commit's address.

    Raises CheckpointError with the hub's own words.
    """
    from huggingface_hub import HfApi

    place, api = HubPlace(repository, revision), HfApi()
    _asked(place, lambda: api.create_repo(repository, private=private, exist_ok=True))
    if revision is not None:
        _asked(place, lambda: api.create_branch(repository, branch=revision, exist_ok=True))
    commit = _asked(
        place,
        lambda: api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message="Upload a model made by taskmerge",
        ),
    )
    return str(commit.commit_url)
