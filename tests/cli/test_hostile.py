"""Corrupt and malicious inputs: each is a clear error, before anything is written, wherever the folders say to look.

The whole of `fuse` runs on every row: recipe read, planned, executed. Never a traceback, never a result that is not
the merge, never a file outside the output, never code of the input's.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import WORDS, tokenizer

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.errors import TaskmergeError

RECIPE = """\
base: base
specialists:
  one: {model: one, weight: 0.5}
merge:
  method: task_arithmetic
"""
Damage = Callable[[Path], None]


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, one/ (sharded, with a tokenizer), adapter/ and recipe.yaml."""
    import peft
    import torch

    root = tmp_path_factory.mktemp("healthy")
    kind = zoo.BY_NAME["Qwen3"]
    zoo.save(kind.build(), root / "base")
    zoo.save(zoo.perturb(kind.build(), 1), root / "one", shard_size="20KB")
    for folder in ("base", "one"):
        tokenizer(WORDS).save_pretrained(root / folder)
    torch.manual_seed(0)
    model = peft.get_peft_model(kind.build(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(str(root / "adapter"))
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def copy(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "work", symlinks=True))


def run(root: Path) -> Path:
    recipe = recipes.load(root / "recipe.yaml")
    fusion.execute(fusion.plan(recipe), recipe, root / "out")
    return root / "out"


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# ------------------------------------------------------------------------------------------------------- damages


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Rewrites the base's safetensors header."""

    def damage(root: Path) -> None:
        path = root / "base" / "model.safetensors"
        table, data = split(path)
        table = change(table) or table
        text = json.dumps(table).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    return damage


def raw(change: Callable[[bytes], bytes], file: str = "base/model.safetensors") -> Damage:
    def damage(root: Path) -> None:
        (root / file).write_bytes(change((root / file).read_bytes()))

    return damage


def text(file: str, content: str | bytes) -> Damage:
    def damage(root: Path) -> None:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def table(file: str, **changes: Any) -> Damage:
    def damage(root: Path) -> None:
        path = root / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def index(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(root: Path) -> None:
        path = root / "one" / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content) or content))

    return damage


def entry(**changes: Any) -> Damage:
    """Changes the header entry of the base's first tensor."""
    return header(lambda rows: rows[first(rows)].update(changes))


def first(rows: dict[str, Any]) -> str:
    return next(name for name in rows if name != "__metadata__")


def drop(file: str) -> Damage:
    return lambda root: (root / file).unlink()


def link(file: str, target: str) -> Damage:
    def damage(root: Path) -> None:
        outside = root.parent / "secret"
        outside.write_text(target)
        (root / file).unlink(missing_ok=True)
        (root / file).symlink_to(outside)

    return damage


def recipe(content: str) -> Damage:
    return text("recipe.yaml", content)


def weight(value: str) -> Damage:
    return recipe(RECIPE.replace("0.5", value))


def merge(line: str) -> Damage:
    return recipe(RECIPE + f"  {line}\n")


def adapter(**changes: Any) -> Damage:
    def damage(root: Path) -> None:
        table("adapter/adapter_config.json", **changes)(root)
        recipe(RECIPE.replace("model: one", "model: base, adapter: adapter"))(root)

    return damage


def adapter_weights(change: Callable[[bytes], bytes]) -> Damage:
    def damage(root: Path) -> None:
        raw(change, "adapter/adapter_model.safetensors")(root)
        recipe(RECIPE.replace("model: one", "model: base, adapter: adapter"))(root)

    return damage


def modules(content: Any) -> Damage:
    return text("base/modules.json", json.dumps(content))


def own_values(change: Callable[[np.ndarray], Any]) -> Damage:
    """Changes the values of the base's first tensor."""

    def damage(root: Path) -> None:
        path = root / "base" / "model.safetensors"
        rows, data = split(path)
        start, stop = rows[first(rows)]["data_offsets"]
        place = path.stat().st_size - len(data)
        values = np.frombuffer(data[start:stop], dtype="<f4").copy()
        change(values)
        content = bytearray(path.read_bytes())
        content[place + start : place + stop] = values.tobytes()
        path.write_bytes(bytes(content))

    return damage


def shards_of(root: Path) -> list[Path]:
    return sorted((root / "one").glob("*.safetensors"))


def without_index(root: Path) -> None:
    drop("one/model.safetensors.index.json")(root)
    shards_of(root)[1].unlink()


def two_models(root: Path) -> None:
    drop("one/model.safetensors.index.json")(root)
    shutil.copy(root / "base/model.safetensors", root / "one/other.safetensors")


def pickles_only(root: Path) -> None:
    (root / "base/model.safetensors").rename(root / "base/pytorch_model.bin")


def link_to_itself(root: Path) -> None:
    drop("base/model.safetensors")(root)
    (root / "base/model.safetensors").symlink_to("model.safetensors")


def overflow(root: Path) -> None:
    own_values(lambda values: values.__setitem__(slice(None), -3.4e38))(root)
    weight("-1.0")(root)


def mapped(**names: str) -> Damage:
    """Changes the shard that the index gives a tensor; `norm` stands for model.norm.weight."""
    return index(lambda table: table["weight_map"].update({"model.norm.weight": names["norm"]}))


def nested(data: bytes) -> bytes:
    rows = b"[" * 100_000 + b"]" * 100_000
    return struct.pack("<Q", len(rows)) + rows


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
ADDED = {"id": 10**9, "content": "x", "special": True}

DAMAGES: dict[str, Damage] = {
    # ------------------------------------------------------------------------------------- safetensors: the header
    "empty file": raw(lambda data: b""),
    "seven bytes": raw(lambda data: data[:7]),
    "length only": raw(lambda data: data[:8]),
    "length beyond the file": raw(lambda data: struct.pack("<Q", len(data)) + data[8:]),
    "length of 2^63": raw(lambda data: struct.pack("<Q", 1 << 63) + data[8:]),
    "length of all ones": raw(lambda data: b"\xff" * 8 + data[8:]),
    "length one short": raw(lambda data: struct.pack("<Q", struct.unpack("<Q", data[:8])[0] - 1) + data[8:]),
    "length one long": raw(lambda data: struct.pack("<Q", struct.unpack("<Q", data[:8])[0] + 1) + data[8:]),
    "length zero": raw(lambda data: struct.pack("<Q", 0) + data[8:]),
    "header of zeros": raw(lambda data: data[:8] + bytes(100) + data[108:]),
    "header not utf-8": raw(lambda data: data[:9] + b"\xff\xfe" + data[11:]),
    "header a list": header(lambda rows: [rows]),
    "header a number": header(lambda rows: 3),
    "header deeply nested": raw(nested),
    "html instead": raw(lambda data: b"<!DOCTYPE html><html>not found</html>" * 4),
    "git lfs pointer": raw(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"),
    "zip instead": raw(lambda data: b"PK\x03\x04" + data),
    "pickle instead": raw(lambda data: b"\x80\x04\x95" + data),
    "truncated data": raw(lambda data: data[:-100]),
    "trailing bytes": raw(lambda data: data + b"more"),
    "no dtype": header(lambda rows: rows[first(rows)].pop("dtype") and None),
    "no shape": header(lambda rows: rows[first(rows)].pop("shape") and None),
    "no offsets": header(lambda rows: rows[first(rows)].pop("data_offsets") and None),
    "unknown key": entry(extra=1),
    "unknown dtype": entry(dtype="F31"),
    "dtype a number": entry(dtype=32),
    "dtype a list": entry(dtype=["F32"]),
    "dtype of other size": entry(dtype="F64"),
    "dtype null": entry(dtype=None),
    "shape negative": entry(shape=[-1, 2048]),
    "shape of floats": entry(shape=[64.0, 32.0]),
    "shape of texts": entry(shape=["64", "32"]),
    "shape true": entry(shape=[True, 2048]),
    "shape a number": entry(shape=2048),
    "shape that overflows": entry(shape=[2**62, 2**62]),
    "shape of thousands of ones": entry(shape=[1] * 5000 + [64, 32]),
    "shape too large": entry(shape=[64, 33]),
    "shape too small": entry(shape=[1]),
    "offsets reversed": entry(data_offsets=[8192, 0]),
    "offsets negative": entry(data_offsets=[-8, 8184]),
    "offsets beyond the file": entry(data_offsets=[0, 2**40]),
    "offsets beyond 64 bits": entry(data_offsets=[2**70, 2**70 + 8192]),
    "offsets of floats": entry(data_offsets=[0.0, 8192.0]),
    "offsets three": entry(data_offsets=[0, 4096, 8192]),
    "offsets overlap": entry(data_offsets=[4, 8196]),
    "offsets null": entry(data_offsets=None),
    "an entry that is a list": header(lambda rows: rows.update({first(rows): [1, 2]})),
    "metadata a list": header(lambda rows: rows.update({"__metadata__": [1]})),
    "metadata of numbers": header(lambda rows: rows.update({"__metadata__": {"a": 1}})),
    "a name twice": raw(lambda data: twice(data)),
    "a tensor missing": header(lambda rows: rows.pop(first(rows)) and None),
    "a shard of nothing": raw(lambda data: struct.pack("<Q", 2) + b"{}"),
    # --------------------------------------------------------------------------------------------------- the index
    "index not json": text("one/model.safetensors.index.json", "{"),
    "index a list": text("one/model.safetensors.index.json", "[]"),
    "index empty": text("one/model.safetensors.index.json", "{}"),
    "index null": index(lambda table: {"weight_map": None}),
    "index a list of names": index(lambda table: {"weight_map": ["model.norm.weight"]}),
    "index of numbers": index(lambda table: {"weight_map": dict.fromkeys(table["weight_map"], 3)}),
    "index names a parent": mapped(norm="../base/model.safetensors"),
    "index names an absolute path": mapped(norm="/etc/passwd"),
    "index names a folder": mapped(norm="."),
    "index names nothing": mapped(norm=""),
    "index with a backslash": mapped(norm="..\\x.safetensors"),
    "index with a zero byte": mapped(norm="a\0b.safetensors"),
    "index names a missing file": mapped(norm="other.safetensors"),
    "index names a tensor that is nowhere": index(lambda rows: rows["weight_map"].update({"new.weight": shard(rows)})),
    "index names the wrong shard": index(lambda rows: rows["weight_map"].update({"lm_head.weight": other_shard(rows)})),
    "a shard missing": lambda root: shards_of(root)[0].unlink(),
    "shards without an index, one missing": without_index,
    "two models in one folder": two_models,
    "no weights": drop("base/model.safetensors"),
    "pickled weights only": pickles_only,
    # ------------------------------------------------------------------------------------------------------- links
    "weights linked from outside": link("base/model.safetensors", "secret"),
    "config linked from outside": link("base/config.json", '{"model_type": "qwen3"}'),
    "tokenizer linked from outside": link("base/tokenizer.json", "{}"),
    "index linked from outside": link("one/model.safetensors.index.json", '{"weight_map": {}}'),
    "a link to itself": link_to_itself,
    # ------------------------------------------------------------------------------------------------------ config
    "config not json": text("base/config.json", "{'model_type': 'qwen3'}"),
    "config a list": text("base/config.json", "[]"),
    "config a text": text("base/config.json", '"qwen3"'),
    "config of bytes": text("base/config.json", b"\xff\xfe{}"),
    "config deeply nested": text("base/config.json", "[" * 100_000),
    "config with an endless number": text("base/config.json", '{"a": ' + "9" * 5000 + "}"),
    # -------------------------------------------------------------------------------------------------- the values
    "a NaN": own_values(lambda values: values.__setitem__(3, np.nan)),
    "an infinity": own_values(lambda values: values.__setitem__(3, np.inf)),
    "values that overflow": overflow,
    # --------------------------------------------------------------------------------------------------------- yaml
    "yaml empty": recipe(""),
    "yaml a list": recipe("- base"),
    "yaml a number": recipe("3"),
    "yaml broken": recipe("base: [unclosed"),
    "yaml with tabs": recipe("base:\tbase\n\tspecialists: x"),
    "yaml of bytes": text("recipe.yaml", b"\xff\xfe\x00base"),
    "yaml with a zero byte": recipe(RECIPE.replace("model: one", 'model: "o\\0ne"')),
    "yaml runs python": recipe(RECIPE + "x: !!python/object/apply:os.system ['touch pwned']\n"),
    "yaml makes a python object": recipe("!!python/object:taskmerge.recipes.Recipe {}"),
    "yaml of an unknown tag": recipe(RECIPE.replace("base: base", "base: !secret base")),
    "yaml bomb": recipe(BOMB + RECIPE),
    "yaml that holds itself": recipe("base: &x [*x]\n" + RECIPE.partition("\n")[2]),
    "yaml deeply nested": recipe("base: " + "[" * 5000 + "]" * 5000),
    "yaml merge key": recipe("x: &x {base: base}\n<<: *x\n" + RECIPE.partition("\n")[2]),
    "yaml key twice": recipe(RECIPE + "base: one\n"),
    "yaml specialist twice": recipe(RECIPE.replace("merge:", "  one: {model: base}\nmerge:")),
    "yaml unknown key": recipe(RECIPE + "bsae: x\n"),
    "yaml key that is a list": recipe(RECIPE + "? [a, b]\n: c\n"),
    "yaml key that is a number": recipe(RECIPE + "3: c\n"),
    "no base": recipe(RECIPE.partition("\n")[2]),
    "no specialists": recipe("base: base\nmerge: {method: task_arithmetic}\n"),
    "base a list": recipe(RECIPE.replace("base: base", "base: [base]")),
    "base null": recipe(RECIPE.replace("base: base", "base:")),
    "base that is nowhere": recipe(RECIPE.replace("base: base", "base: ./nowhere")),
    "base with a wild uri": recipe(RECIPE.replace("base: base", "base: hf://../../etc")),
    "base that is a device": recipe(RECIPE.replace("base: base", "base: /dev/zero")),
    "weight a text": weight("much"),
    "weight nan": weight(".nan"),
    "weight infinite": weight(".inf"),
    "weight a date": weight("2026-01-01"),
    "weight true": weight("true"),
    "weight an empty list": weight("[]"),
    "weight beyond floats": weight("1e400"),
    "method unknown": recipe(RECIPE.replace("task_arithmetic", "os.system")),
    "method that is code in a missing file": recipe(RECIPE.replace("task_arithmetic", "../evil.py:run")),
    "scale a table": merge("scale: {a: 1}"),
    "density beyond one": recipe(RECIPE.replace("task_arithmetic", "ties") + "  density: 7\n"),
    "a pattern that never closes": merge('rules: [{match: "layers.{0..3", keep: base}]'),
    "a pattern of a billion": merge('rules: [{match: "layers.{0..1000000000}.*", keep: base}]'),
    "a rule that names nothing": merge('rules: [{match: "nothing.*", keep: base}]'),
    "a rule that keeps nobody": merge('rules: [{match: "*", keep: nobody}]'),
    "a component that matches nothing": recipe(RECIPE + "components: {x: [nothing.*]}\n"),
    "copying what is not there": recipe(RECIPE + "copy: {one: [audio_encoder]}\n"),
    "copying from nobody": recipe(RECIPE + "copy: {nobody: [backbone]}\n"),
    "shard size zero": recipe(RECIPE + "output: {shard_size: 0}\n"),
    "shard size a wish": recipe(RECIPE + "output: {shard_size: big}\n"),
    "dtype unknown": recipe(RECIPE + "output: {dtype: float13}\n"),
    "tokenizer of nobody": recipe(RECIPE + "output: {tokenizer: nobody}\n"),
    "seed a text": recipe(RECIPE + "seed: lucky\n"),
    # ----------------------------------------------------------------------------------------------------- adapters
    "adapter of another kind": adapter(peft_type="LOHA"),
    "adapter of no kind": adapter(peft_type=None),
    "adapter rank zero": adapter(r=0),
    "adapter rank negative": adapter(r=-4),
    "adapter rank a text": adapter(r="2"),
    "adapter rank of another": adapter(r=3),
    "adapter alpha nan": adapter(lora_alpha=float("nan")),
    "adapter with a pattern that looks back": adapter(rank_pattern={"(?<=a)q": 2}),
    "adapter with a broken pattern": adapter(alpha_pattern={"(": 2}),
    "adapter that says dora": adapter(use_dora=True),
    "adapter of the future": adapter(use_time_travel=True),
    "adapter config a list": lambda root: adapter()(root) or text("adapter/adapter_config.json", "[]")(root),
    "adapter config broken": lambda root: adapter()(root) or text("adapter/adapter_config.json", "{")(root),
    "adapter without weights": lambda root: adapter()(root) or drop("adapter/adapter_model.safetensors")(root),
    "adapter weights truncated": adapter_weights(lambda data: data[:-7]),
    "adapter weights of noise": adapter_weights(lambda data: bytes(range(256)) * 4),
    "adapter half missing": adapter_weights(lambda data: data.replace(b"lora_A", b"lora_C")),
    "adapter without a prefix": adapter_weights(lambda data: data.replace(b"base_model.model.", b"none_model.model.")),
    "adapter for another module": adapter_weights(lambda data: data.replace(b"q_proj", b"x_proj")),
    "adapter that is nowhere": recipe(RECIPE.replace("model: one", "model: base, adapter: ./nowhere")),
    # --------------------------------------------------------------------------------------------------- tokenizers
    "tokenizer of another size": table("one/tokenizer.json", added_tokens=[ADDED]),
    "tokenizer not json": text("one/tokenizer.json", "{"),
    "tokenizer a list": text("one/tokenizer.json", "[]"),
    "tokenizer without a model": text("one/tokenizer.json", "{}"),
    "tokenizer with negative ids": table("one/tokenizer.json", model={"vocab": {"a": -1}}),
    "tokenizer with text ids": table("one/tokenizer.json", model={"vocab": {"a": "0"}}),
    "tokenizer of another model": table("one/tokenizer.json", model={"vocab": {"a": 5000}}, added_tokens=[]),
    "tokenizer tokens of lists": table("one/tokenizer.json", added_tokens=[["a", 0]]),
    # ------------------------------------------------------------------------------- sentence-transformers' modules
    "modules not json": text("base/modules.json", "["),
    "modules empty": modules([]),
    "modules a table": modules({"path": ""}),
    "modules without a path": modules([{"idx": 0}]),
    "modules of numbers": modules([1, 2]),
    "modules in a parent folder": modules([{"path": ""}, {"path": "../one"}]),
    "modules at an absolute path": modules([{"path": ""}, {"path": "/etc"}]),
    "modules with a backslash": modules([{"path": ""}, {"path": "..\\one"}]),
    "modules whose transformer is nowhere": modules([{"path": "0_Transformer"}]),
    # ------------------------------------------------------------------------------------------------------- output
    "output exists": text("out/precious.txt", "mine"),
    "output is a file": text("out", "mine"),
}  # fmt: skip


def twice(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    rows = data[8 : 8 + length].decode().rstrip()
    name = first(json.loads(rows))
    again = rows[:-1] + f',"{name}":{json.dumps(json.loads(rows)[name])}}}'
    return struct.pack("<Q", len(again)) + again.encode() + data[8 + length :]


def shard(table: dict[str, Any]) -> str:
    return next(iter(table["weight_map"].values()))


def other_shard(table: dict[str, Any]) -> str:
    own = table["weight_map"]["lm_head.weight"]
    return next(name for name in sorted(table["weight_map"].values()) if name != own)


def test_the_healthy_ones_fuse(healthy: Path, tmp_path: Path) -> None:
    root = copy(healthy, tmp_path)
    base, one, out = (open_stored(folder) for folder in (root / "base", root / "one", run(root)))
    for name in base.tensors:
        expected = (base.read(name).astype("f8") + one.read(name)) / 2
        np.testing.assert_allclose(out.read(name), expected, rtol=1e-6, atol=1e-9)
    adapter()(root)
    shutil.rmtree(root / "out")
    run(root)


def test_there_are_more_than_a_hundred() -> None:
    assert len(DAMAGES) >= 100


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_input_is_a_clear_error(
    healthy: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy(healthy, tmp_path)
    monkeypatch.chdir(root)
    DAMAGES[name](root)
    before = everything(tmp_path)
    with pytest.raises(TaskmergeError) as caught:
        run(root)
    message = str(caught.value)
    assert message.strip() and all(problem.what.strip() for problem in caught.value.problems)
    assert "Traceback" not in message and len(message) < 20_000
    assert everything(tmp_path) - {"work/out"} == before - {"work/out"}
    if name == "output exists":
        assert (root / "out" / "precious.txt").read_text() == "mine"


def test_code_that_comes_with_a_model_is_copied_not_run(healthy: Path, tmp_path: Path) -> None:
    root = copy(healthy, tmp_path)
    evil = f"open({str(tmp_path / 'pwned')!r}, 'w').write('x')\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "sitecustomize.py", "conftest.py"):
        (root / "base" / name).write_text(evil)
    table("base/config.json", auto_map={"AutoModel": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"})(
        root
    )
    run(root)
    assert not (tmp_path / "pwned").exists()
    assert (root / "out" / "modeling_evil.py").read_text() == evil


def test_a_pickle_is_never_loaded(healthy: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    import pickle

    root = copy(healthy, tmp_path)
    (root / "base" / "model.safetensors").unlink()
    (root / "base" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(TaskmergeError, match="pytorch_model"):
        run(root)
    assert not (tmp_path / "pwned").exists()


def outcome(root: Path) -> None:
    """Runs; whatever comes out is an error of ours, or exactly a model of the base's tensors."""
    try:
        out = run(root)
    except TaskmergeError as error:
        assert str(error).strip()
        return
    assert set(open_stored(out).tensors) >= {"model.norm.weight"}
    shutil.rmtree(out)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_bytes_at_random_places(healthy: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any file of the inputs, some bytes overwritten, cut off or inserted."""
    root = copy(healthy, tmp_path_factory.mktemp("fuzz"))
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in (".json", ".safetensors", ".yaml"))
    file = root / data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(len(content), 3000)))
        piece = data.draw(st.binary(min_size=0, max_size=6))
        content[place : place + data.draw(st.integers(0, 6))] = piece
    file.write_bytes(bytes(content))
    outcome(root)
    shutil.rmtree(root.parent, ignore_errors=True)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_json_in_place_of_any_value(
    healthy: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = copy(healthy, tmp_path_factory.mktemp("fuzz"))
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.json"))
    file = root / data.draw(st.sampled_from(files))
    content = json.loads(file.read_text())
    if isinstance(content, dict) and content:
        content[data.draw(st.sampled_from(sorted(content)))] = data.draw(JSON)
    file.write_text(json.dumps(content))
    if "adapter" in str(file):
        adapter()(root)
    outcome(root)
    shutil.rmtree(root.parent, ignore_errors=True)
