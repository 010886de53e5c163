"""One vocabulary for all inputs of a plan, when theirs differ."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from taskmerge.checkpoints.components import HEAD, component_map, is_token_table
from taskmerge.checkpoints.lineage.token_ids import with_new_ids
from taskmerge.checkpoints.lineage.token_rows import MatchedTokens
from taskmerge.checkpoints.lineage.token_sources import Vocabularies
from taskmerge.checkpoints.lineage.tokenizers import OPAQUE, Rows, Vocabulary, join, read_vocabulary, states_tokens
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import CheckpointError


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


def unmatched_tokens(inputs: Mapping[str, StateDict]) -> list[str]:
    """What to tell the user of tokenizers that differ where rows cannot be matched: the base has no token table that is
    known, or the tokenizers are files that only their own library reads."""
    if BASE not in inputs:
        return []
    folders = {label: state_dict.beside.tokenizer_folder for label, state_dict in inputs.items()}
    by_number = "rows are paired by their number"
    found = [
        f"{file} of {label} is not the base's, and no tokenizer.json states which token is which: {by_number}"
        for label, folder in folders.items()
        if (file := _other_model(folders[BASE], folder)) is not None
    ]
    if _table_rows(inputs[BASE]) is not None or _one_tokenizer(list(folders.values())):
        return found
    known = {label: own for label, folder in folders.items() if (own := _read(folder)) is not None}
    base = known.get(BASE)
    return found + [
        f"the tokenizer of {label} gives tokens other numbers than the base's, but the base has no known token table: "
        f"{by_number}"
        for label, own in known.items()
        if base is not None and own.ids != base.ids
    ]


def _other_model(one: Path | None, two: Path | None) -> str | None:
    """The file of a tokenizer that cannot be read as text and differs; None where there is none."""
    if one is None or two is None or one == two:
        return None
    if states_tokens(one) and states_tokens(two):
        return None
    both = (name for name in OPAQUE if (one / name).is_file() and (two / name).is_file())
    return next((name for name in both if not filecmp.cmp(one / name, two / name, shallow=False)), None)


def _read(folder: Path | None) -> Vocabulary | None:
    """Return a vocabulary as `read_vocabulary`; None for a file that makes no sense, as no row depends on it here."""
    try:
        return read_vocabulary(folder)
    except CheckpointError:
        return None


def _table_rows(state_dict: StateDict) -> int | None:
    if "mapping" in state_dict.tensors:  # model2vec's, when several tokens share a row
        return None
    return next(
        (info.shape[0] for name, info in state_dict.tensors.items() if is_token_table(name) and info.shape), None
    )


def _one_tokenizer(folders: list[Path | None]) -> bool:
    """Whether all inputs share a tokenizer.json byte for byte, or one of them has none to compare."""
    files = {folder / "tokenizer.json" for folder in folders if folder is not None}
    if any(folder is None for folder in folders) or not all(file.is_file() for file in files):
        return not any(folder is not None and states_tokens(folder) for folder in folders) or not files
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
