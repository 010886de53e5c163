"""Numbers of tokens in settings: in config.json, in generation_config.json, and in those of modules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.lineage.tokenizers import Rows
from taskmerge.checkpoints.state_dict import Beside

_ENDINGS = ("token_id", "token_index", "token_ids")
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
_TABLES = ("lang_to_id", "task_to_id")
_PAIRS = "forced_decoder_ids"
"""[place, number of a token], each."""
_GENERATION = "generation_config.json"


def with_new_ids(config: Mapping[str, Any], old: Mapping[str, int], rows: Rows, table: int) -> dict[str, Any]:
    """A config whose token ids and vocabulary sizes speak of the output's rows. old: the config's own token -> id;
    table: rows of its token table."""
    numbers = {row: rows.ids[token] for token, row in old.items() if token in rows.ids}
    return _renewed(config, numbers, {table: rows.count})


def renewed_files(inputs: Mapping[str, Beside], rows: Rows) -> dict[str, str]:
    """Files beside the config that name tokens by number -> their text with the output's numbers, where they change.

    Args:
        inputs: what stands beside the inputs whose files the output gets; the first that has a file wins.
        rows: of the output; it knows the inputs by the same labels.

    Returns: text by name, relative to the transformer's folder.
    """
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for label, beside in inputs.items():
        own = rows.of.get(label)
        numbers = {} if own is None else {int(row): place for place, row in enumerate(own.tolist()) if row >= 0}
        for name, path in _files(beside):
            table: dict[str, Any] = {} if name in seen else read_json(path, dict[str, Any])
            new = _renewed(table, numbers, {})
            seen.add(name)
            if new != table:
                texts[name] = json.dumps(new, indent=2, ensure_ascii=False) + "\n"
    return texts


def _files(beside: Beside) -> Iterator[tuple[str, Path]]:
    if beside.folder is None:
        return
    inside = beside.module_folders.get("", "")
    names = [(_GENERATION, beside.folder / inside / _GENERATION)]
    if not inside:
        names += [
            (f"{place}/config.json", beside.folder / place / "config.json") for place in beside.module_folders if place
        ]
    yield from ((name, path) for name, path in names if path.is_file())


def _renewed(table: Mapping[str, Any], numbers: Mapping[int, int], sizes: Mapping[int, int]) -> dict[str, Any]:
    """numbers: of tokens, old -> new; sizes: of vocabularies."""

    def number(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: number(one) for key, one in value.items()}
        if isinstance(value, list):
            return [number(one) for one in value]
        return numbers.get(value, value) if type(value) is int else value

    def setting(key: str, value: Any) -> Any:
        if key == "vocab_size" and value in sizes:
            return sizes[value]
        if key.endswith(_ENDINGS) or key in _LISTS or key in _TABLES:
            return number(value)
        if isinstance(value, Mapping):
            return {inner: setting(inner, one) for inner, one in value.items()}
        if key == _PAIRS and isinstance(value, list):
            return [[*pair[:-1], number(pair[-1])] if isinstance(pair, list) and pair else pair for pair in value]
        return value

    return {key: setting(key, value) for key, value in table.items()}
