"""What the stages of a recipe leave: a record and a card in every model, and nothing of anybody else's touched.

`taskmerge run` replaced a folder that it never made; recovered and rehearsed models had no record, so that `verify` and
`push` refused the finished model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_the_way import NEVER, ours, picture
from pipeline_projects import RECIPE, new_project, run_quietly, running
from safetensors.torch import load_file, save_file

from taskmerge.checkpoints.output.checking import check_made
from taskmerge.checkpoints.output.record import read_record
from taskmerge.demo.story import tell
from taskmerge.errors import OutputError, RecipeError, UsageError
from taskmerge.pipeline import BY_NAME, Places, Run
from taskmerge.pipeline.outputs import check_outputs
from taskmerge.recipes import loads
from taskmerge.training.work import MARK, check_work, claim_work, clear_work

TEXT = "\n".join(line for line in RECIPE.splitlines() if not line.startswith(("drift", "evaluate"))) + "\n"
MODELS = {
    "specialist-audio": ("trained", "specialize"),
    "specialist-text": ("trained", "specialize"),
    "fused": ("fused", "fuse"),
    "fused-recovered": ("recovered", "recover"),
    "fused-rehearsed": ("trained", "rehearse"),
}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_project(tmp_path_factory.mktemp("untrained") / "project")


@pytest.fixture(scope="module")
def done(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("done") / "project"
    shutil.copytree(untrained, project)
    run_quietly(project, TEXT)
    return project


@pytest.fixture
def project(untrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "project"))


@pytest.fixture
def finished(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "project"))


def test_every_model_has_its_record_and_card(done: Path) -> None:
    for name, (kind, stage) in MODELS.items():
        record = read_record(done / name)
        assert (record["kind"], record["stage"]) == (kind, stage), name
        assert record["outputs"].keys() == {
            str(path.relative_to(done / name)) for path in (done / name).rglob("*") if path.is_file()
        } - {"taskmerge.json"}
        assert "taskmerge" in (done / name / "README.md").read_text("utf-8")
    assert set(read_record(done / "fused-recovered")["inputs"]) == {"model"}
    assert read_record(done / "specialist-audio")["inputs"]["base"]["files"]
    assert read_record(done / "fused-report")["kind"] == "report"
    left = sorted(path.name for path in done.iterdir())
    assert not [name for name in left if name.startswith(".") or name.endswith(("checkpoints", "saving"))], left


@pytest.mark.parametrize("name", MODELS)
def test_verify_knows_every_kind(finished: Path, command: Callable[..., Any], name: str) -> None:
    files = len([name for name in read_record(finished / name)["outputs"] if name != "README.md"])
    (finished / name / "config.json notes").write_text("mine")
    ran = command("verify", finished / name)
    assert ran.code == 0 and f"\nchecked: {files} files of the folder: sha256 of all bytes\n" in f"\n{ran.err}"
    assert "\nnot checked: README.md: not compared, because users may edit the card\n" in ran.err
    assert "\nnot checked: files that are not in the record: config.json notes\n" in ran.err
    assert ran.err.endswith("as recorded, in everything that was checked\n")
    (finished / name / "config.json notes").unlink()
    (finished / name / "config_sentence_transformers.json").write_text('{"prompts": {"query": "evil"}}')
    ran = command("verify", finished / name)
    assert ran.code == 1 and "config_sentence_transformers.json: its sha256" in ran.out


def test_verify_sees_a_frozen_tensor_that_moved(finished: Path) -> None:
    """Also where somebody has written the record anew."""
    from taskmerge.checkpoints.output.record import add_to_record

    folder = finished / "fused-recovered"
    found = check_made(folder)
    assert not found.differences and any("tensors that were not trained" in line for line in found.checked)
    path = next(folder.rglob("model.safetensors"))
    tensors = load_file(path)
    name = next(name for name in tensors if "backbone" in name and tensors[name].is_floating_point())
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, {"format": "pt"})
    add_to_record(folder, str(path.relative_to(folder)))
    assert any(name in line and "was not trained" in line for line in check_made(folder).differences)


def test_push_takes_every_model(finished: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []

    def upload(folder: Path, *_: Any, **__: Any) -> str:
        pushed.append(folder.name)
        return "address"

    monkeypatch.setattr("taskmerge.checkpoints.hub.upload", upload)
    for name in MODELS:
        assert command("push", finished / name, "owner/name").code == 0, name
    (finished / "fused" / "README.md").write_text("# My own words")
    assert command("push", finished / "fused", "owner/name").code == 0
    (finished / "fused" / "notes.txt").write_text("mine")
    assert "notes.txt" in command("push", finished / "fused", "owner/name").err
    (finished / "fused" / "secret").symlink_to(finished / "audio.jsonl")
    ran = command("push", finished / "fused", "owner/name")
    assert ran.code == 1 and "links" in ran.err
    (finished / "fused-recovered" / "config_sentence_transformers.json").unlink()
    assert command("push", finished / "fused-recovered", "owner/name").code == 1
    assert pushed == [*MODELS, "fused", "fused"]


@pytest.mark.parametrize("what", NEVER)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "specialist-text"])
def test_no_stage_touches_what_is_not_ours(project: Path, name: str, what: str) -> None:
    """Told for every output before the first stage runs, asked to replace or not."""
    NEVER[what](project / name)
    before = picture(project)
    for fresh in (False, True):
        current = Run(loads(TEXT, "recipe.yaml", project), Places(project / "fused"), fresh=fresh)
        with pytest.raises(OutputError, match=name):
            check_outputs(current, list(BY_NAME))
        assert picture(project) == before


@pytest.mark.parametrize("name", ["fused", "fused-recovered", "fused-report"])
def test_run_ends_before_the_first_stage(project: Path, name: str) -> None:
    NEVER["somebody's folder"](project / name)
    before = picture(project)
    with pytest.raises(OutputError, match=name):
        run_quietly(project, TEXT)
    assert picture(project) == before


PLACES = {
    "a trained specialist": ("model: specialist-audio", "model: '{}'", "specialize: audio: "),
    "mteb's results": ("evaluate: {", "evaluate: {{mteb: [STS12], results: '{}', ", "evaluate: "),
}


@pytest.mark.filterwarnings("ignore")  # mteb's own, while it lists its benchmarks
@pytest.mark.parametrize("uri", ["s3://bucket/x", "hf://owner/x", "foo://x/y"])
@pytest.mark.parametrize("what", PLACES)
def test_a_place_that_is_none_of_this_disk(project: Path, what: str, uri: str) -> None:
    """The path of a uri is empty: mteb's results were put into the recipe's own folder, among the models."""
    before, after, said = PLACES[what]
    assert before in RECIPE
    seen = picture(project)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:\d+: {said}'{uri}': .*cannot be written to"):
        run_quietly(project, RECIPE.replace(before, after.format(uri)))
    assert picture(project) == seen


def test_what_is_read_is_no_uri_either(project: Path) -> None:
    """An encoder on the hub was looked for in the recipe's own folder; so was the card of a model for mteb."""
    current = Run(loads(RECIPE.replace("log_mel", "hf://owner/ears"), "recipe.yaml", project), Places(project / "x"))
    section = current.recipe.specialize
    assert section is not None and section["audio"].graft is not None
    assert current.encoder(section["audio"].graft) == "hf://owner/ears"
    with pytest.raises(UsageError, match="'s3://bucket/card' is not a path on this disk"):
        current.path("s3://bucket/card")


def test_run_is_as_careful_as_fuse(project: Path) -> None:
    """A model of ours that no run of this recipe has left stays, until --fresh is said."""
    ours(project / "specialist-text")
    before = picture(project)
    with pytest.raises(OutputError, match="--fresh replaces it"):
        run_quietly(project, TEXT, until="specialize")
    assert picture(project) == before
    _, said = run_quietly(project, TEXT, until="specialize", fresh=True)
    assert "specialize-text" in running(said) and not (project / "specialist-text" / "older.json").exists()


def test_a_trained_model_stays_until_the_next_one_stands(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was removed before the training that was to replace it began."""
    changed = TEXT.replace("steps: 3,", "steps: 4,").replace("output: {path: fused}",
                                                             "output: {path: fused, keep_previous: true}")  # fmt: skip
    before = picture(finished / "specialist-audio")

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr("taskmerge.training.session.Session.run", fails)
        with pytest.raises(RuntimeError, match="the power went"):
            run_quietly(finished, changed, until="specialize")
    assert picture(finished / "specialist-audio") == before
    run_quietly(finished, changed, until="specialize")
    assert picture(finished / "specialist-audio") != before
    assert picture(finished / "specialist-audio-previous") == before


def test_a_note_is_no_licence_for_what_was_put_there_since(finished: Path) -> None:
    """A folder trained elsewhere, and one with a file of the user's in it."""
    changed = TEXT.replace("steps: 3,", "steps: 4,")
    (finished / "specialist-audio" / "notes.txt").write_text("mine")
    before = picture(finished / "specialist-audio")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        run_quietly(finished, changed, until="specialize")
    assert picture(finished / "specialist-audio") == before


def test_checkpoints_of_other_trainers_stay(tmp_path: Path) -> None:
    """The trainer keeps two checkpoints and removes older ones, whosever they are."""
    work = tmp_path / "work"
    (work / "checkpoint-500").mkdir(parents=True)
    (work / "checkpoint-500" / "model.safetensors").write_text("weeks")
    before = picture(tmp_path)
    for refused in (check_work, claim_work):
        with pytest.raises(OutputError, match="checkpoint-500"):
            refused(work)
    clear_work(work)
    assert picture(tmp_path) == before
    own = tmp_path / "own"
    claim_work(own)
    (own / "checkpoint-1").mkdir()
    (own / "notes.txt").write_text("mine")
    clear_work(own)
    assert picture(own) == {"notes.txt": b"mine"} and not (own / MARK).exists()


@pytest.mark.parametrize("what", NEVER)
def test_graft_touches_nothing_that_is_not_ours(project: Path, command: Callable[..., Any], what: str) -> None:
    NEVER[what](project / "out")
    before = picture(project)
    words = ("graft", project / "backbone", "--modality", "audio", "--encoder", "log_mel", "--out", project / "out")
    for fresh in ((), ("--fresh",)):
        ran = command(*words, *fresh)
        assert ran.code == 1 and "out" in ran.err, ran
        assert picture(project) == before


@pytest.mark.parametrize("what", ["somebody's folder", "a file", "a link to somebody's folder", "ours and a file"])
def test_the_demo_touches_nothing_that_is_not_ours(tmp_path: Path, what: str) -> None:
    """A folder with a recipe.yaml of one's own was taken for a demo's, and its data written over."""
    NEVER[what](tmp_path / "out")
    if (tmp_path / "out").is_dir():
        (tmp_path / "out" / "recipe.yaml").write_text("base: mine")
    before = picture(tmp_path)
    with pytest.raises(OutputError):
        tell(tmp_path / "out", lambda _: None)
    assert picture(tmp_path) == before
