"""README.md of a model made here: what it was made from and how, how it is used, in the form the hub reads.

It is made of the model's record and small files alone, so that `push` can write it again for the name on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from taskmerge import __version__
from taskmerge.checkpoints.cards import front_matter
from taskmerge.checkpoints.cards.declared import Declared
from taskmerge.checkpoints.cards.joining import Joined, joined, licence_words
from taskmerge.checkpoints.cards.kinds import PEFT, Kind, ReadFile, kind_of
from taskmerge.checkpoints.cards.usage import packages, usage
from taskmerge.checkpoints.hashing import sha256_of
from taskmerge.checkpoints.output import markdown
from taskmerge.checkpoints.output.record import CARD, FILE, is_made_here, read_record
from taskmerge.words.places import repository_of

_DONE = {
    "fuse": "A model fused",
    "specialize": "A model trained on one modality",
    "recover": "A fused model whose projectors were retrained",
    "rehearse": "A fused model trained on all its modalities together",
    "graft": "An encoder attached to a backbone through a new, untrained projector",
    "apply": "A model plus a task vector",
    "soup": "The mean of several checkpoints",
    "extract": "A task vector: the changes made by training, to be added to its base",
}
KEPT = "## Card of the base"
"""Heading of the base's own card, which comes last."""
_LONGEST_QUOTE = 20_000
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?|code|multilingual")
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class Score(NamedTuple):
    """One number of an evaluation of this very model. data: name of the set.  what: the metric, as the hub names it."""

    data: str
    what: str
    value: float
    words: str


class Card(NamedTuple):
    """The text of a model card, with its open questions.

    text: of README.md.  findings: information that it leaves open (licences that differ, inputs without a hub id), as
    sentences.
    """

    text: str
    findings: Sequence[str]
    conflict: bool


def card(name: str, record: Mapping[str, Any], read: ReadFile, *, kept: str = "", scores: Sequence[Score] = ()) -> Card:
    """Return the card of a model.

    Args:
        name: its id on the hub, or the name of its folder: local paths mean nothing to others.
        record: what taskmerge.json holds.
        read: reads the model's small files, see `kinds.ReadFile`.
        kept: the card of the base, without its YAML, see `kept_card`.
        scores: of an evaluation of this very model.
    """
    inputs = {label: _rows(source) for label, source in record["inputs"].items()}
    kind, said = kind_of(read, record["kind"], record.get("architecture")), joined(inputs)
    base = _base_named(record, inputs)
    parts = [
        front_matter.written(_front(name, record, kind, said, scores)),
        f"# {markdown.name(name)}",
        _lead(record),
        "## Use",
        f"`pip install {packages(kind)}`",
        markdown.block(usage(kind, name, base, record["kind"]), "python"),
        "## Made from",
        _table(("from", "model", "licence"), [_source_row(label, record["inputs"][label], rows)
                                              for label, rows in inputs.items()]),
        "\n".join(f"- {markdown.sentence(line)}" for line in said.findings),
        _components(record.get("components", {})),
        _training(record.get("report", {})),
        _scores(scores),
        *_recipe(record),
        f"`{FILE}` contains the sha256 of every file and of every input; `taskmerge verify` compares them.",
        *_quoted(kept),
    ]  # fmt: skip
    return Card("\n\n".join(part for part in parts if part) + "\n", said.findings, said.conflict)


def kept_card(folder: Path | None) -> str:
    """Return what a model's card says, without its YAML; of one that was made here, the card that it kept itself."""
    if folder is None:
        return ""
    text = front_matter.split(front_matter.read_card(folder))[1].strip()
    if text and is_made_here(folder) and sha256_of(folder / CARD) == read_record(folder)["outputs"].get(CARD):
        return kept_in(text)
    return text


def kept_in(text: str) -> str:
    """Return the card of the base that a card of ours holds."""
    _, found, after = text.partition(f"\n{KEPT}\n")
    return "\n".join(line[2:] for line in after.splitlines() if line.startswith("> ") or line == ">") if found else ""


def _rows(source: Mapping[str, Any]) -> list[Declared]:
    rows: list[Declared] = list(source.get("declared", ()))
    hub = repository_of(source["source"].removeprefix("hf://")) if "commit" in source else None
    if not rows and hub is not None:  # a record of an older version
        return [{"models": [hub[0]], "how": "hub"}]
    return rows


def _front(name: str, record: Mapping[str, Any], kind: Kind, said: Joined, scores: Sequence[Score]) -> dict[str, Any]:
    stage = record["stage"]
    merged = record["kind"] not in ("trained", "recovered")
    models = [model for model in said.models if model != name]
    relation = "adapter" if kind.library == PEFT else "merge" if merged else "finetune"
    own = ["merge", "taskmerge"] if merged and record["stage"] != "extract" else ["taskmerge"]
    return {
        "library_name": kind.library,
        "pipeline_tag": kind.pipeline,
        "base_model": models,
        "base_model_relation": relation if models and record["kind"] != "task vector" else None,
        **said.licence,
        "language": [one for one in said.languages if _LANGUAGE.fullmatch(one)],
        "datasets": [one for one in said.datasets if _DATASET.fullmatch(one)],
        "tags": list(dict.fromkeys([*own, *([stage] if stage != "fuse" else []), *said.tags])),
        "model-index": _index(name, scores),
    }


def _index(name: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    sets: dict[str, list[Score]] = {}
    for score in scores:
        sets.setdefault(score.data, []).append(score)
    results = [
        {
            "task": {"type": "retrieval", "name": "Retrieval"},
            "dataset": {"type": "unknown", "name": data},
            "metrics": [{"type": one.what, "value": one.value, "name": one.words} for one in own],
        }
        for data, own in sets.items()
    ]
    return [{"name": name, "results": results}] if results else []


def _lead(record: Mapping[str, Any]) -> str:
    done = _DONE.get(record["stage"], "A model")
    if record["kind"] == "adapter":
        done = "A low-rank adapter with the changes made by training"
    names = ", ".join(markdown.code(_named(label)) for label in record["inputs"])
    of = f" from {names}" if record["stage"] == "fuse" else ""
    return f"{done}{of}, made with taskmerge {record.get('taskmerge', __version__)} (`{record['stage']}`)."


def _named(label: str) -> str:
    return PurePath(label).name or label


_WORDS = {
    "card": "a local folder, whose card names {}",
    "config": "a local folder, whose config names {}",
}


def _source_row(label: str, source: Mapping[str, Any], rows: Sequence[Declared]) -> tuple[str, str, str]:
    places = [_WORDS.get(row.get("how", ""), "{}").format(", ".join(markdown.code(one, True) for one in row["models"]))
              for row in rows if row.get("models")]  # fmt: skip
    own = "" if places else f"{markdown.code(PurePath(source['source']).name, True)}, a local folder"
    commit = f" at {markdown.code(source['commit'][:12], True)}" if "commit" in source else ""
    return (
        markdown.code(_named(label), True),
        (own or " and ".join(dict.fromkeys(places))) + commit,
        markdown.code(licence_words(rows), True),
    )


def _base_named(record: Mapping[str, Any], inputs: Mapping[str, Sequence[Declared]]) -> str | None:
    """What usage calls the base of a task vector or adapter: its id, else the name of its folder."""
    label = next((one for one in ("base", "model") if one in inputs), next(iter(inputs), None))
    if label is None:
        return None
    known = [row["models"][0] for row in inputs[label] if row.get("models") and row.get("how") in _OWN]
    return known[0] if known else PurePath(record["inputs"][label]["source"]).name


_OWN = ("hub", "cache", "clone")


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *lines]) if lines else ""


def _components(table: Mapping[str, Mapping[str, int]]) -> str:
    rows = [(name, *(counts.get(what, 0) for what in ("merge", "keep", "copy"))) for name, counts in table.items()]
    return _table(("component", "merged", "kept", "copied"), sorted(rows))


def _training(report: Mapping[str, Any]) -> str:
    """The held-out scores before and after, or those of every arm that was tried."""
    if "arms" in report:
        arms = [(markdown.name(arm["name"]), f"{arm['scores']['mrr']:.3f}") for arm in report["arms"]]
        return _table(("way", "held-out MRR"), arms) + f"\n\nKept: {markdown.name(str(report['kept']))}."
    before, after = report.get("before", {}), report.get("after", {})
    rows = [(markdown.name(name), f"{before[name]:.3f}", f"{after[name]:.3f}") for name in after if name in before]
    return _table(("held out", "before", "after"), rows)


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return ""
    rows = [(markdown.code(one.data, True), markdown.code(one.words, True), f"{one.value:.4f}") for one in scores]
    return "## Scores\n\n" + _table(("set", "score", "value"), rows)


def _recipe(record: Mapping[str, Any]) -> list[str]:
    found = []
    if record.get("recipe"):
        found = ["## Recipe", markdown.block(record["recipe"], "yaml")]
    if versions := {name: value for name, value in record.get("versions", {}).items() if value}:
        found.append("Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()) + ".")
    return found


def _quoted(kept: str) -> list[str]:
    if not kept.strip():
        return []
    lines, length = [], 0
    for line in kept.strip().splitlines():
        length += len(line)
        if length > _LONGEST_QUOTE:
            lines.append("(The rest is left out here.)")
            break
        lines.append(line)
    return [f"{KEPT}\n\n" + "\n".join(f"> {markdown.plain(line)}".rstrip() for line in lines)]
