"""The statements of the input models' cards, combined for the card of their merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.checkpoints.cards.declared import Declared
from taskmerge.checkpoints.cards.licences import SAY_NOTHING, fields_of
from taskmerge.errors import few
from taskmerge.printable import printable_line

_OF_OTHER_FILES = frozenset(
    "generated_from_trainer safetensors pytorch tf tensorflow jax flax rust onnx openvino coreml gguf ggml gptq awq "
    "exl2 mlx tensorboard model-index autotrain_compatible endpoints_compatible text-embeddings-inference "
    "text-generation-inference merge mergekit peft lora adapter adapters base_model quantized custom_code".split()
)
"""Tags of a model's files, trainer or host, which say nothing of what is made from it."""
_LONGEST = 64


@dataclass(frozen=True)
class Joined:
    """licence: fields of the card, {} where none may be claimed.  models: hub ids.  findings: what is left open, as
    sentences for the card and the terminal.  conflict: whether the inputs' licences differ."""

    licence: Mapping[str, str]
    models: Sequence[str]
    languages: Sequence[str]
    datasets: Sequence[str]
    tags: Sequence[str]
    findings: Sequence[str]
    conflict: bool = False


def joined(inputs: Mapping[str, Sequence[Declared]]) -> Joined:
    """Return what the inputs say together. inputs: label -> what was declared for it; [] for one that has no files."""
    licence, findings, conflict = _licence(inputs)
    nameless = [label for label, rows in inputs.items() if not any(row.get("models") for row in rows)]
    if nameless:
        one = len(nameless) == 1
        what = "is a local folder without a hub id" if one else "are local folders without hub ids"
        findings.append(f"{few(map(_shown, nameless))} {what}, so base_model does not list {'it' if one else 'them'}")
    rows = [row for declared in inputs.values() for row in declared]
    tags = [tag for tag in _every(rows, "tags") if tag.lower() not in _OF_OTHER_FILES and ":" not in tag]
    datasets = [name for name in _every(rows, "datasets") if len(name) <= 96 and " " not in name and ":" not in name]
    return Joined(licence, _every(rows, "models"), _every(rows, "language"), datasets,
                  [tag for tag in tags if len(tag) <= _LONGEST], findings, conflict)  # fmt: skip


def licence_words(rows: Iterable[Declared]) -> str:
    """Return what one input says of its licence: "apache-2.0", "other (name)", "none stated"."""
    said = dict.fromkeys(_named(row) or "none stated" for row in rows)
    return " and ".join(said) or "none stated"


def _licence(inputs: Mapping[str, Sequence[Declared]]) -> tuple[dict[str, str], list[str], bool]:
    """(fields of the card, what to say, whether licences differ)."""
    said: dict[str, list[str]] = {}
    silent: list[str] = []
    first: dict[str, Declared] = {}
    for label, rows in inputs.items():
        for row in rows or [Declared()]:
            name = _named(row)
            if name is None:
                silent.append(label)
                continue
            said.setdefault(name, []).append(label)
            first.setdefault(name, row)
    conflict = len(said) > 1
    findings = []
    if conflict:
        rows_said = "; ".join(f"{_shown(name)} of {few(map(_shown, dict.fromkeys(who)))}" for name, who in said.items())
        findings.append(f"the licences of the inputs differ ({rows_said}), so the card claims none")
    if silent:
        verb = "states" if len(set(silent)) == 1 else "state"
        only = "" if conflict else ", so the card claims none"
        findings.append(f"{few(map(_shown, dict.fromkeys(silent)))} {verb} no licence{only}")
    if conflict or silent or not said:
        return {}, findings, conflict
    name, row = next(iter(first.items()))
    return fields_of(row["license"], row.get("license_name"), row.get("license_link")), findings, False


def _named(row: Declared) -> str | None:
    """A licence as it is compared: that a name says "other" makes no two licences one."""
    licence = row.get("license", "")
    if not licence or licence in SAY_NOTHING:
        return None
    if licence != "other":
        return licence
    return f"other ({row.get('license_name') or row.get('license_link') or 'without a name'})"


def _every(rows: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(value for row in rows for value in row.get(key, ())))


def _shown(text: str) -> str:
    return printable_line(text)
