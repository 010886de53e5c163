"""The only parser of paths and uris: it reads their text without access to the disk.

`hub.locate` uses it to decide the kind of an input; every output path goes through `output_path`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from taskmerge.errors import UsageError, clipped

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_FOLDED = re.compile(r"(s3|gs|gcs|r2|oss|az|abfss?|hdfs|dbfs|https?|ftp|hf|file):/", re.IGNORECASE)
_REPO_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)

_SECRET = re.compile(r"[^/@]*:[^/@]*@")
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Schemes of stores that hold objects; other schemes are fsspec's."""
_UNWRITABLE = ("http", "https", "hf", "github", "zip", "tar", "git", "data", "reference")

_LOCAL = "write to a folder on this disk, then copy it there"


@dataclass(frozen=True)
class StoreUri:
    """A folder or file that a store holds: s3://bucket/folder. text: without a slash at its end."""

    text: str

    @property
    def scheme(self) -> str:
        """The scheme in lower case, e.g. "s3"."""
        return self.text.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> StoreUri:
        """The folder that holds it."""
        return StoreUri(self.text.rpartition("/")[0])

    def is_below(self, other: StoreUri) -> bool:
        """Return whether the uri is `other`, or inside it."""
        return f"{self.text}/".startswith(f"{other.text}/")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Reference:
    """The meaning of a text.

    path: of kind "path", with ~ replaced. text: as written; of kind "hub" an hf:// uri, of kind "store" the uri of an
    object store or another file system that fsspec knows.
    """

    kind: Literal["path", "hub", "store"]
    text: str
    path: Path = Path()


def parse_place(text: str | os.PathLike[str], what: str = "a path") -> Reference:
    """Return what a text names: a path of this disk (also as file://), an hf:// uri, or one of a store (s3://).

    Args:
        text: as the user wrote it.  what: what it should be, for messages.

    Raises:
        UsageError: for an empty text, a scheme that nothing here reads, a file:// of another machine, a password in a
            uri, and `~` where there is no home folder.
    """
    shown = clipped(repr(text if isinstance(text, str) else str(text)), 200)
    if not isinstance(text, (str, os.PathLike)):
        raise UsageError(f"{shown} is not {what}", next_move="write a path, such as models/base")
    text = os.fspath(text)
    if not text.strip() or "\0" in text:
        raise UsageError(f"{shown} is not {what}", next_move="write a path, such as models/base")
    if scheme := _scheme(text):
        if scheme == "hf":  # a Path has folded its slashes into one
            return Reference("hub", text if "://" in text else text.replace(":/", "://", 1))
        if scheme != "file":
            return Reference("store", _store_uri(text, scheme).text)
        after = text.partition(":")[2]
        host, _, rest = after[2:].partition("/") if after.startswith("//") else ("", "", after[1:])
        if host not in ("", "localhost"):
            raise UsageError(
                f"{shown} refers to another machine ({host})", next_move="write file:///folder, or the path"
            )
        return Reference("path", text, Path(unquote("/" + rest)))
    return Reference("path", text, _expanded(text))


def _store_uri(text: str, scheme: str) -> StoreUri:
    rest = text.partition(":")[2].lstrip("/") if "://" not in text else text.partition("://")[2]
    if _SECRET.match(rest) or "?" in rest:
        raise UsageError(
            f"a {scheme}:// uri with a password or a signed query",
            next_move="leave it out: credentials are read in the same way as by the store's own tools (environment, "
            "roles)",
        )
    if not _is_known(scheme):
        move = "supported: paths, hub ids, hf:// uris, and the schemes of fsspec (s3://, gs://, az://, …)"
        raise UsageError(f"{clipped(repr(text), 200)}: {scheme}:// cannot be opened", next_move=move)
    if not rest.strip("/"):
        raise UsageError(
            f"{clipped(repr(text), 200)} does not contain a folder", next_move=f"write {scheme}://bucket/folder"
        )
    return StoreUri(f"{scheme}://{rest.rstrip('/')}")


def _is_known(scheme: str) -> bool:
    """Whether there may be something that opens it; `checkpoints.stores` says what is missing."""
    if scheme in OBJECT_STORES:
        return True
    from fsspec.registry import known_implementations, registry

    return scheme in known_implementations or scheme in registry


def is_pattern(text: str) -> bool:
    """Return whether a text names several paths at once: run/checkpoint-*."""
    return any(sign in text for sign in "*?[") and not _scheme(text)


def repository_of(text: str) -> tuple[str, str | None] | None:
    """Return (owner/name, revision or None) where a text can be a hub id, else None."""
    match = _REPO_ID.fullmatch(text)
    return (match["repo"], match["revision"]) if match else None


def output_path(text: str | os.PathLike[str], folder: Path | None = None) -> Path:
    """Return where to write: a path of this disk.

    Args:
        text: as the user wrote it.  folder: what a relative path starts from; None: the current folder.

    Raises:
        UsageError: for what `parse_place` refuses, for stores, and for the hub, which nothing here writes to directly.
    """
    place = output_place(text, folder)
    if isinstance(place, StoreUri):
        what = f"{clipped(repr(os.fspath(text)), 200)}: {place.scheme}:// cannot be written to by this command"
        raise UsageError(what, next_move=_LOCAL)
    return place


def output_place(text: str | os.PathLike[str] | StoreUri, folder: Path | None = None) -> Path | StoreUri:
    """Parse an output path as `output_path` does, or the uri of a store."""
    if isinstance(text, StoreUri):
        return text
    try:
        place = parse_place(text, "an output path")
    except UsageError as error:
        scheme = _scheme(str(text))
        if scheme in (None, "file") or "cannot be opened" not in str(error):
            raise
        raise UsageError(
            f"{clipped(repr(str(text)), 200)}: {scheme}:// cannot be written to", next_move=_LOCAL
        ) from error
    if place.kind == "store":
        uri = StoreUri(place.text)
        if uri.scheme in _UNWRITABLE:
            what = f"{clipped(repr(str(text)), 200)}: {uri.scheme}:// cannot be written to"
            raise UsageError(what, next_move=_LOCAL)
        return uri
    if place.kind == "hub":
        raise UsageError(
            f"{clipped(repr(place.text), 200)}: hf:// cannot be written to",
            next_move="write to a folder on this disk, then `taskmerge push FOLDER owner/name`",
        )
    path = _named(place.path if folder is None else folder / place.path)
    if str(path).startswith("~"):  # a folder of that name, said as ./~: read once more it would be the home folder
        return Path.cwd() / path
    return path


def _named(path: Path) -> Path:
    """A path whose last part is a name, since files are assembled next to it: "." and ".." are resolved."""
    if path.name not in ("", ".."):
        return path
    try:
        whole = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
    except FileNotFoundError:
        what = f"{clipped(repr(str(path)), 200)}: the current folder does not exist any more"
        raise UsageError(what, next_move="change to another folder, or write the absolute path") from None
    if not whole.name:
        raise UsageError(
            f"{clipped(repr(str(path)), 200)} is the root of a disk", next_move="write the name of a folder on it"
        )
    return whole


def _scheme(text: str) -> str | None:
    """The scheme of a uri, in lower case; also of one whose slashes a Path has folded into one (s3:/bucket)."""
    match = _SCHEME.match(text) or _FOLDED.match(text)
    return match[1].lower() if match else None


def _expanded(text: str) -> Path:
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        what = f"{clipped(repr(text), 200)}: the home folder is unknown (HOME is not set)"
        raise UsageError(what, next_move="write the absolute path") from None


def cache_folder() -> Path | None:
    """Return where this program may keep what it can make again: $XDG_CACHE_HOME/taskmerge, ~/.cache/taskmerge.

    Returns:
        None where there is neither: nothing is kept then.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    if root:
        return Path(root) / "taskmerge"
    try:
        return Path.home() / ".cache" / "taskmerge"
    except RuntimeError:
        return None
