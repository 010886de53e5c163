"""sentence-transformers folders: what their modules do must agree; only what they learned is merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.modules import all_modules_of, class_of, routes_of
from taskmerge.checkpoints.lineage.configs import differences
from taskmerge.checkpoints.lineage.tokenizers import read_vocabulary
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import MergeError, Problem, clipped


def check_modules(inputs: Mapping[str, StateDict], base: str) -> list[str]:
    """Check that the modules of all inputs do the same.

    A grafted embedder counts as the transformer that it was grafted onto. Inputs without modules.json, plain
    transformers models, have no such settings and are not compared.

    A setting that only one side names is the library's default on the other, as older versions saved fewer of them.

    Returns: what to tell the user of settings of transformers that differ.
    Raises: MergeError with every difference in the chain of modules and in their settings (pooling mode, sizes,
        activation, routes), and in the vocabularies of modules that have one of their own.
    """
    ours = _modules(inputs[base])
    problems: list[Problem] = []
    notes: list[str] = []
    for label, state_dict in inputs.items():
        theirs = _modules(state_dict)
        if label == base or theirs is None:
            continue
        if ours is None:
            notes += _lost(label, [one.kind for one in theirs])
            continue
        folder = str(state_dict.beside.folder or state_dict.label)
        kinds, others = [one.kind for one in ours], [one.kind for one in theirs]
        if kinds[1:] != others[1:] or (kinds[:1] != others[:1] and _GRAFTED not in (*kinds[:1], *others[:1])):
            what = f"modules.json: {label} runs {_said(others)}, the base {_said(kinds)}"
            problems.append(Problem(what, folder, _NEXT))
            continue
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            for said in _differences(mine, other, label):
                problems.append(Problem(f"module {number} ({mine.kind}): {said}", folder, _NEXT))
            for key, one, two in _differing(mine.reading, other.reading):
                notes.append(
                    f"module {number} ({mine.kind}): {key} is {two} in {label}, {one} in the base; "
                    "the one of the base is used"
                )
    if problems:
        raise MergeError(problems)
    return notes


_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_GRAFTED = "OmniEmbedder"
"""The first module of a grafted embedder, which holds the transformer that others have there."""
_NOW_CALLED = {"MLMTransformer": "Transformer", "Asym": "Router"}
"""Classes of older versions of sentence-transformers -> what newer ones save the same module as."""
_LONGEST_VALUE = 120
_NEXT = "modules that work differently cannot be merged: give the plain transformers folder inside it as the specialist"


class _Module(NamedTuple):
    """A module.

    settings: what must be the same. config: of a transformer. vocabulary: folder of its own tokenizer. reading: how a
    transformer reads its items. The transformer that all inputs have has only the last of these: its config and its
    tokens are compared as any model's are.
    """

    kind: str
    settings: Mapping[str, Any] = MappingProxyType({})
    config: Mapping[str, Any] = MappingProxyType({})
    vocabulary: Path | None = None
    reading: Mapping[str, Any] = MappingProxyType({})


def _lost(label: str, kinds: list[str]) -> list[str]:
    """What a plain base leaves out of a sentence-transformers folder."""
    if kinds in (["Transformer"], [_GRAFTED]):
        return []
    what = f"{label} runs {_said(kinds)}, but the base is a plain transformers folder: the result has no modules.json"
    return [f"{what}; to keep the modules, make the base a folder with the same modules.json"]


def _modules(state_dict: StateDict) -> list[_Module] | None:
    """All modules, in order; None for a plain model."""
    folder = state_dict.beside.folder
    rows = all_modules_of(folder) if folder is not None else None
    if folder is None or rows is None:
        return None
    main = folder / state_dict.beside.module_folders.get("", "")
    return [_module(folder / row["path"], row.get("type", ""), main) for row in rows]


def _module(place: Path, address: str, main: Path) -> _Module:
    """place, main: folders of the module and of the transformer."""
    kind = _kind(address)
    routes = routes_of(place, address)
    if routes is not None:
        numbers = {name: number for number, name in enumerate(routes["types"])}
        structure = {
            route: [numbers.get(name, name) for name in names] for route, names in routes.get("structure", {}).items()
        }
        return _Module(kind, {**routes.get("parameters", {}), "structure": structure})
    config = _table(place / "config.json")
    if "model_type" in config:
        reading = {
            key: value for path in sorted(place.glob("sentence_*_config.json")) for key, value in _table(path).items()
        }
        is_main = place == main
        return _Module(kind, config={} if is_main else config, vocabulary=None if is_main else place, reading=reading)
    if kind == _GRAFTED:
        return _Module(kind)
    settings = _pooling(config)
    for path in sorted(place.glob("*_config.json")):
        settings |= _table(path) if path.name != "tokenizer_config.json" else {}
    return _Module(kind, settings, vocabulary=None if place == main else place)


def _kind(address: str) -> str:
    return _NOW_CALLED.get(class_of(address), class_of(address))


def _table(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = read_json(path, dict[str, Any]) if path.is_file() else {}
    return table


def _pooling(table: Mapping[str, Any]) -> dict[str, Any]:
    """As sentence-transformers 6 names them; before it, pooling had one true-or-false key a mode."""
    flags = {key: bool(value) for key, value in table.items() if key.startswith("pooling_mode_")}
    settings = {key: value for key, value in table.items() if key not in flags}
    if flags:
        modes = sorted(_MODES.get(key, key) for key, on in flags.items() if on)
        settings.setdefault("pooling_mode", modes[0] if len(modes) == 1 else modes)
    if isinstance(settings.get("pooling_mode"), list):
        settings["pooling_mode"] = sorted(settings["pooling_mode"])
    if "word_embedding_dimension" in settings:
        settings["embedding_dimension"] = settings.pop("word_embedding_dimension")
    return settings


def _differences(mine: _Module, other: _Module, label: str) -> Iterator[str]:
    """What makes two modules of one class work differently."""
    for key, one, two in _differing(mine.settings, other.settings):
        yield f"{key} is {two} in {label}, {one} in the base"
    for found in differences(mine.config, other.config):
        yield f"{found.key} is {_value(found.theirs)} in {label}, {_value(found.ours)} in the base"
    if mine.vocabulary is not None and other.vocabulary is not None:
        ours, theirs = read_vocabulary(mine.vocabulary), read_vocabulary(other.vocabulary)
        if ours is not None and theirs is not None and ours.ids != theirs.ids:
            yield f"its tokens have other numbers in {label} than in the base"


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key]:
            yield key, _value(ours[key]), _value(theirs[key])


def _value(value: object) -> str:
    return clipped(repr(value), _LONGEST_VALUE)


def _said(kinds: list[str]) -> str:
    return " → ".join(kinds) or "nothing"
