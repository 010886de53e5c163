"""Pickled weights: archives damaged, streams of instructions that no trainer wrote, programs in them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, command, generator
from fuzz.mutation import damaged_bytes

RECIPE = "base: base\nspecialists:\n  one: {model: two, weight: 0.5}\nmerge: {method: task_arithmetic}\n"
CALLS = (
    b"cos\nsystem\n(S'touch canary'\ntR.",
    b"cposix\nsystem\n(S'touch canary'\ntR.",
    b'c__builtin__\nexec\n(S\'open("canary","w")\'\ntR.',
    b'cbuiltins\neval\n(S\'open("canary","w")\'\ntR.',
    b"csubprocess\ncheck_call\n(]S'touch'\nS'canary'\netR.",
    b"ctorch\nload\n(S'x'\ntR.",
    b"cnumpy.f2py\ncrackfortran\n.",
    b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.",
    b"(S'touch canary'\nios\nsystem\n.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    b"cruntimes\n.",
    b"ccollections\nOrderedDict\n)R.",
)
OPCODES = b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}\x80\x81\x82" + bytes(range(0x85, 0x97))


def _commands(rng: Random) -> list[Command]:
    every = [
        command("fuse", "recipe.yaml", "--out", "out", writes=["out"]),
        command("inspect", "two"),
        command("inspect", "two/pytorch_model.bin"),
        command("compare", "base", "two"),
        command("diff", "base", "two"),
        command("extract", "base", "two", "--out", "vector", writes=["vector"]),
        command("verify", "two"),
        command("check-model", "two"),
    ]
    return rng.sample(every, 2)


def rewritten(path: Path, change: Any) -> bytes:
    """A torch archive with its members changed by `change(name, data) -> (name, data) or None`."""
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            member = change(name, old.read(name))
            if member is not None:
                new.writestr(*member)
    return made.getvalue()


@generator("merge", share=5)
def pickle_archives(rng: Random, room: Path) -> list[Command]:
    """The zip archive torch writes: bytes, members, sizes, names, offsets damaged; compressed; bombs."""
    (room / "recipe.yaml").write_text(RECIPE)
    path = room / "two" / "pytorch_model.bin"
    what = rng.randrange(6)
    if what == 0:
        data = path.read_bytes()
        cut = rng.choice((400, len(data)))
        data = data[:-cut] + damaged_bytes(rng, data[-cut:])
    elif what == 1:
        data = damaged_bytes(rng, path.read_bytes())
    elif what == 2:
        inner = Random(rng.random())
        data = rewritten(
            path, lambda name, own: (name, damaged_bytes(inner, own)) if name.endswith("data.pkl") else (name, own)
        )
    elif what == 3:
        gone = rng.choice(("data.pkl", "byteorder", "version", "data/0", "data/1"))
        data = rewritten(path, lambda name, own: None if name.endswith(gone) else (name, own))
    elif what == 4:
        odd = rng.choice(("../", "/etc/", "x/../", "\\", ""))
        data = rewritten(path, lambda name, own: (odd + name.partition("/")[2], own[: rng.choice((0, 3, len(own)))]))
    else:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", rng.choice((b"\x80\x02}q\x00.", b"(" * 10**6, bytes(50_000_000))))
            archive.writestr("archive/data/0", bytes(rng.choice((0, 100, 50_000_000))))
        data = made.getvalue()
    path.write_bytes(data)
    return _commands(rng)


@generator("merge", share=5)
def pickle_streams(rng: Random, room: Path) -> list[Command]:
    """The instructions in data.pkl, and bare pickles: calls of programs, random opcodes, sizes of gigabytes."""
    (room / "recipe.yaml").write_text(RECIPE)
    path = room / "two" / "pytorch_model.bin"
    stream = _stream(rng)
    if rng.random() < 0.6:
        data = rewritten(path, lambda name, own: (name, stream) if name.endswith("data.pkl") else (name, own))
    elif rng.random() < 0.5:
        data = (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + stream
        )  # before 1.6
    else:
        data = stream
    path.write_bytes(data)
    if rng.random() < 0.3:
        name = rng.choice(("model.pt", "consolidated.00.pth", "training_args.bin", "weights.pkl", "model.ckpt"))
        path.rename(path.with_name(name))
    return _commands(rng)


def _stream(rng: Random) -> bytes:
    what = rng.randrange(4)
    if what == 0:
        return rng.choice(CALLS)
    if what == 1:
        return b"\x80\x02" + bytes(rng.choice(OPCODES) for _ in range(rng.choice((5, 50, 3000)))) + b"."
    if what == 2:
        size = rng.choice((2**31 - 1, 2**32 - 1, 2**40, 2**63))
        head = rng.choice(
            (
                b"\x8d" + struct.pack("<Q", size),
                b"\x8e" + struct.pack("<Q", size),
                b"X" + struct.pack("<I", size & 0xFFFFFFFF),
                b"\x95" + struct.pack("<Q", size),
                b"r" + struct.pack("<I", size & 0xFFFFFFFF),
                b"\x8b" + struct.pack("<i", -1),
            )
        )
        return b"\x80\x04" + head + b"x" * 50 + b"."
    deep: Any = 0
    for _ in range(rng.choice((10, 500))):
        deep = rng.choice(([deep], {"a": deep}, (deep,)))
    return pickle.dumps(
        rng.choice((deep, {"state_dict": {"a": 1}}, {1: 2}, [1, 2], "x" * 10**6, {"w": bytearray(10)}, None)), 4
    )
