"""One vocabulary for all inputs of a plan, when theirs differ."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from taskmerge.checkpoints.components import HEAD, component_map, is_token_table
from taskmerge.checkpoints.lineage.token_rows import MatchedTokens
from taskmerge.checkpoints.lineage.token_sources import Vocabularies
from taskmerge.checkpoints.lineage.tokenizers import Rows, Vocabulary, join, read_vocabulary, with_new_ids
from taskmerge.checkpoints.state_dict import BASE, StateDict


def match_tokens(inputs: Mapping[str, StateDict], wanted: Vocabularies) -> tuple[dict[str, StateDict], Rows | None]:
    """Return the inputs with token tables of equal rows, and the rows; unchanged inputs if nothing differs.

    inputs: under one naming. Raises MergeError when tables differ and no tokenizer says how.
    """
    tables = {label: count for label, state_dict in inputs.items() if (count := _table_rows(state_dict)) is not None}
    folders = {label: inputs[label].beside.tokenizer_folder for label in tables}
    same = len(set(tables.values())) == 1 and _one_tokenizer(list(folders.values()))
    if BASE not in tables or (same and not wanted.asks):
        return dict(inputs), None
    vocabularies = {label: read_vocabulary(folder) for label, folder in folders.items()}
    if wanted.tokenizer not in ("base", "union", *tables):
        wanted = replace(wanted, tokenizer="base")
    rows = join(vocabularies, tables, wanted, BASE)
    if rows is None:
        return dict(inputs), None
    names = _names(inputs, tables)
    having = {label: inputs[label] for label in tables}
    matched: dict[str, StateDict] = dict(inputs)
    for label in tables:
        vocabulary = vocabularies[label]
        assert isinstance(vocabulary, Vocabulary)  # join refuses inputs without one
        config = with_new_ids(inputs[label].config, vocabulary.ids, rows, tables[label])
        matched[label] = MatchedTokens(label, having, names, rows, BASE, config)
    return matched, rows


def _table_rows(state_dict: StateDict) -> int | None:
    return next(
        (info.shape[0] for name, info in state_dict.tensors.items() if is_token_table(name) and info.shape), None
    )


def _one_tokenizer(folders: list[Path | None]) -> bool:
    """Whether all inputs share a tokenizer.json byte for byte, or one of them has none to compare."""
    files = {folder / "tokenizer.json" for folder in folders if folder is not None}
    if any(folder is None for folder in folders) or not all(file.is_file() for file in files):
        return all(folder is None or read_vocabulary(folder) is None for folder in folders) or not files
    first = next(iter(files))
    return all(filecmp.cmp(first, other, shallow=False) for other in files)


def _names(inputs: Mapping[str, StateDict], tables: Mapping[str, int]) -> set[str]:
    """Tensors with one row per token: token tables and heads whose rows are as many, in every input that has them."""
    found: set[str] = set()
    for label, rows in tables.items():
        state_dict = inputs[label]
        components = component_map(state_dict.tensors, state_dict.config)
        for name, info in state_dict.tensors.items():
            if info.shape and info.shape[0] == rows and (is_token_table(name) or components[name] == HEAD):
                found.add(name)
    return {
        name
        for name in found
        if all(
            inputs[label].tensors[name].shape[:1] == (rows,)
            for label, rows in tables.items()
            if name in inputs[label].tensors
        )
    }
