"""`init`: a first recipe, from headers, with reasons; what it proposes plans."""

from __future__ import annotations

import json
from pathlib import Path

import foreign_models as foreign
import pytest
import torch
import zoo
from checkpoint_files import write_model
from safetensors.torch import save_file
from typer.testing import CliRunner

from taskmerge.cli.app import app
from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.pipeline.proposal import propose
from taskmerge.recipes import loads


def write(folder: Path, tensors: dict[str, torch.Tensor], config: str) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    return folder


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A base, a specialist in text, and one that brings ears of its own."""
    base = zoo.BY_NAME["Qwen3"].build(seed=1)
    config = base.config.to_json_string(use_diff=False)
    write(tmp_path / "base", state(base), config)
    moved = zoo.perturb(zoo.BY_NAME["Qwen3"].build(seed=1), 2)
    write(tmp_path / "models" / "my-documents", state(moved), config)
    write(tmp_path / "models" / "audio-v2", foreign.BY_NAME["issue"].tensors(state(moved)), config)
    return tmp_path


def uncommented(text: str) -> str:
    keys = ("# drift:", "# recover:", "# evaluate:")
    return "\n".join(line.removeprefix("# ") if line.startswith(keys) else line for line in text.splitlines())


def test_a_graft_is_copied_and_its_drift_prepared(family: Path) -> None:
    found = propose(
        str(family / "base"), [str(family / "models/my-documents"), str(family / "models/audio-v2")], family
    )
    said = loads(found.text, "proposed", family)
    assert list(said.specialists) == ["my_documents", "audio"]
    assert said.copy is not None and dict(said.copy) == {"audio": ("audio_encoder", "audio_projector")}
    copied = {step.info.name for step in found.plan.steps if step.action == "copy"}
    assert copied == {name for name in foreign.BY_NAME["issue"].tensors({}) if name}
    whole = loads(uncommented(found.text), "proposed", family)
    assert whole.drift is not None and list(whole.drift.specialist) == ["audio"]
    assert whole.recover is not None and list(whole.recover.train) == ["audio_projector"]
    assert whole.evaluate is not None and "audio" in whole.evaluate.retrieval


def test_without_a_graft_there_is_nothing_to_drift(family: Path) -> None:
    found = propose(str(family / "base"), [f"d={family / 'models/my-documents'}"], family)
    assert "drift:" not in found.text and "copy:" not in found.text
    whole = loads(uncommented(found.text), "proposed", family)
    assert whole.specialists["d"].weight == 1.0
    assert whole.evaluate is not None and list(whole.evaluate.retrieval) == ["d"]


def test_paths_are_written_as_the_recipe_sees_them(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(family)
    (family / "recipes").mkdir()
    ran = CliRunner().invoke(app, ["init", "base", "models/my-documents", "--out", "recipes/merge.yaml"])
    assert ran.exit_code == 0, ran.output
    monkeypatch.chdir("/")
    shown = CliRunner().invoke(app, ["fuse", str(family / "recipes" / "merge.yaml"), "--dry-run", "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["output"] == str(family / "recipes" / "out" / "merged")


@pytest.mark.parametrize("name", ["yes", "1.5", "a: b", "#x", "@at", "null", "ünï", "a'b", "-x"])
def test_any_folder_name_comes_back_from_the_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("base", name):
        write_model(tmp_path / folder, {"a.weight": torch.randn(4, 4)})
    found = propose("base", [f"s={name}"], tmp_path)
    assert loads(found.text, "proposed", tmp_path).specialists["s"].model == name


def test_two_of_one_name_and_none_at_all(family: Path) -> None:
    base = str(family / "base")
    with pytest.raises(UsageError, match="two specialists are called 'a'"):
        propose(base, [f"a={base}", f"a={base}"], family)
    with pytest.raises(UsageError, match="no specialist"):
        propose(base, [], family)
    with pytest.raises(TaskmergeError, match="nowhere"):
        propose(base, [str(family / "nowhere")], family)


def test_an_existing_recipe_is_left_alone(family: Path) -> None:
    path = family / "merge.yaml"
    path.write_text("mine")
    ran = CliRunner().invoke(app, ["init", str(family / "base"), str(family / "models/audio-v2"), "--out", str(path)])
    assert ran.exit_code and path.read_text() == "mine"


def test_nothing_is_asked_without_a_terminal() -> None:
    ran = CliRunner().invoke(app, ["init"])
    assert isinstance(ran.exception, UsageError) and "no terminal" in str(ran.exception)


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize("words", ["{} audio", "base {}", "base audio={}"])
def test_a_model_without_a_name_is_refused(family: Path, text: str, words: str) -> None:
    base, *specialists = (word.format(text) for word in words.split(" ", 1))
    with pytest.raises(UsageError, match="is not a model"):
        propose(base, specialists, family)
