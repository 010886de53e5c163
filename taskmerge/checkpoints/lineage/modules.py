"""sentence-transformers folders: what their modules do must agree; only what they learned is merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.folders import modules_of
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import MergeError, Problem


def check_modules(inputs: Mapping[str, StateDict], base: str) -> None:
    """Check that the chains of modules and their settings (pooling mode, sizes, activation) are equal.

    A grafted embedder counts as the transformer that it was grafted onto. Inputs without modules.json,
    plain transformers models, have no such settings and are not compared. Raises MergeError with every difference.
    """
    ours = _modules(inputs[base])
    problems = []
    for label, state_dict in inputs.items():
        theirs = _modules(state_dict)
        if label == base or ours is None or theirs is None:
            continue
        folder = str(state_dict.beside.folder or state_dict.label)
        kinds, others = [kind for kind, _ in ours], [kind for kind, _ in theirs]
        if kinds[1:] != others[1:] or (kinds[:1] != others[:1] and _GRAFTED not in (*kinds[:1], *others[:1])):
            problems.append(
                Problem(f"modules.json: {label} runs {_said(others)}, the base {_said(kinds)}", folder, _NEXT)
            )
            continue
        for number, ((kind, mine), (_, other)) in enumerate(zip(ours, theirs, strict=True)):
            for key in sorted(mine.keys() & other.keys()):
                if mine[key] != other[key]:
                    said = f"{key} is {other[key]!r} in {label}, {mine[key]!r} in the base"
                    problems.append(Problem(f"module {number} ({kind}): {said}", folder, _NEXT))
    if problems:
        raise MergeError(problems)


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
_NEXT = "modules that work differently cannot be merged: give the plain transformers folder inside it as the specialist"


def _modules(state_dict: StateDict) -> list[tuple[str, dict[str, Any]]] | None:
    """Class and settings of each module after the transformer, whose config is compared as any model's is."""
    folder = state_dict.beside.folder
    rows = modules_of(folder) if folder is not None else None
    if folder is None or rows is None:
        return None
    found = []
    for number, row in enumerate(rows):
        kind = row.get("type", "").rpartition(".")[2]
        found.append((kind, _settings(folder / row["path"] / "config.json") if number and row["path"] else {}))
    return found


def _settings(path: Path) -> dict[str, Any]:
    """As sentence-transformers 6 names them; before it, pooling had one true-or-false key a mode."""
    table: dict[str, Any] = read_json(path, dict[str, Any]) if path.is_file() else {}
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


def _said(kinds: list[str]) -> str:
    return " → ".join(kinds) or "nothing"
