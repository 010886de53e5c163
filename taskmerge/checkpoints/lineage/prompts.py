"""Settings of sentence-transformers outside the modules (prompts, truncate_dim, similarity), from all inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from taskmerge.checkpoints.state_dict import BASE, StateDict

_NOT_SETTINGS = ("__version__", "model_type")  # of the library that saved the folder
_PROMPTS = "prompts"
_NOTHING: tuple[Any, ...] = (
    None,
    "",
    {},
)  # what sentence-transformers saves for a prompt or a setting that is not set


def joined_prompts(inputs: Mapping[str, StateDict], naming: str = BASE) -> tuple[dict[str, Any], list[str]]:
    """Return the result's config_sentence_transformers.json, and a sentence for each setting that does not fit.

    naming: the input whose modules the result takes. What it says stays. What it leaves open is taken from the other
    inputs where they agree; otherwise no value is taken.
    """
    joined = dict(inputs[naming].beside.prompts)
    if _PROMPTS in joined:
        joined[_PROMPTS] = dict(joined[_PROMPTS] or {})
    said: dict[tuple[str, ...], dict[str, Any]] = {}
    for label, state_dict in inputs.items():
        for key, value in _settings(state_dict.beside.prompts):
            said.setdefault(key, {})[label] = value
    warnings = []
    for key, values in said.items():
        chosen = values.get(naming, next(iter(values.values())))
        others = {label: value for label, value in values.items() if value != chosen}
        if not others or naming in values:
            _put(joined, key, chosen)
        if others:
            named = ", ".join(f"{label} {value!r}" for label, value in values.items())
            taken = f"the one of {naming} is used" if naming in values else f"none is used, because {naming} has none"
            warnings.append(f"config_sentence_transformers.json: {': '.join(key)} differs: {named}; {taken}")
    for saved_by in _NOT_SETTINGS:
        for state_dict in inputs.values():
            if joined and saved_by not in joined and saved_by in state_dict.beside.prompts:
                joined[saved_by] = state_dict.beside.prompts[saved_by]
    return joined, warnings


def _settings(table: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each setting that says something, prompts one by one."""
    for key, value in table.items():
        if key == _PROMPTS and isinstance(value, Mapping):
            yield from (((key, name), prompt) for name, prompt in value.items() if prompt not in _NOTHING)
        elif key not in _NOT_SETTINGS and value not in _NOTHING:
            yield (key,), value


def _put(table: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    for part in key[:-1]:
        table = table.setdefault(part, {})
    table[key[-1]] = value
