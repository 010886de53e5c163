"""A whole recipe on tiny models: every stage, nothing twice, told before training, taken up after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import cached, digests
from huggingface_hub import constants
from json_shapes import problems_of
from PIL import Image
from pipeline_projects import RECIPE, TEXTS, new_project, run_quietly, running, write_sound
from typer.testing import CliRunner

from taskmerge.cli.app import app
from taskmerge.cli.results import RESULTS
from taskmerge.embedders import graft
from taskmerge.errors import RecipeError, UsageError
from taskmerge.pipeline import Run, run, stages
from taskmerge.recipes import loads


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return new_project(tmp_path)


def test_every_stage_once_and_only_what_changed_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, said = run_quietly(project)
    every = ["specialize-audio", "specialize-text", "fuse", "diagnose", "recover", "rehearse", "evaluate"]
    assert running(said) == every
    assert table["stages"]["fuse"]["components"]["audio_projector"] == {"copy": 4}
    variants = {row["variant"] for row in table["stages"]["evaluate"]["retrieval"]["results"]}
    assert variants == {"specialist audio", "fused", "recovered", "rehearsed"}
    page = (project / "fused-report" / "report.html").read_text("utf-8")
    assert "Drift of audio" in page and "rehearsed" in page

    again, said = run_quietly(project, "# a comment\n" + RECIPE)
    assert all(line.endswith("skipped") for line in said) and len(said) == len(every)
    assert again["stages"] == table["stages"]

    monkeypatch.chdir(project.parent)  # another way to say the same folder
    _, said = run_quietly(Path(project.name))
    assert all(line.endswith("skipped") for line in said)

    commands_say_the_same(project, table)

    _, said = run_quietly(project, RECIPE.replace("method: gradient, steps: 2", "method: gradient, steps: 3"))
    assert running(said) == ["recover", "rehearse", "evaluate"]


def test_a_changed_sound_behind_unchanged_rows_is_noticed(project: Path) -> None:
    text = RECIPE.partition("drift:")[0]
    run_quietly(project, text, until="specialize")
    first = digests(project / "specialist-audio")["model.safetensors"]
    write_sound(project / "dog.wav", 1000)
    _, said = run_quietly(project, text, until="specialize")
    assert running(said) == ["specialize-audio"]  # text.jsonl names no sounds
    assert digests(project / "specialist-audio")["model.safetensors"] != first
    assert not running(run_quietly(project, text, until="specialize")[1])


def commands_say_the_same(project: Path, table: dict[str, Any]) -> None:
    """The stage commands on a finished project: nothing runs again, results come as JSON, a page is written."""
    recipe = project / "recipe.yaml"
    recipe.write_text(RECIPE)
    stages_said = table["stages"]
    result = CliRunner().invoke(app, ["run", str(recipe), "--json"])
    ran = json.loads(result.stdout)
    assert result.exit_code == 0 and ran["stages"] == stages_said
    assert not problems_of(ran, RESULTS["run"][0])
    page = project / "drift.html"
    result = CliRunner().invoke(app, ["diagnose-drift", str(recipe), "--json", "--html", str(page)])
    assert result.exit_code == stages_said["diagnose"]["exit_code"]
    found = stages_said["diagnose"]["modalities"]["audio"]["verdict"]["outcome"]
    assert not problems_of(json.loads(result.stdout), RESULTS["diagnose-drift"][0])
    assert json.loads(result.stdout)["modalities"]["audio"]["verdict"]["outcome"] == found
    assert "Drift of audio" in page.read_text("utf-8")
    result = CliRunner().invoke(app, ["evaluate", str(recipe), "--json"])
    assert json.loads(result.stdout) == stages_said["evaluate"]
    assert not problems_of(stages_said["evaluate"], RESULTS["evaluate"][0])
    result = CliRunner().invoke(
        app, ["evaluate", str(project / "fused"), "--retrieval", f"held={project / 'held.jsonl'}", "--json"]
    )
    rows = json.loads(result.stdout)["retrieval"]["results"]
    assert {row["set_name"] for row in rows} == {"held"} and {row["variant"] for row in rows} == {"fused"}
    result = CliRunner().invoke(
        app, ["stats", str(project / "specialist-audio"), "--probes", str(project / "audio.jsonl")]
    )
    assert Path(result.stdout.strip()).is_file()
    Path(result.stdout.strip()).unlink()
    Path(result.stdout.strip()).parent.rmdir()


def test_base_and_specialists_from_the_hub(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "hub"))
    text = RECIPE.replace("text: {model: specialist-text, ", "text: {model: owner/text, ").replace("recover:", "#", 1)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("  text: {data")) + "\n"
    text = text.partition("#")[0] + "evaluate: {retrieval: {audio: held.jsonl}}\n"
    (project / "owner").mkdir()
    graft(project / "backbone", "image", "patches", "linear", project / "owner" / "text", seed=1)
    local, _ = run_quietly(project, text)
    for name, folder in (("owner/base", project / "base"), ("owner/text", project / "owner" / "text")):
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        cached(project / "hub", name, files)
        shutil.rmtree(folder)
    kept = digests(project / "fused")["model.safetensors"]
    for made in ("fused", "fused-report", "specialist-audio"):
        shutil.rmtree(project / made)

    from_hub, said = run_quietly(project, text.replace("base: base", "base: owner/base@main"))
    assert running(said) == ["specialize-audio", "fuse", "diagnose", "evaluate"]
    assert digests(project / "fused")["model.safetensors"] == kept
    assert from_hub["stages"]["evaluate"] == local["stages"]["evaluate"]
    assert "specialist text" in from_hub["models"]
    _, said = run_quietly(project, text.replace("base: base", "base: owner/base@main"))
    assert running(said) == []


@pytest.mark.parametrize(
    ("change", "stages", "what"),
    [
        (("base: base", "base: bace"), {}, "recipe.yaml:1: base: there is no file or folder 'bace'"),
        (
            ("base: base", "base: owner/base"),
            {},
            "base: there is no file or folder 'owner/base', and it cannot be downloaded",
        ),
        (("  text: {data", "  # text: {data"), {}, "recipe.yaml:4: text: there is no file or folder 'specialist-text'"),
        (
            ("", ""),
            {"start": "fuse"},
            "audio: 'specialist-audio' is not trained yet\n    train it: `taskmerge specialize`",
        ),
        (
            ("", ""),
            {"start": "recover", "until": "recover"},
            "there is no fused model in '.*fused'\n    make it: `taskmerge fuse`",
        ),
        (
            ("", ""),
            {"start": "rehearse", "until": "rehearse"},
            "no model to rehearse in '.*fused-recovered'\n    make it: `taskmerge r",
        ),
        (("  text: {data", "  # text: {data"), {"start": "diagnose", "until": "diagnose"}, "there is no fused model"),
        (
            ("encoder: log_mel", "encoder: logmel"),
            {},
            "specialize: audio: unknown encoder 'logmel'\n    did you mean 'log_mel'",
        ),
        (
            ("encoder: log_mel", "encoder: patches"),
            {},
            "encoder 'patches' takes image, video, not audio\n    use log_mel",
        ),
        (
            ("model: specialist-audio,", "adapter: x, model: base,"),
            {},
            "audio is an adapter, but only complete models can be compared",
        ),
    ],
)
def test_models_that_are_not_there_are_told_before_anything_runs(
    project: Path, change: tuple[str, str], stages: dict[str, Any], what: str
) -> None:
    said: list[str] = []
    with pytest.raises(RecipeError, match=what):
        run(loads(RECIPE.replace(*change), "recipe.yaml", project), say=said.append, **stages)
    assert not said and not (project / "fused-report").exists()


def test_an_interrupted_run_ends_with_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = RECIPE.partition("rehearse:")[0] + "evaluate: {retrieval: {audio: held.jsonl}}\n"
    whole, _ = run_quietly(new_project(tmp_path / "whole"), text)
    other = new_project(tmp_path / "other")

    def interrupted(_: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(stages.BY_NAME, "recover", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_quietly(other, text)
    resumed, said = run_quietly(other, text)
    assert running(said) == ["recover", "evaluate"]
    assert resumed["stages"]["evaluate"] == whole["stages"]["evaluate"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("data: audio.jsonl, graft", "data: gone.jsonl, graft"), "6: specialize: audio: gone.jsonl: there is no file"),
        (("probes: audio.jsonl", "probes: none.jsonl"), "drift: probes: .*none.jsonl: contains no pairs"),
        (("probes: audio.jsonl", "probes: no_text.jsonl"), "row 1: no text next to its audio: None"),
        (("probes: audio.jsonl", "probes: one_text.jsonl"), "one_text.jsonl have the same text: they cannot be ranked"),
        (("probes: audio.jsonl", "probes: empty.jsonl"), r"row 2: audio '.*empty.wav' is empty\n    remove the .*$"),
        (("probes: audio.jsonl", "probes: slow.jsonl"), "row 2: audio '.*slow.wav' has a sampling rate of 500 Hz"),
        (("retrieval: {audio: held.jsonl}", "retrieval: {audio: bad.jsonl}"), "missing.wav"),
        (("specialist: audio", "specialist: text"), "audio.jsonl contains audio, for which the model has no encoder"),
        ((", graft: {encoder: log_mel, projector: linear}", ""), "rehearse: data: audio.jsonl contains audio, for"),
        (("train: [audio_projector]", "train: [image_projector]"), "train: 'image_projector' matches no tensor"),
        (("data: audio.jsonl, held_out", "data: films.jsonl, held_out"), "no component that processes it is trained"),
        (("train: [backbone], steps: 2, batch_size: 4", "steps: 2"),
         r"recipe.yaml:7: specialize: text: query \(.*text.jsonl\): 8 distinct texts are too few for batches of 32\n"
         "    set batch_size to at most 8$"),
        (("gradient, steps: 2, batch_size: 4", "gradient, batch_size: 9"), "recover: audio .* 8 pairs are too few"),
        (("  held_out: {audio: held.jsonl}\n", ""), "rehearse: audio: 8 pairs of 8 texts are too few to reserve "
        "some for evaluation"),
        (("steps: 3,", "steps: 3, report_to: tensorbord,"),
         "recipe.yaml:6: specialize: audio: report_to: 'tensorbord' is unknown\n    did you mean 'tensorboard'"),
    ],
)  # fmt: skip
def test_bad_data_is_told_before_anything_runs(project: Path, change: tuple[str, str], what: str) -> None:
    write_bad_data(project)
    said: list[str] = []
    assert change[0] in RECIPE
    with pytest.raises(RecipeError, match=what):
        run(loads(RECIPE.replace(*change), "recipe.yaml", project), say=said.append)
    assert not said and not (project / "fused-report").exists()


@pytest.mark.filterwarnings("ignore")  # mteb's own, while it lists its benchmarks
def test_an_unknown_mteb_task_is_told_before_anything_runs(project: Path) -> None:
    said: list[str] = []
    text = RECIPE.replace("evaluate: {", "evaluate: {mteb: MAEBB, ")
    with pytest.raises(
        RecipeError, match="evaluate: there is no mteb task or benchmark 'MAEBB'\n    did you mean the benchmark"
    ):
        run(loads(text, "recipe.yaml", project), say=said.append)
    assert not said


def write_bad_data(folder: Path) -> None:
    """Sets of pairs that are each wrong in one way."""
    write_sound(folder / "empty.wav", 0, seconds=0)
    write_sound(folder / "slow.wav", 300, rate=500)
    good = {"audio": "dog.wav", "text": "a dog"}
    sets = {
        "none": [],
        "no_text": [{"audio": "dog.wav"}, good],
        "one_text": [good, good],
        "empty": [good, {"audio": "empty.wav", "text": "a cat"}],
        "slow": [good, {"audio": "slow.wav", "text": "a cat"}],
        "bad": [good, {"audio": "missing.wav", "text": "a cat"}],
        "films": [{"video": "dog.gif", "text": f"a {word}"} for word in TEXTS],
    }
    Image.new("RGB", (32, 32), "red").save(folder / "dog.gif")
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_unknown_stage(project: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'rehearse'"):
        run_quietly(project, start="reherse")


PROMPTED = f"""\
{RECIPE.partition("recover:")[0]}
evaluate: {{retrieval: {{audio: held.jsonl}}, dimensions: 4}}
prompts: {{query: "red ", modalities: {{audio: {{query: "high sound "}}}}, tasks: {{audio: {{document: "blue "}}}}}}
"""


def test_prompts_of_a_recipe_reach_its_stages(project: Path) -> None:
    table = run_quietly(project, PROMPTED)[0]
    stages_said = table["stages"]
    assert stages_said["specialize-audio"]["settings"]["prompts"]["query"] == "red "
    retrieval = stages_said["evaluate"]["retrieval"]
    for row in retrieval["conditions"]:
        assert row["item_prompts"] == {"query": "high sound ", "document": "blue "}
        assert row["text_prompts"] == {"query": "red ", "document": "blue "}
    assert {row["dimension"] for row in retrieval["results"]} == {None, 4}
    assert {(row["variant"], row["reference"]) for row in retrieval["differences"]} == {("fused", "specialist audio")}
    assert "8 of 8 probes are in the specialist's training data" in stages_said["diagnose"]["words"]
    assert stages_said["diagnose"]["exit_code"] == 4
    other = PROMPTED.replace("document: ", "query: ")
    assert running(run_quietly(project, other, start="diagnose")[1]) == ["diagnose", "evaluate"]
    with pytest.raises(
        RecipeError,
        match="tasks: 'audoi' is neither a training set nor a set or task of `evaluate`\n    did you mean 'audio'",
    ):
        run_quietly(project, PROMPTED.replace("tasks: {audio", "tasks: {audoi"))


def test_stages_are_compared_with_what_they_were_made_from() -> None:
    names = ["base", "specialist image", "specialist audio", "fused", "recovered", "rehearsed"]
    specialists = names[1:3]
    assert stages.against(names) == {
        "base": [],
        "specialist image": ["base"],
        "specialist audio": ["base"],
        "fused": ["base", *specialists],
        "recovered": ["fused", *specialists],
        "rehearsed": ["recovered", "fused", *specialists],
    }
    assert stages.against(["fused", "rehearsed"]) == {"fused": [], "rehearsed": ["fused"]}
