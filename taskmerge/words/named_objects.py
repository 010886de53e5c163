"""Python objects that the user names: `path/to/file.py:name`, or `package.module:name` of an installed package.

A file or package named here is executed: it is the user's own code. Nothing else ever is: what a recipe names that came
with a model is not the user's choice, see `not_the_users`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from taskmerge.errors import UsageError, clipped, did_you_mean, first_line
from taskmerge.opened import opened


@dataclass(frozen=True)
class _Foreign:
    """A text that came with a foreign model.

    place: where.  own: what the user has named himself, by its last part.  used: those that the text names.
    """

    place: str
    own: dict[str, Path]
    used: set[str] = field(default_factory=set)


_foreign: ContextVar[_Foreign | None] = ContextVar("_foreign", default=None)


@contextmanager
def not_the_users(place: str, named: Sequence[str] = ()) -> Iterator[None]:
    """Inside the block, names come from a text that the user did not write: none of them leads to code.

    Args:
        place: the text's file, for messages.
        named: `path/to/file.py:name` that the user has named himself, relative to the working directory; where the text
            names code of the same file name and name, his file is run.
    """
    own = {Path(text).name: Path(text.rpartition(":")[0]).resolve() for text in named}
    foreign = _Foreign(place, own)
    before = _foreign.set(foreign)
    try:
        yield
    finally:
        _foreign.reset(before)
    if unused := [text for text in named if Path(text).name not in foreign.used]:
        what = f"{unused[0]!r}: the recorded recipe does not use this code"
        raise UsageError(what, place, "leave it out, or give the name that the recipe has")


def names_code(text: str) -> bool:
    """Return whether a name means a file or a module, not an entry point of an installed package."""
    return ":" in text or ".py" in text


def check_users_own(text: str, what: str) -> None:
    """Raise UsageError for code that a foreign text names, before it is searched. what: for messages."""
    _users_own(text, Path(text), what)


def _users_own(text: str, path: Path | None, what: str) -> Path | None:
    """The file to run for a name: `path`, or in a foreign text the one that the user named. Raises UsageError."""
    foreign = _foreign.get()
    if foreign is None:
        return path
    if path is not None and (own := foreign.own.get(Path(text).name)) is not None:
        foreign.used.add(Path(text).name)
        return own
    raise UsageError(
        f"{what} {text!r} is code listed in {foreign.place}, which came with a model: it was not run",
        foreign.place,
        f"if you have the code and trust it, allow it: `verify --method YOUR/{Path(text).name}`, "
        "or copy the recipe into a folder of your own and fuse it there",
    )


def is_in_file(text: str) -> bool:
    """Return whether a name means an object in a Python file."""
    return ".py:" in text or text.endswith(".py")


def find_object(text: str, folder: Path, what: str) -> Any:
    """Return the object that `path/to/file.py:name` or `package.module:name` means.

    Args:
        text: as the user wrote it.
        folder: what the path of a file is relative to.
        what: what it is for, in messages ("the embedder").

    Raises:
        UsageError: for a file or module that is missing or fails, and a name that it does not define.
    """
    if is_in_file(text):
        module, where = module_of_file(text, folder, what), text.rpartition(":")[0]
    else:
        where = text.partition(":")[0]
        module = _installed(where, text, what)
    name = text.rpartition(":")[2]
    found = getattr(module, name, None)
    if found is None:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UsageError(
            f"{where} does not contain {name!r}, which {what} {text!r} refers to", next_move=did_you_mean(name, public)
        )
    return found


def module_of_file(text: str, folder: Path, what: str, around: AbstractContextManager[Any] | None = None) -> ModuleType:
    """Execute `file.py` of `file.py:name`, once while it is unchanged. Arguments and errors as for `find_object`.

    around: entered while the file runs.
    """
    path_text, _, name = text.rpartition(":")
    if not path_text or not name.isidentifier():
        raise UsageError(
            f"{what} {text!r} does not name a function in the file", next_move="write path/to/file.py:name"
        )
    path = _users_own(text, (folder / path_text).resolve(), what)
    assert path is not None
    if not path.is_file():
        raise UsageError(f"there is no file {path_text!r} for {what} {text!r}", next_move=f"check the path: {path}")
    opened(path)
    changed = path.stat()
    known = f"_taskmerge_{path.stem}_{abs(hash((str(path), changed.st_mtime_ns, changed.st_size)))}"
    if around is None and known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module
    try:
        with around or nullcontext():
            spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's: it may raise anything
        del sys.modules[known]
        raise UsageError(
            f"the file of {what} {text!r} fails: {type(error).__name__}: {clipped(first_line(error), 300)}",
            place=str(path),
            next_move="correct the file, then run the same command again",
        ) from error
    return module


def _installed(module: str, text: str, what: str) -> ModuleType:
    _users_own(text, None, what)
    try:
        return import_module(module)
    except Exception as error:  # an installed package's own code
        raise UsageError(
            f"{what} {text!r}: the module {module!r} cannot be imported: {type(error).__name__}: "
            f"{clipped(first_line(error), 300)}",
            next_move="install its package, or name a file: path/to/file.py:name",
        ) from error
