"""Where things lie: the text of a path or uri, read without looking at the disk. The only parser.

`hub.locate` decides with it what an input is; everything that is written goes through `output_path`.
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

_LOCAL = "write to a folder of this disk, then copy it there"


@dataclass(frozen=True)
class Reference:
    """What a text names. path: of kind "path", with ~ replaced. text: as written; of kind "hub", an hf:// uri."""

    kind: Literal["path", "hub"]
    text: str
    path: Path = Path()


def parse_place(text: str | os.PathLike[str], what: str = "a path") -> Reference:
    """Return what a text names: a path of this disk (also as file://) or an hf:// uri.

    Args:
        text: as the user wrote it.  what: what it should be, for messages.

    Raises:
        UsageError: for an empty text, a scheme that nothing here reads (s3://), a file:// of another machine, and `~`
            where there is no home folder.
    """
    text = os.fspath(text)
    shown = clipped(repr(text), 200)
    if not text.strip() or "\0" in text:
        raise UsageError(f"{shown} is not {what}", next_move="write a path, such as models/base")
    if scheme := _scheme(text):
        if scheme == "hf":  # a Path has folded its slashes into one
            return Reference("hub", text if "://" in text else text.replace(":/", "://", 1))
        if scheme != "file":
            move = "copy it to this disk and name the folder; paths, hub ids and hf:// uris can be read"
            raise UsageError(f"{shown}: {scheme}:// cannot be opened", next_move=move)
        after = text.partition(":")[2]
        host, _, rest = after[2:].partition("/") if after.startswith("//") else ("", "", after[1:])
        if host not in ("", "localhost"):
            raise UsageError(f"{shown} names another machine ({host})", next_move="write file:///folder, or the path")
        return Reference("path", text, Path(unquote("/" + rest)))
    return Reference("path", text, _expanded(text))


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
        UsageError: for what `parse_place` refuses, and for the hub, which nothing here writes to directly.
    """
    try:
        place = parse_place(text, "an output path")
    except UsageError as error:
        scheme = _scheme(os.fspath(text))
        if scheme in (None, "file"):
            raise
        raise UsageError(
            f"{clipped(repr(os.fspath(text)), 200)}: {scheme}:// cannot be written to", next_move=_LOCAL
        ) from error
    if place.kind == "hub":
        raise UsageError(
            f"{clipped(repr(place.text), 200)}: hf:// cannot be written to",
            next_move="write to a folder of this disk, then `taskmerge push FOLDER owner/name`",
        )
    path = _named(place.path if folder is None else folder / place.path)
    if str(path).startswith("~"):  # a folder of that name, said as ./~: read once more it would be the home folder
        return Path.cwd() / path
    return path


def _named(path: Path) -> Path:
    """A path whose last part is a name, since things are put together beside it: "." and ".." become what they are."""
    if path.name not in ("", ".."):
        return path
    try:
        whole = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
    except FileNotFoundError:
        what = f"{clipped(repr(str(path)), 200)}: the folder you are in is not there any more"
        raise UsageError(what, next_move="change to another folder, or write the whole path") from None
    if not whole.name:
        raise UsageError(
            f"{clipped(repr(str(path)), 200)} is a whole disk", next_move="write the name of a folder on it"
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
        what = f"{clipped(repr(text), 200)}: the home folder is not known (HOME is not set)"
        raise UsageError(what, next_move="write the whole path") from None


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
