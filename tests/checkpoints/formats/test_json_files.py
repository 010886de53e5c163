"""Every JSON that is read, with junk in it: an error that names the file, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from taskmerge.checkpoints.covariances import FILE, InputCovariances
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.lineage.adapter_config import read_config
from taskmerge.checkpoints.lineage.tokenizers import read_vocabulary
from taskmerge.checkpoints.output.writing import OutputFolder
from taskmerge.cli.app import app
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import CheckpointError, TaskmergeError
from taskmerge.merging.algebra import Checkpoint, TaskVector
from taskmerge.merging.verify import verify
from taskmerge.pipeline.state import read_note
from taskmerge.words.json_text import DEEPEST, check_json, parse_json

JUNK: dict[str, bytes] = {
    "a list": b"[]",
    "a number": b"3",
    "a text": b'"x"',
    "null": b"null",
    "cut short": b'{"a": 1',
    "NaN": b"NaN",
    "too large a number": b"1e400",
    "nothing": b"",
    "blanks": b"  \n",
    "a mark of byte order": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "nested without end": b"[" * 100_000,
    "nested deeply": b'{"a":' * (DEEPEST + 2) + b"1" + b"}" * (DEEPEST + 2),
    "a name twice": b'{"a": 1, "a": 2}',
    "half a pair": b'{"a": "\\ud800"}',
    "zero bytes": b"\0" * 64,
    "too long a number": b'{"a": ' + b"9" * 5000 + b"}",
    "two values": b"{} {}",
}
VALUES: tuple[Any, ...] = (
    None,
    3,
    -1,
    True,
    0.5,
    float("nan"),
    "x",
    "",
    "\0",
    "../x",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    {"a": {}},
)
"""What is put at every declared key in turn."""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with one of each file, all in order."""
    tensors = {"model.layers.0.w": torch.arange(6.0).reshape(2, 3), "model.embed_tokens.weight": torch.ones(4, 2)}
    for name in ("base", "other"):
        Checkpoint.open({key: value + len(name) for key, value in tensors.items()}).save(tmp_path / name)
    (tmp_path / "base" / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["A"], "dtype": "float32"}'
    )
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": []}
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "r.yaml").write_text("base: base\nspecialists: {a: other}\noutput: {path: fused}\n")
    assert CliRunner().invoke(app, ["fuse", str(tmp_path / "r.yaml")]).exit_code == 0
    base = Checkpoint.open(tmp_path / "base")
    (Checkpoint.open(tmp_path / "other") - base).save(tmp_path / "vector", form="sign")
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png", "text": "a"}\n')
    return tmp_path


def sharded(room: Path, text: bytes) -> Any:
    Checkpoint.open(room / "base").save(room / "sharded", shard_size=30)
    (room / "sharded" / "model.safetensors.index.json").write_bytes(text)
    return Checkpoint.open(room / "sharded")


def journal(room: Path, text: bytes) -> Any:
    staging = room / ".new.partial"
    staging.mkdir()
    (staging / ".taskmerge-journal.json").write_bytes(text)
    with OutputFolder(room / "new", "identity"):
        raise AssertionError("the journal was taken")


def covariances(room: Path, text: bytes) -> Any:
    header = {"format": "taskmerge input covariances 1", "aliases": text.decode("latin-1"), "counts": "{}"}
    (room / "base" / FILE).parent.mkdir()
    save_file({"m": np.ones((2, 2), np.float32)}, room / "base" / FILE, metadata=header)
    return InputCovariances.open(room / "base")


def at(place: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    def put(room: Path, text: bytes) -> Any:
        (room / place).parent.mkdir(parents=True, exist_ok=True)
        (room / place).write_bytes(text)
        return read(room)

    return put


FILES: dict[str, Callable[[Path, bytes], Any]] = {
    "config.json": at("base/config.json", lambda room: Checkpoint.open(room / "base")),
    "modules.json": at("base/modules.json", lambda room: Checkpoint.open(room / "base")),
    "index": sharded,
    "tokenizer.json": at("base/tokenizer.json", lambda room: read_vocabulary(room / "base")),
    "vocab.json": at("lone/vocab.json", lambda room: read_vocabulary(room / "lone")),
    "adapter_config.json": at(
        "adapter/adapter_config.json", lambda room: read_config(room / "adapter/adapter_config.json")
    ),
    "taskmerge.json": at("fused/taskmerge.json", lambda room: verify(room / "fused", rederive=False)),
    "task_vector.json": at(
        "vector/task_vector.json", lambda room: TaskVector.load(room / "vector", Checkpoint.open(room / "base"))
    ),
    "journal": journal,
    "covariances": covariances,
    "a stage's note": at("report/fuse.json", lambda room: read_note(room / "report/fuse.json")),
    "pairs.jsonl": at("pairs.jsonl", lambda room: read_pairs(room / "pairs.jsonl")),
}
HARMLESS = {("pairs.jsonl", "nothing"), ("pairs.jsonl", "blanks")}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("kind", FILES)
def test_junk_is_refused_by_name(room: Path, kind: str, junk: str) -> None:
    with pytest.raises(TaskmergeError) as told:
        FILES[kind](room, JUNK[junk])
    assert len(str(told.value)) < 2000 and len(str(told.value).splitlines()) < 10
    assert (kind, junk) in HARMLESS or told.value.problems[0].place
    assert (kind, junk) in HARMLESS or told.value.problems[0].next_move


def good_tables() -> dict[str, dict[str, Any]]:
    """A table in order for each kind of file whose keys are used."""
    return {
        "config.json": {
            "model_type": "llama", "architectures": ["A"], "dtype": "float32", "torch_dtype": "float32",
            "text_config": {}, "llm_config": {},
            "quantization_config": {"quant_method": "x", "weight_block_size": [1, 1]},
        },
        "index": {"weight_map": {}, "metadata": {}},
        "tokenizer.json": {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "b"}]},
        "vocab.json": {"a": 0},
        "adapter_config.json": {
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False,
            "use_dora": False, "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None,
        },
        "taskmerge.json": {
            "recipe": "base: b\n", "recipe_folder": ".", "inputs": {"base": {"files": {}}}, "outputs": {},
            "tensors": {}, "rules": [],
        },
        "task_vector.json": {"own": [], "form": "sign", "shapes": {}, "report": {}},
        "journal": {"identity": "identity", "finished": {}},
        "covariances": {"a": "m"},
        "a stage's note": {"identity": "", "done": True, "result": {}},
        "pairs.jsonl": {"image": "a.png", "text": "a"},
    }  # fmt: skip


def spoilt(table: Any, value: Any) -> list[Any]:
    """The table with `value` at each of its places in turn, at every depth."""
    found = []
    for key in table if isinstance(table, dict) else range(len(table)) if isinstance(table, list) else ():
        changed = dict(table) if isinstance(table, dict) else list(table)
        changed[key] = value
        found.append(changed)
        for inner in spoilt(table[key], value):
            changed = dict(table) if isinstance(table, dict) else list(table)
            changed[key] = inner
            found.append(changed)
    if isinstance(table, dict):
        found += [{name: entry for name, entry in table.items() if name != key} for key in table]
    return found


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("kind", good_tables())
def test_wrong_values_never_become_another_kind_of_error(room: Path, kind: str, value: Any) -> None:
    for number, table in enumerate(spoilt(good_tables()[kind], value)):
        here = room / str(number)
        shutil.copytree(room, here, ignore=shutil.ignore_patterns("[0-9]*"))
        try:
            FILES[kind](here, json.dumps(table).encode())
        except (TaskmergeError, AssertionError) as told:
            assert kind == "journal" or isinstance(told, TaskmergeError), told


COMMANDS = (
    "inspect base", "compare base other", "diff base other", "fuse r.yaml --dry-run", "verify fused",
    "apply base vector --out x",
)  # fmt: skip
READ = ("base/config.json", "base/tokenizer.json", "fused/taskmerge.json", "vector/task_vector.json")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", READ)
@pytest.mark.parametrize("junk", ["a list", "cut short", "no UTF-8", "nested without end"])
def test_commands_end_with_a_message(
    room: Path, command: str, place: str, junk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room)
    (room / place).write_bytes(JUNK[junk])
    done = CliRunner().invoke(app, command.split())
    assert done.exception is None or isinstance(done.exception, (TaskmergeError, SystemExit)), done.exception


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere.json")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.json").write_text("{}")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "linked.json").symlink_to(tmp_path / "outside" / "secret.json")
    for name in ("folder.json", "gone.json", "pipe.json", "missing.json", "inner/linked.json"):
        with pytest.raises(CheckpointError) as told:
            read_json(tmp_path / name)
        assert name in str(told.value)
    assert read_json(tmp_path / "inner" / "linked.json", own=True) == {}


def test_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskmerge.checkpoints.formats.json_files.LARGEST", 10)
    (tmp_path / "a.json").write_text('{"a": "long enough"}')
    with pytest.raises(CheckpointError, match="is too large for a JSON file"):
        read_json(tmp_path / "a.json")


# ---------------------------------------------------------------------------------------------------- declarations


class Inner(TypedDict, total=False):
    size: int
    share: float


class Outer(Inner):
    name: str
    rows: list[Inner]


@dataclass(frozen=True)
class Row:
    name: str
    values: tuple[float, ...]
    pair: tuple[int, str] = (1, "a")
    note: str | None = None
    path: Path | None = None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a"}', "it lacks 'rows'"),
        ('{"rows": []}', "it lacks 'name'"),
        ('{"name": 3, "rows": []}', "name must be text, not 3"),
        ('{"name": "a", "rows": {}}', "rows must be a list, not a table"),
        ('{"name": "a", "rows": [{"size": 1.5}]}', r"rows\[0\]\.size must be a whole number, not 1\.5"),
        ('{"name": "a", "rows": [{"size": true}]}', r"rows\[0\]\.size must be a whole number, not true"),
        ('{"name": "a", "rows": [{"share": NaN}]}', r"rows\[0\]\.share must be a number, not nan"),
        ('{"name": "a", "rows": [{"share": 1e400}]}', r"rows\[0\]\.share must be a number, not inf"),
        ('{"name": "a", "rows": [3]}', r"rows\[0\] must be a table, not 3"),
    ],
)
def test_a_declaration_is_checked(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_json(text, Outer, "a.json")


def test_what_fits_comes_back() -> None:
    table = {"name": "a", "rows": [{"size": 1, "share": 1}], "other": [None]}
    assert parse_json(json.dumps(table), Outer) == table
    row: Any = check_json({"name": "a", "values": [1, None, 2.5], "pair": [2, "b"], "path": "x", "more": 1}, Row)
    assert row.name == "a" and row.pair == (2, "b") and row.path == Path("x") and row.note is None
    assert row.values[0] == 1 and np.isnan(row.values[1]) and row.values[2] == 2.5
    for broken in ({"name": "a"}, {"name": "a", "values": [], "pair": [1]}, {"name": "a", "values": ["x"]}):
        with pytest.raises(CheckpointError):
            check_json(broken, Row)


def test_the_words_that_python_writes_for_numbers_are_read() -> None:
    assert np.isinf(parse_json('{"time_step_limit": [0.0, Infinity]}', dict[str, Any])["time_step_limit"][1])


def test_a_name_twice_among_many_is_found_at_once() -> None:
    text = json.dumps({f"name{number}": number for number in range(100_000)})[:-1] + ', "name5": 1}'
    with pytest.raises(CheckpointError, match="'name5' occurs twice"):
        parse_json(text)
