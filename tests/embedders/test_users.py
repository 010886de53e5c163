"""A user's own model: found by the name he gives, run by every stage, checked against its file."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hearing import EXAMPLES, hearing_specialist
from omni_models import WORDS, tiny_backbone, tone
from safetensors.torch import load_file, save_file
from vision_models import vision_model

from taskmerge import Embedder, ModelSource, diagnose_drift, evaluate_retrieval, open_embedder, recover
from taskmerge.embedders import users
from taskmerge.embedders.checking import check_model, example
from taskmerge.embedders.sources import Loader
from taskmerge.errors import CheckpointError, TaskmergeError, UsageError

LOAD = f"{EXAMPLES / 'hearing_model.py'}:load"
SQUEEZING = f"{EXAMPLES / 'squeezing.py'}:Squeezing"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_model("Qwen3-VL", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def hearing(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hearing_specialist(base, tmp_path_factory.mktemp("hearing") / "audio")


def sounds(count: int) -> list[dict[str, Any]]:
    texts = [f"{WORDS[i % 7]} {WORDS[3 + i % 5]}" for i in range(count)]
    return [
        {"audio": {"array": tone(200 + 40 * i, 0.5), "sampling_rate": 16000}, "text": text}
        for i, text in enumerate(texts)
    ]


def test_one_item_of_each_modality(hearing: Path) -> None:
    found = check_model(open_embedder(hearing, embedder=LOAD))
    assert found.fits, found
    tried = {one.modality: one for one in found.modalities}
    assert list(tried) == ["text", "image", "video", "audio"]
    assert tried["audio"].projectors == ("audio_mlp",) and tried["audio"].projected == 50
    assert all("visual.merger" in tried[kind].projectors for kind in ("image", "video"))
    assert found.layers == ("language_model.layers.0", "language_model.layers.1")
    assert {"audio_encoder": 22, "audio_projector": 4}.items() <= found.components.items()


def test_it_runs_as_its_own_class_does(hearing: Path) -> None:
    import hearing_model

    own = hearing_model.HearingEmbedder(str(hearing))
    own.module.eval()
    opened = open_embedder(hearing, embedder=LOAD)
    for modality in own.modalities:
        np.testing.assert_array_equal(
            opened.encode([example(modality)], modality), own.encode([example(modality)], modality)
        )


def test_saved_it_is_opened_by_the_same_loader(hearing: Path, tmp_path: Path) -> None:
    opened = open_embedder(hearing, embedder=LOAD)
    with torch.no_grad():
        opened.state_dict.values["audio_mlp.2.bias"].add_(1)
    opened.save(tmp_path / "saved")
    again = open_embedder(tmp_path / "saved", embedder=LOAD)
    item = [example("audio")]
    np.testing.assert_array_equal(again.encode(item, "audio"), opened.encode(item, "audio"))
    before, after = load_file(hearing / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["audio_mlp.2.bias"]
    assert before.keys() == after.keys() and (tmp_path / "saved" / "tokenizer.json").is_file()


def test_recovery_of_a_loaded_object_moves_its_projector_alone(hearing: Path, tmp_path: Path) -> None:
    from taskmerge import TrainingSettings

    settings = TrainingSettings(steps=3, batch_size=8, learning_rate=1e-2, evaluate_every=1)
    own = open_embedder(hearing, embedder=LOAD)
    report = recover(own, sounds(24), ["audio_projector"], settings, held_out=sounds(8), out=tmp_path / "recovered")
    before, after = load_file(hearing / "model.safetensors"), load_file(tmp_path / "recovered" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= {name for name in before if name.startswith("audio_mlp.")}
    assert report.kept == bool(moved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recovered"]  # no checkpoints left behind
    open_embedder(tmp_path / "recovered", embedder=LOAD)


def test_drift_and_scores_of_loaded_objects(base: Path, hearing: Path) -> None:
    own = open_embedder(hearing, embedder=LOAD)
    report = diagnose_drift(open_embedder(hearing, embedder=LOAD), own, base=base, probes=sounds(12))
    assert report.modalities["audio"].control.identical
    assert all(depth.relative_change == 0 for depth in report.modalities["audio"].depths)
    sources: dict[str, Any] = {"own": own, "by name": ModelSource(hearing, LOAD)}
    table = evaluate_retrieval(sources, {"audio": sounds(12)})
    assert table.get("own", "audio") == table.get("by name", "audio")


# Never on half a model


def broken(hearing: Path, folder: Path, change: Any) -> Path:
    import shutil

    shutil.copytree(hearing, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {n: v for n, v in t.items() if not n.startswith("audio_mlp.0")}, "missing from the file"),
        (lambda t: {n: v for n, v in t.items() if "layers.1." not in n}, "missing from the file"),
        (lambda t: {n.replace("whisper.", "ear."): v for n, v in t.items()}, "do not have the values of"),
        (lambda t: t | {"beak_mlp.weight": torch.ones(4, 4)}, "no counterpart in"),
    ],
    ids=["no projector", "a layer short", "other names", "more than the class has"],
)
def test_a_model_that_is_not_whole_is_refused(hearing: Path, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_embedder(broken(hearing, tmp_path / "broken", change), embedder=LOAD)


def test_a_loader_that_leaves_values_out_is_found_out(hearing: Path) -> None:
    import hearing_model

    def careless(folder: str) -> Embedder:
        made = hearing_model.HearingEmbedder(folder)
        torch.nn.init.normal_(made.module.audio_mlp[0].weight)
        return made

    with pytest.raises(
        CheckpointError, match=r"1 tensor does not have the values of the file in HearingModel: audio_mlp\.0"
    ):
        open_embedder(hearing, embedder=careless)


# What the user names


def test_a_loader_says_what_is_not_its_own(base: Path) -> None:
    opened = open_embedder(base, embedder=LOAD)
    assert type(opened.module).__name__ == "SentenceTransformer" and "image" in opened.modalities


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nowhere.py:load", "no file 'nowhere.py' for the embedder 'nowhere.py:load'"),
        ("own.py", "does not name a function in the file"),
        ("own.py:lod", "does not contain 'lod'"),
        ("own.py:NUMBER", "which cannot be called"),
        ("own.py:five", "a int is not an embedder"),
        ("own.py:fails", r"fails\(\) fails: ZeroDivisionError: division by zero"),
        ("broken.py:load", "the file of the embedder 'broken.py:load' fails: KeyError"),
        ("no_such_package.models:load", "cannot be imported: ModuleNotFoundError"),
        ("unheard_of", "no installed package provides an embedder 'unheard_of'"),
    ],
)
def test_what_cannot_be_found_or_run_is_said(tmp_path: Path, named: str, said: str) -> None:
    (tmp_path / "own.py").write_text(
        "NUMBER = 5\ndef load(folder): return None\ndef five(folder): return 5\ndef fails(folder): return 1 / 0\n"
    )
    (tmp_path / "broken.py").write_text("{}['a']\n")
    with pytest.raises(TaskmergeError, match=said):
        open_embedder(ModelSource(tiny_backbone(tmp_path / "model"), named, folder=tmp_path))


def test_an_entry_point_is_imported_when_it_is_named(monkeypatch: pytest.MonkeyPatch, hearing: Path) -> None:
    point = EntryPoint("hearing", "hearing_model:load", users.GROUP)
    monkeypatch.setattr(users, "offered", lambda: [point])
    assert "audio" in open_embedder(hearing, embedder="hearing").modalities
    with pytest.raises(UsageError) as caught:
        open_embedder(hearing, embedder="haering")
    assert "did you mean 'hearing'?" in str(caught.value)


def test_a_loader_may_be_handed_over(hearing: Path) -> None:
    import hearing_model

    loader: Loader = hearing_model.load
    assert open_embedder(ModelSource(hearing, loader)).modalities == ("text", "image", "video", "audio")


# A module class of somebody's own in a sentence-transformers folder


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from squeezing import Squeezing

    folder = tmp_path_factory.mktemp("squeezed")
    first = Transformer(str(tiny_backbone(folder / "backbone")))
    model = SentenceTransformer(modules=[first, Pooling(32), Squeezing(32, 8)], device="cpu")
    model.save_pretrained(str(folder / "model"))
    return folder / "model", model.encode(["a dog", "high rain"])


def test_a_class_is_allowed_by_name(squeezed: tuple[Path, np.ndarray]) -> None:
    folder, wanted = squeezed
    opened = open_embedder(folder, embedder=SQUEEZING)
    np.testing.assert_allclose(opened.encode(["a dog", "high rain"]), wanted, atol=1e-6)
    assert "2_Squeezing/linear.weight" in opened.state_dict.tensors


def test_a_class_that_nobody_named_does_not_run(squeezed: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = squeezed
    with pytest.raises(CheckpointError) as caught:
        open_embedder(folder)
    assert "modules.json lists squeezing.Squeezing" in str(caught.value)
    assert "--embedder squeezing:Squeezing" in str(caught.value)
    (tmp_path / "other.py").write_text("from torch import nn\nclass Other(nn.Module): ...\n")
    with pytest.raises(UsageError, match="does not list it"):
        open_embedder(ModelSource(folder, "other.py:Other", folder=tmp_path))


def test_check_model_on_the_command_line(hearing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from taskmerge.cli.app import app

    done = CliRunner().invoke(app, ["check-model", str(hearing), "--embedder", LOAD, "--json"])
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)
    assert [one["modality"] for one in table["modalities"]] == ["text", "image", "video", "audio"]
