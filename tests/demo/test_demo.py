"""`taskmerge demo`: what is shipped is what it says, the story runs on a small cut of it, and, slowly, on all of it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image
from safetensors.torch import load_file as load_tensors

from taskmerge.demo import making, pictures, speech, story
from taskmerge.demo.unpacking import SHIPPED, minilm
from taskmerge.embedders import open_embedder


def load_file(path: Path) -> dict[str, np.ndarray]:
    """All tensors in float32: NumPy has no bfloat16."""
    return {name: tensor.float().numpy() for name, tensor in load_tensors(path).items()}


Command = Callable[..., Any]
VARIANTS = {"base", "specialist image", "specialist audio", "fused", "recovered", "rehearsed"}
QUERY = "backbone.encoder.layer.2.attention.self.query.weight"


def rows(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def test_what_is_shipped_is_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 6_000_000
    sounds = {split: rows(SHIPPED / "data" / f"audio_{split}.parquet") for split in ("train", "validation", "test")}
    for row in (row for split in sounds.values() for row in split):
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert rate == speech.RATE and 0.2 < len(samples) / rate < 2 and np.abs(samples).max() > 0.05
    texts = {split: {row["text"] for row in own} for split, own in sounds.items()}
    assert texts["train"] == texts["validation"] == texts["test"] == set(speech.WORDS)
    heard = {split: {row["audio"]["path"].split("-", 1)[1][:-8] for row in own} for split, own in sounds.items()}
    assert heard["train"] == set(speech.TRAIN_VOICES) and heard["test"] == set(speech.TEST_VOICES)
    assert heard["validation"] == {speech.VALIDATION_VOICE}


def test_the_shipped_pictures_are_what_the_script_draws() -> None:
    texts = {}
    for split, drawn in pictures.make(making.SEED).items():
        texts[split] = [row["text"] for row in drawn]
        shipped = rows(SHIPPED / "data" / f"image_{split}.parquet")
        assert [row["text"] for row in shipped] == texts[split]
        for one, other in zip(shipped, drawn, strict=True):
            pixels = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), float) for row in (one, other)]
            assert np.abs(pixels[0] - pixels[1]).mean() < 1  # another Pillow may round edges otherwise
    trained = set(texts["train"])
    for split in ("validation", "test"):
        assert sum(text in trained for text in texts[split]) == len(texts[split]) // 2
    assert not (set(texts["validation"]) - trained) & (set(texts["test"]) - trained)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped folder with a few pairs and a few steps, in the place of the whole."""
    folder = tmp_path / "small"
    shutil.copytree(SHIPPED, folder)
    for path in (folder / "data").glob("*.parquet"):
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.take(np.linspace(0, len(table) - 1, 40).astype(int)), path)
    recipe = (folder / "recipe.yaml").read_text()
    for said, less in (("steps: 100", "steps: 3"), ("steps: 240", "steps: 2"), ("size: 48", "size: 8"), ("32", "8")):
        assert said in recipe
        recipe = recipe.replace(said, less)
    (folder / "recipe.yaml").write_text(recipe)
    monkeypatch.setattr(story, "SHIPPED", folder)
    return folder


def test_the_story_on_a_small_cut(small: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    ran = command("demo", "--out", out)
    assert ran.code == 0, ran.err
    page = Path(ran.out.splitlines()[-1])
    assert page == out / "omni-report" / "report.html" and "Drift of audio" in page.read_text("utf-8")
    told = json.loads(page.with_suffix(".json").read_text("utf-8"))["stages"]
    assert {row["variant"] for row in told["evaluate"]["retrieval"]["results"]} == VARIANTS
    assert all(variant in ran.out for variant in VARIANTS)
    for words in ("2. Fuse", "3. Diagnose", "audio: ", "0 others changed", "trust_remote_code"):
        assert words in ran.err, words

    models_are_the_shipped_numbers(out)
    embedder: Any = open_embedder(out / "omni-rehearsed").module
    assert embedder.encode(["apple", {"array": np.ones(8000, np.float32), "sampling_rate": 16000}]).shape == (2, 384)

    again = command("demo", "--out", out)
    assert again.code == 0 and "running" not in again.err and again.out == ran.out


def models_are_the_shipped_numbers(out: Path) -> None:
    """Backbone of the base, one matrix of specialist and fusion, the projector: by numpy from the shipped files."""
    original = load_file(minilm() / "model.safetensors")
    base, image, audio, fused, recovered = (
        load_file(out / name / "model.safetensors")
        for name in ("models/base", "models/image", "models/audio", "omni", "omni-recovered")
    )
    for name, values in original.items():
        if f"backbone.{name}" in base:
            assert np.array_equal(base[f"backbone.{name}"], values)
    moved = {}
    for name, model in (("image", image), ("audio", audio)):
        stored = load_file(SHIPPED / name / "model.safetensors")
        signs = np.unpackbits(stored[f"{QUERY}#signs"].astype(np.uint8)).reshape(base[QUERY].shape)
        moved[name] = np.where(signs, 1, -1) * stored[f"{QUERY}#scales"][:, None]
        assert np.linalg.norm(moved[name]) > 0
        np.testing.assert_allclose(model[QUERY], base[QUERY] + moved[name], atol=1e-5)
    np.testing.assert_allclose(fused[QUERY], base[QUERY] + 0.3 * moved["image"] + 0.5 * moved["audio"], atol=1e-5)
    for name, values in load_file(SHIPPED / "audio" / "model.safetensors").items():
        if name.startswith("audio_projector."):
            assert np.array_equal(fused[name], values)
    assert all(np.array_equal(recovered[name], fused[name]) for name in fused if "audio_projector" not in name)


def test_what_is_in_the_way_is_told_first(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = command("demo", "--out", tmp_path)
    assert ran.code == 1 and "something other" in ran.err and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = command("demo", "--out", tmp_path / "out", "--from-scratch")
    assert ran.code == 2 and "apt-get install espeak-ng" in ran.err and not (tmp_path / "out").exists()
    monkeypatch.setattr("taskmerge.words.extras.find_spec", lambda name: None if name == "soxr" else name)
    ran = command("demo", "--out", tmp_path / "out")
    assert ran.code == 2 and "not installed: soxr" in ran.err and "taskmerge[demo]" in ran.err


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    """Half or more of what audio lost comes back by the projector alone, of what pictures lost by rehearsal."""
    table, places = story.tell(tmp_path / "demo")
    scores = {
        (row["variant"], row["set_name"]): row["intervals"]["recall_at_1"]["estimate"]
        for row in table["stages"]["evaluate"]["retrieval"]["results"]
        if row["direction"] == "to_text"
    }
    own = scores["specialist audio", "audio"]
    assert own >= 0.85
    assert table["stages"]["diagnose"]["exit_code"] == 3
    lost = own - scores["fused", "audio"]
    assert lost > 0.05
    assert scores["recovered", "audio"] >= scores["fused", "audio"] + lost / 2
    assert scores["recovered", "image"] == scores["fused", "image"]
    lost = scores["specialist image", "image"] - scores["fused", "image"]
    assert lost > 0.05
    assert scores["rehearsed", "image"] >= scores["fused", "image"] + lost / 2
    assert places.report.joinpath("report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng speaks the words")
def test_from_scratch_makes_what_is_shipped(tmp_path: Path) -> None:
    making.make(tmp_path, lambda line: None, steps=0.01)
    made, shipped = ({p.relative_to(f) for p in f.rglob("*.*") if p.name != "recipe.yaml"} for f in (tmp_path, SHIPPED))
    assert made == shipped
    for name in ("image", "audio"):
        one, other = (load_file(folder / name / "model.safetensors") for folder in (tmp_path, SHIPPED))
        assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
