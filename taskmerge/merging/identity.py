"""The inputs that a fuse depends on, as one text that is equal only for runs that write the same files."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from uuid import uuid4

from taskmerge import __version__
from taskmerge.checkpoints.covariances import FILE as COVARIANCES
from taskmerge.checkpoints.hashing import fingerprint
from taskmerge.checkpoints.lineage.alignment import own_base_label
from taskmerge.checkpoints.output.side_files import side_files, tokenizer_files
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.merging.steps import Plan
from taskmerge.methods import MergeMethod
from taskmerge.opened import opened
from taskmerge.recipes import Recipe

_PACKAGE = Path(__file__).parent.parent


def identity(plan: Plan, recipe: Recipe) -> str:
    """Return `identity_of` for a recipe."""
    return identity_of(plan, recipe.to_yaml())


def identity_of(plan: Plan, said: str) -> str:
    """Equal only for runs that would write the same bytes: what was said, steps, files that have a say, version.

    Those are weights, configs, tokenizers, covariances, and files that methods come from. "" when that cannot be known,
    as for inputs in memory.
    """
    digest = hashlib.sha256()
    for part in (__version__, said, repr(plan.steps), repr(plan.seed), repr(sorted(plan.texts.items()))):
        digest.update(part.encode())
    for label, state_dict in every_input(plan).items():
        files = state_dict.beside.files
        if not files:  # in memory: they may be different next time
            return ""
        for name, file in files.items():
            digest.update(f"{label}:{name}:{file.origin or fingerprint(file.path)}".encode())
        for path in _files_beside(state_dict):
            digest.update(f"{label}:{path.name}:{fingerprint(path)}".encode())
    for method in plan.methods.values():
        digest.update(f"{method.name}:{_origin(method)}".encode())
    return digest.hexdigest()


def every_input(plan: Plan) -> dict[str, StateDict]:
    """Return the base, the specialists, and the specialists' own bases, by label."""
    own = {own_base_label(label): state_dict for label, state_dict in plan.own_bases.items()}
    return {**plan.inputs, **own}


def _files_beside(state_dict: StateDict) -> list[Path]:
    """The files next to an input's weights that may affect them; on the hub, the commit identifies them."""
    beside = state_dict.beside
    paths: list[Path] = []
    if beside.folder is not None and beside.commit is None:
        names = side_files(beside.folder, beside.module_folders.values())
        paths = [*(beside.folder / name for name in names), beside.folder / COVARIANCES]
    if beside.own_tokenizer is not None:
        paths += [path for path in tokenizer_files(beside.own_tokenizer, "").values() if path is not None]
    return [path for path in paths if path.is_file()]


def _origin(method: MergeMethod) -> str:
    """The identity of a method's code: this version's own, the state of its file, or nothing that comes again."""
    try:
        source = Path(inspect.getsourcefile(method.function) or "")
    except TypeError:
        source = Path()
    if source.is_relative_to(_PACKAGE):
        return "built in"
    if not source.is_file():
        return uuid4().hex
    opened(source)  # it ran when the recipe was read
    return fingerprint(source)
