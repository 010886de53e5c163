"""Vocabularies: which row of a token table is which token, in every input and in the output.

Rows are matched by token string. The output's rows are those of the base, of one specialist, or of the base with what
specialists add (union); a token the base lacks takes its row from the specialist that has it, the mean where several
have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.lineage.token_sources import GivenRow, Vocabularies, given_rows, new_to
from taskmerge.errors import CheckpointError, MergeError

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip
_TEXTS = ("tokenizer.json", "vocab.json", "vocab.txt")
"""Files that state which token is which, the first of them first."""
OPAQUE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
"""Vocabularies that only their own library reads."""
_MOST_TOKENS = 10_000_000
_MOST_ORDINARY = 1000  # more new ordinary tokens than this are another tokenizer, not an extended one
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")
_PADDINGS = (1024, 512, 256, 128, 64, 32, 16, 8)


class _AddedToken(TypedDict):
    content: str
    id: int


class TokenizerFields(TypedDict, total=False):
    """The added tokens of a tokenizer.json."""

    added_tokens: list[_AddedToken] | None


class TokenizerJson(TokenizerFields):
    """The fields of a tokenizer.json that are used."""

    model: dict[str, Any]


class TokenizerConfig(TypedDict, total=False):
    """The fields of a tokenizer_config.json or special_tokens_map.json that are used."""

    additional_special_tokens: list[Any] | None
    extra_special_tokens: list[Any] | dict[str, Any] | None
    added_tokens_decoder: dict[str, Any] | None


@dataclass(frozen=True)
class Vocabulary:
    """ids: token -> row of the token table. added: the entries of tokens set apart from the model's own (special
    tokens and the like), as tokenizer.json writes them. folder: where it was read."""

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    folder: Path

    @property
    def size(self) -> int:
        """One past the highest id."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True)
class Rows:
    """The token tables of the output. count: rows. of: input -> its own row for each output row, -1 where it has none
    (int64, (count,)). ids: token -> output row. texts: tokenizer files to be rewritten. folder: of the others.
    left_out: input -> its tokens that have no row in the output. beyond: input -> its tokens whose ids are beyond its
    own table, which has no row for them. given: output row -> where the user has it from. own_rows: see `Vocabularies`.
    """

    count: int
    of: Mapping[str, np.ndarray]
    ids: Mapping[str, int]
    folder: Path
    texts: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beyond: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: Mapping[int, GivenRow] = field(default_factory=dict)
    own_rows: bool = False


def has_tokenizer(folder: Path | None) -> bool:
    """Return whether a folder has the vocabulary of a tokenizer, in a file that can be read as text or not."""
    return folder is not None and any((folder / name).is_file() for name in (*_TEXTS, *OPAQUE))


def states_tokens(folder: Path) -> bool:
    """Return whether a folder has a file that states which token is which."""
    return any((folder / name).is_file() for name in _TEXTS)


def read_vocabulary(folder: Path | None) -> Vocabulary | None:
    """Return the vocabulary of the tokenizer files in a folder; None without files that can be read as text.

    Raises CheckpointError for files that are there but make no sense.
    """
    if folder is None:
        return None
    if (folder / "tokenizer.json").is_file():
        return _from_tokenizer_json(folder / "tokenizer.json")
    for name in ("vocab.json", "vocab.txt"):
        path = folder / name
        if path.is_file():
            check_link(path, folder)
            ids: Any = read_json(path, dict[str, int]) if name.endswith("json") else _from_lines(path)
            extra = folder / "added_tokens.json"
            added = _checked_ids(read_json(extra, dict[str, int]), extra) if extra.is_file() else {}
            return Vocabulary(
                _checked_ids(ids, path) | added, {token: _entry(token, at) for token, at in added.items()}, folder
            )
    return None


def join(
    vocabularies: Mapping[str, Vocabulary | None], tables: Mapping[str, int], wanted: Vocabularies, base: str
) -> Rows | None:
    """Return the rows of the output's token tables; None if all inputs have the same rows and no others are wanted.

    vocabularies, tables: by input label; tables says how many rows its token table has. Raises MergeError when rows
    differ and cannot be matched, or when a row that is wanted is missing.
    """
    mode = wanted.tokenizer
    known = {label: vocabulary for label, vocabulary in vocabularies.items() if vocabulary is not None}
    same_rows = len(set(tables.values())) == 1
    one_order = len({_frozen(own) for own in known.values()}) <= 1
    same = same_rows and one_order
    if same and not wanted.asks:
        return None
    unknown = [label for label in tables if label not in known]
    if unknown:
        sizes = ", ".join(f"{label} {rows}" for label, rows in tables.items())
        differ = f"token tables of different sizes ({sizes}), and"
        if same:
            differ = "rows of single tokens are requested, but"
        elif same_rows:
            differ = f"the tokenizers of {', '.join(known)} give tokens different numbers, and"
        raise MergeError(
            f"{differ} no tokenizer of {', '.join(unknown)} is available to match them",
            next_move="put tokenizer.json next to the weights",
        )
    kept = base if mode in ("base", "union") else mode
    start = known[kept]
    rowed = {label: {token for token, row in own.ids.items() if row < tables[label]} for label, own in known.items()}
    _check_fits(known, tables, rowed)
    anywhere = set().union(*rowed.values())
    fresh = _new_tokens(known, base, rowed) if mode == "union" else {}
    for token in new_to(wanted.tokens, start.ids):
        fresh.setdefault(token, next((label for label, own in known.items() if token in own.ids), kept))
    ids = {token: row for token, row in start.ids.items() if token in anywhere}
    ids |= {token: start.size + place for place, token in enumerate(fresh)}
    needed = max(tables[kept], *(row + 1 for row in ids.values()))
    _check_gap(start, kept, ids, tables[kept], needed)
    count = _padded(needed, tables[kept], start.size)
    count = -(-count // (wanted.multiple or 1)) * (wanted.multiple or 1)
    of = {label: _own_rows(own, ids, count, tables[label], label == kept) for label, own in known.items()}
    texts = _extended_files(start.folder, known, fresh, ids) if fresh else {}
    beyond = {label: tuple(token for token in own.ids if token not in rowed[label]) for label, own in known.items()}
    left_out = {
        label: tuple(token for token in own.ids if token in rowed[label] and token not in ids)
        for label, own in known.items()
    }
    given = given_rows(wanted.tokens, known, tables, ids)
    return Rows(count, of, ids, start.folder, texts, _filled(left_out), _filled(beyond), given, wanted.own_rows)


def _filled(lists: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {label: tokens for label, tokens in lists.items() if tokens}


# ------------------------------------------------------------------------------------------------------ reading


def _from_tokenizer_json(path: Path) -> Vocabulary:
    table: TokenizerJson = read_json(path, TokenizerJson)
    vocabulary: Any = table["model"].get("vocab")
    if isinstance(vocabulary, list):  # unigram: [[token, score], …]
        if not all(isinstance(row, list) and row and isinstance(row[0], str) for row in vocabulary):
            raise CheckpointError(
                "its unigram vocabulary is not a list of [token, score]",
                str(path),
                "get the file again, or save the tokenizer again",
            )
        vocabulary = {row[0]: place for place, row in enumerate(vocabulary)}
    added = table.get("added_tokens") or []
    ids = _checked_ids(vocabulary, path) | _checked_ids({row["content"]: row.get("id") for row in added}, path)
    return Vocabulary(ids, {row["content"]: row for row in added}, path.parent)


def _from_lines(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", str(path), "get the file again, or save the tokenizer again"
        ) from None
    return {line.rstrip("\r"): place for place, line in enumerate(lines) if line}


def _checked_ids(ids: Any, path: Path) -> dict[str, int]:
    if not isinstance(ids, dict) or not all(type(row) is int and 0 <= row < _MOST_TOKENS for row in ids.values()):
        raise CheckpointError(
            "not a table from tokens to ids", str(path), "get the file again, or save the tokenizer again"
        )
    return dict(ids)


def _entry(token: str, row: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": row, "content": token, **flags}


# ------------------------------------------------------------------------------------------------------ joining


def _frozen(vocabulary: Vocabulary) -> frozenset[tuple[str, int]]:
    return frozenset(vocabulary.ids.items())


def _new_tokens(known: Mapping[str, Vocabulary], base: str, rowed: Mapping[str, Set[str]]) -> dict[str, str]:
    """Token the base lacks -> the first specialist that has it, in the order they get their rows. rowed: input -> its
    tokens that have a row."""
    fresh: dict[str, str] = {}
    for label, own in known.items():
        ordinary = 0
        for token in sorted(own.ids, key=own.ids.__getitem__):
            if token not in known[base].ids and token in rowed[label]:
                fresh.setdefault(token, label)
                ordinary += token not in own.added
        if ordinary > _MOST_ORDINARY:
            raise MergeError(
                f"{label} has {ordinary} ordinary tokens that the base lacks: it is a different tokenizer, "
                "not an extended one",
                next_move=f"choose one: output: {{tokenizer: base}} or {{tokenizer: {label}}}",
            )
    return fresh


def _padded(count: int, table: int, used: int) -> int:
    """Rows rounded up as the base's were: to the largest usual multiple, when it has rows beyond its last token."""
    if count == table or table == used:
        return count
    multiple = next((one for one in _PADDINGS if table % one == 0), 1)
    return -(-count // multiple) * multiple


def _check_fits(known: Mapping[str, Vocabulary], tables: Mapping[str, int], rowed: Mapping[str, Set[str]]) -> None:
    """A few tokens whose ids are beyond the table were never trained; when most are, it is another tokenizer."""
    for label, own in known.items():
        beyond = len(own.ids) - len(rowed[label])
        if own.ids and (not rowed[label] or beyond > _MOST_ORDINARY):
            raise MergeError(
                f"the tokenizer of {label} has ids up to {own.size - 1}, but its token table "
                f"has {tables[label]} rows: {beyond} tokens have no row",
                str(own.folder),
                "use the tokenizer that belongs to this model",
            )


def _check_gap(start: Vocabulary, kept: str, ids: Mapping[str, int], table: int, needed: int) -> None:
    """An id far beyond the table would make a table of rows that no input has."""
    beyond = [token for token, row in ids.items() if row >= table]
    if needed - table - len(beyond) > _MOST_ORDINARY:
        furthest = max(start.ids, key=start.ids.__getitem__)
        raise MergeError(
            f"the tokenizer of {kept} has the id {start.ids[furthest]:,} ({furthest!r}), but its token table has "
            f"{table:,} rows: the output would have {needed - table - len(beyond):,} rows that no input has",
            str(start.folder),
            "use the tokenizer that belongs to this model, or choose another input's: output: {tokenizer: LABEL}",
        )


def _own_rows(own: Vocabulary, ids: Mapping[str, int], count: int, table: int, keeps_all: bool) -> np.ndarray:
    rows = np.full(count, -1, dtype=np.int64)
    if keeps_all:  # rows without a token stay where they are
        rows[: min(count, table)] = np.arange(min(count, table))
    for token, row in ids.items():
        own_row = own.ids.get(token, -1)
        rows[row] = own_row if own_row < table else -1
    return rows


# ---------------------------------------------------------------------------------------------------- new files


def _extended_files(
    folder: Path, known: Mapping[str, Vocabulary], fresh: Mapping[str, str], ids: Mapping[str, int]
) -> dict[str, str]:
    """The base's tokenizer files with the new tokens added."""
    entries = []
    for token, label in fresh.items():
        entries.append({**_entry(token, ids[token]), **known[label].added.get(token, {}), "id": ids[token]})
    others = [known[label].folder for label in dict.fromkeys(fresh.values())]
    texts = {}
    if (folder / "tokenizer.json").is_file():
        table: Any = read_json(folder / "tokenizer.json", TokenizerJson)
        table["added_tokens"] = [*(table.get("added_tokens") or []), *entries]
        texts["tokenizer.json"] = json.dumps(table, ensure_ascii=False, indent=2)
    else:
        path = folder / "added_tokens.json"
        table = read_json(path, dict[str, int]) if path.is_file() else {}
        texts["added_tokens.json"] = json.dumps(table | {token: ids[token] for token in fresh}, ensure_ascii=False)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        paths = [place / name for place in (folder, *others) if (place / name).is_file()]
        tables: list[Any] = [read_json(path, TokenizerConfig) for path in paths]
        if tables:
            texts[name] = json.dumps(_joined_config(tables, entries, name), ensure_ascii=False, indent=2) + "\n"
    return texts


def _joined_config(tables: Sequence[Any], entries: Iterable[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The first table, with keys it lacks from the others; lists of special tokens are joined."""
    joined = dict(tables[0])
    for table in tables[1:]:
        for key, value in table.items():
            if joined.get(key) is None:
                joined[key] = value
            elif key in _TOKEN_LISTS and isinstance(value, list) and isinstance(joined[key], list):
                joined[key] = [*joined[key], *(token for token in value if token not in joined[key])]
            elif key == "extra_special_tokens" and isinstance(value, dict) and isinstance(joined[key], dict):
                joined[key] = value | joined[key]
    if name == "tokenizer_config.json" and isinstance(tables[0].get("added_tokens_decoder"), dict):
        new = {str(entry["id"]): {key: one for key, one in entry.items() if key != "id"} for entry in entries}
        joined["added_tokens_decoder"] = tables[0]["added_tokens_decoder"] | new
    return joined
