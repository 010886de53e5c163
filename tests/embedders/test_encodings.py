"""Encodings on the disk: what a killed run had finished is there, what is broken is not taken, the limit holds."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omni_models import tiny_backbone, tone

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.content import identity_of, item_key
from taskmerge.embedders.encodings import RECORD, Encodings, Keeping, text_key
from taskmerge.embedders.items import PreparedItems
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import UsageError
from taskmerge.training.items import TrainingItems
from taskmerge.words.progress import Said, watching


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def row(number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(number % 5, 7, generator=torch.Generator().manual_seed(number)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_added_is_found_now_and_by_the_next(tmp_path: Path, dtype: torch.dtype) -> None:
    first = Encodings(tmp_path / "a", dtype, 1 << 30)
    numbers = list(range(40))
    for start in range(0, 40, 8):
        first.add([key(n) for n in numbers[start : start + 8]], [row(n, dtype) for n in numbers[start : start + 8]])
    for kept in (first, Encodings(tmp_path / "a", dtype, 1 << 30)):
        found = kept.find([key(n) for n in (39, 0, 100, 7)])
        assert found[2] is None
        for number, tensor in zip((39, 0, 7), (found[0], found[1], found[3]), strict=True):
            assert tensor is not None and tensor.dtype == dtype and torch.equal(tensor, row(number, dtype))


def test_a_killed_writer_leaves_what_it_finished(tmp_path: Path) -> None:
    """SIGKILL while it writes: every whole entry is found, with its own bytes."""
    script = (
        "import hashlib, sys, torch; from pathlib import Path; from taskmerge.embedders.encodings import Encodings\n"
        "kept = Encodings(Path(sys.argv[1]), torch.float32, 1 << 40)\n"
        "for n in range(10**6):\n"
        "    kept.add([hashlib.blake2b(str(n).encode(), digest_size=16).digest()], [torch.full((3, 50), float(n))])\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = 0
    for line in process.stdout:
        said = int(line)
        if said >= 200:
            break
    process.kill()
    process.wait()
    process.stdout.close()
    (index,) = (tmp_path / "a").glob("*.index")
    with index.open("ab") as file:
        file.write(b"half an entry")
    kept = Encodings(tmp_path / "a", torch.float32, 1 << 30)
    found = kept.find([key(n) for n in range(said + 1)])
    for number, tensor in enumerate(found):
        assert tensor is not None and torch.equal(tensor, torch.full((3, 50), float(number)))


def test_bytes_that_changed_are_not_taken(tmp_path: Path) -> None:
    kept = Encodings(tmp_path / "a", torch.float32, 1 << 30)
    kept.add([key(4), key(9)], [row(4), row(9)])
    (values,) = (tmp_path / "a").glob("*.values")
    content = bytearray(values.read_bytes())
    content[5] ^= 1
    values.write_bytes(content)
    first, second = Encodings(tmp_path / "a", torch.float32, 1 << 30).find([key(4), key(9)])
    assert first is None and second is not None
    values.write_bytes(bytes(content)[:-1])
    assert Encodings(tmp_path / "a", torch.float32, 1 << 30).find([key(9)]) == [None]


def test_the_limit_holds_and_the_oldest_goes_first(tmp_path: Path) -> None:
    size = 4 * 100 * 10
    limit = 3 * (size + 10 * RECORD.itemsize)
    for number, name in enumerate(("old", "newer")):
        kept = Keeping(str(tmp_path), limit).open(name, torch.float32)
        kept.add([key(n) for n in range(10)], [torch.zeros(1, 100)] * 10)
        (index,) = (tmp_path / name).glob("*.index")
        os.utime(index, (time.time() - 1000 + number,) * 2)
    now = Keeping(str(tmp_path), limit).open("now", torch.float32)
    said: list[str] = []
    with watching(lambda told: said.append(told.text) if isinstance(told, Said) else None):
        for start in range(0, 60, 10):
            now.add([key(n) for n in range(start, start + 10)], [torch.zeros(1, 100)] * 10)
    assert not list((tmp_path / "old").glob("*.values")) and not list((tmp_path / "newer").glob("*.values"))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= limit
    assert len(now) == 30 and len(said) == 1 and "limit of" in said[0]


def test_items_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(b"1")
    before = item_key(file, "audio")
    assert item_key({"bytes": b"1", "path": "x"}, "image") == item_key({"bytes": b"1", "path": None}, "image")
    assert item_key({"bytes": b"1"}, "image") != item_key({"bytes": b"1"}, "video")
    assert item_key(np.zeros(3), "audio") != item_key(np.zeros(3, np.float32), "audio")
    assert item_key(torch.ones(2), "audio") == item_key(np.ones(2, np.float32), "audio")
    file.write_bytes(b"12")
    assert item_key(file, "audio") != before


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hearing")
    graft(tiny_backbone(home / "b"), "audio", {"kind": "log_mel", "mels": 16, "width": 24}, "linear", home / "h")
    return home / "h"


def sounds(count: int) -> list[dict[str, object]]:
    return [{"audio": tone(200.0 + 9 * number), "text": f"a dog {number}"} for number in range(count)]


def test_an_encoder_runs_once_for_all_runs_and_again_when_it_changed(hearing: Path, tmp_path: Path) -> None:
    pairs = read_pairs(sounds(6))
    keeping = Keeping(str(tmp_path))

    def features(change: float = 0.0) -> tuple[dict[str, torch.Tensor], int]:
        embedder = open_embedder(hearing)
        model: Any = embedder.module
        encoder = model[0].encoder("audio")
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += change
        ran: list[int] = []
        encoder.register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
        items = TrainingItems(embedder, {"audio": pairs}, keeping=keeping)
        items.encode()
        items.batch([0, 1, 2])
        return items.batch([0, 2, 5]), sum(ran)

    wanted, ran = features()
    assert ran == 4
    again, ran = features()
    assert ran == 0
    assert all(torch.equal(wanted[name], again[name]) for name in wanted)
    other, ran = features(change=0.5)
    assert ran == 4 and not torch.equal(other["audio_encoded"], wanted["audio_encoded"])


def test_nothing_is_decoded_before_it_is_needed(hearing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import taskmerge.embedders.items as home

    decoded: list[object] = []
    monkeypatch.setattr(home, "CHECKED", 3)
    monkeypatch.setattr("taskmerge.training.items.CHECKED", 3)
    monkeypatch.setattr(PreparedItems.check, "__defaults__", (3,))
    pairs = read_pairs(sounds(50))
    load = type(pairs).load

    def counted(self: Pairs, start: int, stop: int) -> list[object]:
        decoded.append(start)
        return load(self, start, stop)

    monkeypatch.setattr(type(pairs), "load", counted)
    said: list[str] = []
    with watching(lambda told: said.append(told.text) if isinstance(told, Said) else None):
        items = TrainingItems(open_embedder(hearing), {"audio": pairs})
    assert len(decoded) == 3 and said == ["audio: checked 3 of 50 items; the others are checked when they are used"]
    items.batch([7, 8])
    items.batch([8, 7])
    assert len(decoded) - 3 <= 2, "small sets are held"


def test_a_broken_item_is_told_with_its_place_when_it_is_used(hearing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sounds(30)
    rows[17]["audio"] = np.full(800, np.nan, np.float32)
    monkeypatch.setattr(PreparedItems.check, "__defaults__", (1,))
    items = TrainingItems(open_embedder(hearing), {"mine": read_pairs(rows)})
    with pytest.raises(UsageError, match=r"mine, pair 18 of pairs in memory: audio .* contains NaN"):
        items.batch(list(range(10, 20)))


def test_number_formats_do_not_share_a_folder(tmp_path: Path) -> None:
    keeping = Keeping(str(tmp_path))
    formats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for dtype in formats:
        keeping.open("one", dtype).add([key(4)], [row(4, dtype)])
    for dtype in formats:
        (found,) = keeping.open("one", dtype).find([key(4)])
        assert found is not None and torch.equal(found, row(4, dtype))


def test_no_encoder_is_taken_for_another(hearing: Path) -> None:
    """Each of its tensors, a number format, an option, a layer's own setting, its code: any change is another one."""
    model: Any = open_embedder(hearing).module
    encoder = model[0].encoder("audio")

    def identity() -> str | None:
        return identity_of(encoder.state_dict(), encoder.modules(), [encoder.kind, encoder.options])

    seen = [identity()]
    assert seen[0] is not None and seen[0] == identity()
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            tensor.reshape(-1)[-1] += 1e-3
            seen.append(identity())
    options = dict(encoder.options)
    for name, value in options.items():
        encoder.options = {**options, name: value + 1 if isinstance(value, int | float) else f"{value}x"}
        seen.append(identity())
    encoder.options = options
    seen.append(identity_of(encoder.bfloat16().state_dict(), encoder.modules(), [encoder.kind, encoder.options]))
    assert None not in seen and len(set(seen)) == len(seen) > 4
    encoder.register_module("own", type("Own", (torch.nn.Module,), {"__module__": "somebody.s"})())
    assert identity() is None, "code of somebody's own may change unseen: nothing of it is kept"


def test_prompts_tell_texts_apart_and_items_their_file(tmp_path: Path) -> None:
    keys = {text_key(prompt, text) for prompt in (None, "", "None", "a: ", "a") for text in ("a", "", ": a", "None:a")}
    assert len(keys) == 20
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for file in files:
        file.write_bytes(b"1")
    assert item_key(files[0], "audio") != item_key(files[1], "audio")


def test_a_killed_stage_finds_what_it_had_encoded(hearing: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of encoding: the next run encodes the rest alone, and has the values of one that ran on."""
    lines = []
    for number in range(24):
        soundfile.write(tmp_path / f"{number}.wav", tone(200.0 + 9 * number), 16000)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": f"a dog {number}"}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))

    def batches(folder: str, stop: int = 24) -> tuple[list[torch.Tensor], int]:
        pairs = read_pairs(tmp_path / "pairs.jsonl")
        items = TrainingItems(open_embedder(hearing), {"a": pairs}, keeping=Keeping(str(tmp_path / folder)))
        items.encode()
        ran: list[int] = []
        items.prepared.encoders()[0].register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
        return [items.batch(range(start, start + 4))["audio_encoded"] for start in range(0, stop, 4)], sum(ran)

    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # threads of the parent's are not here
            batches("kept", stop=12)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    found, ran = batches("kept")
    wanted, all_of_them = batches("other")
    assert (ran, all_of_them) == (12, 24)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
