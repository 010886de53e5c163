"""Merge methods from outside the package: installed entry points, and `path/to/file.py:name` in a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taskmerge.errors import UsageError, did_you_mean
from taskmerge.methods.registry import MergeMethod, register, registered_now, unregistered
from taskmerge.words.named_objects import is_in_file, module_of_file

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "taskmerge.methods"
_loaded = False


def load_entry_points() -> None:
    """Register every method that an installed package offers under the group `taskmerge.methods`, once."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for point in offered():
        _register_point(point)


def offered() -> list[EntryPoint]:
    """Return the entry points of installed packages; the module that reads them is slow to import."""
    from importlib.metadata import entry_points

    return list(entry_points(group=GROUP))


def _register_point(point: EntryPoint) -> None:
    owner = point.dist.name if point.dist else "an installed package"
    try:
        found = point.load()
    except Exception as error:
        raise UsageError(
            f"the merge method {point.name!r} provided by {owner} cannot be imported: {error}",
            place=point.value,
            next_move=f"repair or uninstall {owner}",
        ) from error
    if not isinstance(found, MergeMethod):
        raise UsageError(
            f"{owner} provides {point.value!r} as a merge method, but it is not one",
            place=point.value,
            next_move="its author should decorate the function with @taskmerge.methods.merge_method",
        )
    register(found)


def known_names() -> list[str]:
    """Return every registered name and alias, sorted."""
    load_entry_points()
    return sorted(registered_now())


def all_methods() -> list[MergeMethod]:
    """Return every registered method once, sorted by name."""
    known = known_names()
    methods = {registered_now()[name].name: registered_now()[name] for name in known}
    return sorted(methods.values(), key=lambda method: method.name)


def registered(name: str) -> MergeMethod:
    """Return the method registered under a name or alias. Raises UsageError with the nearest name."""
    if name not in registered_now():
        known = known_names()
        if name not in registered_now():
            raise UsageError(f"unknown merge method {name!r}", next_move=did_you_mean(name, known))
    return registered_now()[name]


def find_method(name: str, folder: Path | None = None) -> MergeMethod:
    """Return the method of this name.

    A file that is named here is executed: it is the user's own code.

    Args:
        name: a built-in or registered method, or `path/to/file.py:name`.
        folder: the folder that the path is relative to; default: the working directory.

    Raises:
        UsageError: if there is no such method, file or name.
    """
    return method_from_file(name, folder or Path()) if is_in_file(name) else registered(name)


def method_from_file(name: str, folder: Path) -> MergeMethod:
    """Execute `file.py` of `file.py:function` and return the merge method it declares under that name."""
    module = module_of_file(name, folder, "the method", around=unregistered())
    path_text, _, function = name.rpartition(":")
    found = getattr(module, function, None)
    if found is None:
        declared = [key for key, value in vars(module).items() if isinstance(value, MergeMethod)]
        raise UsageError(f"{path_text} does not contain {function!r}", next_move=did_you_mean(function, declared))
    if not isinstance(found, MergeMethod):
        raise UsageError(
            f"{function!r} in {path_text} is not a merge method",
            next_move="decorate it with @merge_method (from taskmerge.methods import merge_method)",
        )
    return found
