"""Every command: what it prints where, exit codes, JSON, and that each is documented."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import Tensors, digests, random_model, read_model, same_bits, write_model, write_recipe
from places import ROOT
from typer.main import get_command

from taskmerge import __version__
from taskmerge.cli.app import app
from taskmerge.cli.docs import page
from taskmerge.methods import all_methods

HEAVY = ("torch", "transformers", "numba", "sentence_transformers")
NAME = "model.layers.2.proj.weight"
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def models() -> dict[str, Tensors]:
    base = random_model(0) | {"lm_head.weight": torch.ones(4, 3)}
    near = {label: random_model(seed, near=base) for seed, label in ((1, "image"), (2, "audio"))}
    held = {"base": base} | {label: model | {"lm_head.weight": torch.ones(4, 3)} for label, model in near.items()}
    held["audio"] |= {
        "audio_tower.layers.0.weight": torch.ones(2, 2),
        "audio_projector.linear.weight": torch.ones(3, 2),
    }
    return held


@pytest.fixture
def folder(tmp_path: Path, models: dict[str, Tensors], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models and a recipe, in the current folder."""
    for label, tensors in models.items():
        write_model(tmp_path / label, tensors)
    write_recipe(
        tmp_path,
        base="base",
        specialists={"image": {"model": "image", "weight": 0.3}, "audio": {"model": "audio", "weight": 0.5}},
        merge={
            "method": "ties",
            "rules": [{"match": "embeddings", "keep": "base"}, {"match": "head", "keep": "base"}][1:],
        },
        output={"path": "out", "shard_size": 700},
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(text: str) -> list[list[str]]:
    """A plain table: tab-separated lines."""
    return [line.split("\t") for line in text.splitlines()]


# --- fuse ---------------------------------------------------------------------------------------------------------


def test_fuse_prints_the_folder_and_says_the_rest_on_stderr(folder: Path, command: Command) -> None:
    ran = command("fuse", "merge.yaml")
    assert (ran.code, ran.out) == (0, "out\n")
    assert re.search(r"\d+(\.\d)? k?B in \d+\.\d s: out", ran.err)
    assert (folder / "out" / "model.safetensors.index.json").exists()
    again = command("fuse", "merge.yaml")
    assert (again.code, again.out) == (1, "") and "the output folder already exists" in again.err
    assert command("fuse", "merge.yaml", "--fresh").code == 0
    assert command("fuse", "merge.yaml", "--out", "deep/other").out == "deep/other\n"
    assert digests(folder / "out").keys() == digests(folder / "deep" / "other").keys()


def test_fuse_as_json(folder: Path, command: Command) -> None:
    ran = command("fuse", "merge.yaml", "--json")
    table = json.loads(ran.out)
    assert ran.err == ""
    weights = {name: digest for name, digest in digests(folder / "out").items() if name.endswith(".safetensors")}
    assert table["sha256"] == weights and table["resumed"] == [] and table["path"] == "out"
    assert table["bytes"] == sum((folder / "out" / name).stat().st_size for name in weights)


def test_json_has_the_warnings_of_the_plan(folder: Path, command: Command) -> None:
    rules = [{"match": "backbone", "keep": "image"}, {"match": "model.layers.0.*", "keep": "base"}]
    said = yaml.safe_load((folder / "merge.yaml").read_text())
    write_recipe(folder, **{**said, "merge": {"rules": rules}})
    planned = json.loads(command("fuse", "merge.yaml", "--dry-run", "--json").out)
    written = json.loads(command("fuse", "merge.yaml", "--json").out)
    assert any("never applies" in line for line in written["warnings"])
    assert written["warnings"] == planned["warnings"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(folder: Path, command: Command) -> None:
    before = digests(folder)
    ran = command("fuse", "merge.yaml", "--dry-run")
    assert ran.code == 0
    table = {row[0]: row[1:] for row in rows(ran.out)}
    assert table["component"] == ["action", "method", "tensors", "how"]
    assert table["backbone"][:3] == ["merged", "ties", "10"] and table["backbone"][3].startswith("ties (average weight")
    assert table["head"] == ["kept", "", "1", "keep from base: rule 'head'"]
    assert table["audio_encoder"] == ["copied", "", "1", "copy from audio: only audio has it"]
    assert re.search(r"reads .*B, writes .*B in \d files? to out", ran.err)
    table = json.loads(command("fuse", "merge.yaml", "--dry-run", "--json").out)
    assert table["components"]["backbone"] == {"merge": 10}
    assert table["tensors"]["lm_head.weight"] == "keep from base: rule 'head'"
    assert table["dropped"]["image:lm_head.weight"] == "rule 'head': taken from base"
    assert sum(table["files"].values()) == table["bytes_written"]
    assert digests(folder) == before


def test_warnings_go_to_stderr(folder: Path, command: Command) -> None:
    rules = [{"match": "backbone", "keep": "image"}, {"match": "model.layers.0.*", "keep": "base"}]
    said = yaml.safe_load((folder / "merge.yaml").read_text())
    write_recipe(folder, **{**said, "merge": {"rules": rules}})
    ran = command("fuse", "merge.yaml", "--dry-run", "--json")
    assert "warning: merge.yaml:" in ran.err and "never applies: earlier rules match all its tensors" in ran.err
    assert json.loads(ran.out)["warnings"]


def test_a_mergekit_recipe_is_read(folder: Path, models: dict[str, Tensors], command: Command) -> None:
    said = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "image", "parameters": {"weight": 0.5}}],
        "dtype": "float32",
    }
    (folder / "kit.yaml").write_text(yaml.safe_dump(said))
    ran = command("fuse", "kit.yaml", "--out", "out")
    assert ran.code == 0, ran.err
    want = models["base"][NAME].double() + 0.5 * (models["image"][NAME].double() - models["base"][NAME].double())
    assert torch.allclose(read_model(folder / "out")[NAME].double(), want, rtol=1e-6)


# --- inspect, compare, diff ---------------------------------------------------------------------------------------


def test_inspect(folder: Path, command: Command) -> None:
    ran = command("inspect", "audio")
    table = {row[0]: row[1:] for row in rows(ran.out)}
    assert (ran.code, ran.err) == (0, "")
    assert table["component"] == ["tensors", "entries", "size", "dtype", "first"]
    assert table["audio_projector"] == ["1", "6", "24 B", "F32", "audio_projector.linear.weight"]
    tensors = rows(command("inspect", "audio", "--tensors").out)
    assert [NAME, "backbone", "F32", "[13, 17]"] in tensors
    data = json.loads(command("inspect", "audio", "--json").out)
    assert data["tensors"][NAME] == {"component": "backbone", "dtype": "F32", "shape": [13, 17]}
    assert data["config"] == {"model_type": "llama"}


def test_compare(folder: Path, models: dict[str, Tensors], command: Command) -> None:
    ran = command("compare", "base", "image", "sound=audio", "--json")
    table = json.loads(ran.out)
    names = list(models["base"])
    flat = {
        label: np.concatenate([(models[label][name] - models["base"][name]).double().numpy().ravel() for name in names])
        for label in ("image", "audio")
    }
    assert table["norms"]["sound"][0] == pytest.approx(np.linalg.norm(flat["audio"]), rel=1e-6)
    lengths = np.linalg.norm(flat["image"]) * np.linalg.norm(flat["audio"])
    assert table["cosine"]["image"]["sound"] == pytest.approx(flat["image"] @ flat["audio"] / lengths, rel=1e-5)
    plain = rows(command("compare", "base", "image", "sound=audio", "--by-layer").out)
    assert ["task vector", "norm", "relative"] in plain and ["cosine", "image", "sound"] in plain
    assert ["layer", "image", "sound"] in plain and any(row[0] == "backbone.10" for row in plain)


def test_numbers_that_do_not_exist_are_null_in_json(folder: Path, command: Command) -> None:
    table = json.loads(command("compare", "base", "image", "same=base", "--json").out, parse_constant=pytest.fail)
    assert table["cosine"]["image"]["same"] is None and table["norms"]["same"] == [0, 0]


def test_diff(folder: Path, models: dict[str, Tensors], command: Command) -> None:
    same = command("diff", "base", "base")
    assert (same.code, same.out, same.err) == (0, "", "no tensor differs\n")
    changed = {name: tensor.clone() for name, tensor in models["base"].items()}
    changed[NAME][3, 4] += 0.5
    write_model(folder / "changed", changed)
    ran = command("diff", "base", "changed")
    assert ran.code == 1 and ran.err == "1 tensor differs\n"
    assert rows(ran.out)[1][:3] == [NAME, "values", "1"] and float(rows(ran.out)[1][3]) == pytest.approx(0.5)
    data = json.loads(command("diff", "base", "audio", "--json").out)
    assert not data["same"]
    assert {"tensor": "audio_tower.layers.0.weight", "difference": "only in the second", "entries": None,
            "largest": None} in data["differences"]  # fmt: skip


# --- extract, apply -----------------------------------------------------------------------------------------------


def test_extract_and_apply_give_the_specialist_back(folder: Path, models: dict[str, Tensors], command: Command) -> None:
    ran = command("extract", "base", "audio", "--out", "vector", "--dtype", "float64")
    assert (ran.code, ran.out) == (0, "vector\n")
    assert "11 deltas, 2 tensors that only the specialist has" in ran.err
    ran = command("apply", "base", "vector", "--out", "back", "--shard-size", "800")
    assert (ran.code, ran.out) == (0, "back\n")
    back = read_model(folder / "back")
    assert all(same_bits(back[name], tensor) for name, tensor in models["audio"].items())
    command("apply", "base", "vector", "--out", "less", "--weight", "-1", "--dtype", "float64")
    less = read_model(folder / "less")[NAME]
    base, audio = models["base"][NAME].double(), models["audio"][NAME].double()
    assert torch.equal(less, base - (audio - base))


def test_a_part_of_a_task_vector(folder: Path, command: Command) -> None:
    words = ("extract", "base", "image", "--out", "vector", "--only", "model.layers.{0,1}.*", "--only", "head")
    assert command(*words, "--density", "0.3").code == 0
    vector = read_model(folder / "vector")
    assert "model.layers.1.norm.weight" in vector and "lm_head.weight" in vector and NAME not in vector
    kept = vector["model.layers.1.conv.weight"].count_nonzero()
    assert kept == pytest.approx(0.3 * 108, abs=3), "ties may keep more than 32"
    refused = command(*words)
    assert refused.code == 1 and "--fresh replaces it" in refused.err
    wrong = command("extract", "base", "image", "--out", "other", "--only", "bakbone")
    assert wrong.code == 2 and "did you mean 'backbone'?" in wrong.err
    assert not (folder / "other").exists()


@pytest.mark.parametrize("form", [(), ("--form", "sparse", "--density", "0.5"), ("--form", "low_rank", "--rank", "1")])
def test_extract_divides_files_in_every_form(folder: Path, command: Command, form: tuple[str, ...]) -> None:
    ran = command("extract", "base", "image", "--out", "vector", "--shard-size", "200", *form)
    assert ran.code == 0
    assert len(list((folder / "vector").glob("*.safetensors"))) > 1
    command("extract", "base", "image", "--out", "whole", *form)
    assert len(list((folder / "whole").glob("*.safetensors"))) == 1
    command("apply", "base", "vector", "--out", "one")
    command("apply", "base", "whole", "--out", "other")
    one, other = read_model(folder / "one"), read_model(folder / "other")
    assert all(same_bits(one[name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rank 2", "--rank belongs to --form low_rank"),
        ("--rank 2 --form sparse --density 0.5", "--rank belongs to --form low_rank"),
        ("--lora 2 --rank 2", "--rank belongs to --form low_rank"),
        ("--lora 2 --form sparse --density 0.5", "--form does not apply"),
        ("--lora 2 --dtype bfloat16", "--dtype does not apply"),
        ("--lora 2 --shard-size 1MB", "--shard-size does not apply"),
    ],
)
def test_extract_refuses_options_that_would_be_ignored(folder: Path, command: Command, words: str, said: str) -> None:
    ran = command("extract", "base", "image", "--out", "vector", *words.split())
    assert (ran.code, ran.out) == (2, "") and said in ran.err
    assert not (folder / "vector").exists()


# --- options that other options leave without effect -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run merge.yaml --from rehearse", "the recipe has no stage 'rehearse'\n    it has: fuse"),
        ("run merge.yaml --until specialize", "the recipe has no stage 'specialize'"),
        ("diagnose-drift --fused base --specialist image --base base --trained-on x.jsonl", "--trained-on: a forecast"),
        ("diagnose-drift --fused base --specialist image --base base --limit 0.2 --batch-size 2",
         "--limit, --batch-size: a forecast from the weights alone runs no model"),
        ("diagnose-drift --fused base --specialist image --base base --query-prompt q", "--query-prompt: a forecast"),
        ("fuse merge.yaml --sweep scale=0.5,1 --fresh", "--sweep without --keep best writes no model: --fresh"),
        ("fuse merge.yaml --sweep scale=0.5,1 --on ray --out other", "writes no model: --out, --on"),
        ("fuse merge.yaml --sweep scale=0.5,1 --no-resume --dry-run", "writes no model: --no-resume, --dry-run"),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(folder: Path, command: Command, words: str, said: str) -> None:
    before = sorted(folder.iterdir())
    ran = command(*words.split())
    assert (ran.code, ran.out) == (2, "") and said in ran.err
    assert sorted(folder.iterdir()) == before


def test_a_method_that_the_record_does_not_name_is_refused(folder: Path, command: Command) -> None:
    assert command("fuse", "merge.yaml").code == 0
    ran = command("verify", "out", "--method", "mine.py:mean")
    assert ran.code == 2 and "'mine.py:mean': the recorded recipe does not use this code" in ran.err
    command("extract", "base", "image", "--out", "vector")
    for words in (("--method", "mine.py:mean"), ("--recipe-folder", ".")):
        ran = command("verify", "vector", *words)
        assert ran.code == 2 and "nothing is merged again" in ran.err


# --- methods, schema ----------------------------------------------------------------------------------------------


def test_methods(command: Command) -> None:
    listed = rows(command("methods").out)
    assert listed[0] == ["method", "alias", "what it does", "source"]
    assert [row[0] for row in listed[1:]] == [method.name for method in all_methods()]
    one = command("methods", "ties").out
    assert one.startswith("ties: Trim small entries") and "arXiv 2306.01708" in one
    assert "\ndensity\t" in one and "\t0.2\t" in one
    data = json.loads(command("methods", "sum", "--json").out)
    (data,) = data["methods"]
    assert data["name"] == "task_arithmetic" and data["aliases"] == ["sum"]
    assert len(json.loads(command("methods", "--json").out)["methods"]) == len(all_methods())
    wrong = command("methods", "tie")
    assert (wrong.code, wrong.out) == (2, "") and "did you mean 'ties'?" in wrong.err


def test_schema(folder: Path, command: Command) -> None:
    schema = json.loads(command("schema").out)
    jsonschema.validate(yaml.safe_load((folder / "merge.yaml").read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"bas": "x"}, schema)
    ran = command("schema", "--out", "taskmerge.schema.json")
    assert (ran.code, ran.out) == (0, "")
    assert json.loads((folder / "taskmerge.schema.json").read_text()) == schema


# --- every command ------------------------------------------------------------------------------------------------

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_page_of_commands_is_up_to_date() -> None:
    pytest.importorskip("typer", "0.28", reason="earlier ones write help otherwise")
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert text == page(), "python -m taskmerge.cli.docs > docs/commands.md"
    assert re.findall(r"^## (\S+)$", text, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_refuses_what_it_does_not_know(name: str, command: Command) -> None:
    helped = command(name, "--help")
    assert (helped.code, helped.err) == (0, "") and f"taskmerge {name}" in helped.out.replace("\n", " ")
    options = get_command(app).commands[name].params  # type: ignore[attr-defined]
    assert all(getattr(option, "help", None) for option in options), "every argument and option says what it is"
    wrong = command(name, "--no-such-option")
    assert (wrong.code, wrong.out) == (2, "") and "--no-such-option" in wrong.err


def test_no_such_command(command: Command) -> None:
    wrong = command("fues", "merge.yaml")
    assert (wrong.code, wrong.out) == (2, "") and "fues" in wrong.err
    assert command().code == 2
    assert command("--version").out == f"{__version__}\n"


# --- as a process of its own --------------------------------------------------------------------------------------


def start(*words: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    script = "import sys; from taskmerge.cli import main; sys.argv[0] = 'taskmerge'; main()"
    environment = {**os.environ, "COLUMNS": "120", "TASKMERGE_THREADS": "2", **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", script, *words], cwd=cwd, env=environment, text=True, **pipes)


def test_the_installed_command_and_light_help(folder: Path) -> None:
    script = Path(sys.executable).parent / "taskmerge"
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, f"{__version__}\n")
    code = (
        "import sys; from taskmerge.cli import main; sys.argv = ['taskmerge', 'fuse', '--help']\n"
        "try: main()\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "--dry-run" in ran.stdout
    assert not [name for name in HEAVY if name in ran.stderr.split()]


def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(folder: Path) -> None:
    """Interrupted as soon as a second file is finished: by then the first is in the journal."""
    names = [f"model.layers.{i}.mlp.weight" for i in range(60)]
    for label in ("base", "image"):
        write_model(folder / label, {name: torch.randn(300, 300) for name in names})
    write_recipe(folder, base="base", specialists={"image": "image"}, merge={"method": "dare_ties"},
                 output={"path": "out", "shard_size": 300 * 300 * 4})  # fmt: skip
    process = start("fuse", "merge.yaml", cwd=folder)
    second = folder / ".out.partial" / "model-00002-of-00060.safetensors"
    while not second.exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert "interrupted; run the same command again to continue" in err and "Traceback" not in err
    assert not (folder / "out").exists()
    process = start("fuse", "merge.yaml", cwd=folder)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "out\n")
    assert "model-00001-of-00060.safetensors: reused from the interrupted run" in err


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    write_model(tmp_path / "many", {f"model.layers.{i}.weight": torch.ones(1) for i in range(5000)})
    process = start("inspect", "many", "--json", cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) != 0
    assert "Traceback" not in err and "Exception ignored" not in err


@pytest.mark.parametrize("no_color", [True, False])
def test_tables_are_drawn_on_a_terminal(folder: Path, no_color: bool) -> None:
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_color else {})}
    process = start("inspect", "audio", cwd=folder, stdout=theirs, env=env)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal ends with the process
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(timeout=120) == 0
    if process.stderr:
        process.stderr.close()
    text = shown.decode()
    assert "┃" in text and "audio_projector" in text and "\t" not in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text) or not no_color
