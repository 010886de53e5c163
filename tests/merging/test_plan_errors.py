"""Inputs that cannot be merged: what is wrong, where, what to do next; nothing is written. Each through the command."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import Tensors, digests, random_model, read_model, same_bits, write_model, write_recipe

from taskmerge import fuse, recipes
from taskmerge.errors import CheckpointError, MergeError, OutputError
from taskmerge.merging import execute, plan

PROJ, CONV, NORM = "model.layers.0.proj.weight", "model.layers.1.conv.weight", "model.layers.1.norm.weight"
Change = Callable[[dict[str, Tensors]], None]


@dataclass
class Case:
    """One way inputs may not fit. change: what is done to sound models; recipe: what is said besides."""

    change: Change
    says: tuple[str, ...]
    recipe: dict[str, Any]
    code: int = 1


def sound() -> dict[str, Tensors]:
    base = random_model(0)
    return {"base": base, "image": random_model(1, near=base), "audio": random_model(2, near=base)}


def case(*says: str, code: int = 1, **recipe: Any) -> Callable[[Change], Case]:
    return lambda change: Case(change, says, recipe, code)


@case(f"image (image) lacks the base's tensor '{PROJ}'", "keep: base}")
def lacks_a_base_tensor(models: dict[str, Tensors]) -> None:
    del models["image"][PROJ]


@case(
    f"'{PROJ}' is [5, 3] in the base (",
    "and [3, 5] in image (",
    "check that both were trained from the same model; a rule keeps one side",
)
def shapes_differ(models: dict[str, Tensors]) -> None:
    models["image"][PROJ] = models["image"][PROJ].T.contiguous()


@case("2 problems", f"'{PROJ}' is [5, 3]", f"lacks the base's tensor '{CONV}'")
def two_problems_are_told_at_once(models: dict[str, Tensors]) -> None:
    models["image"][PROJ] = torch.zeros(5, 4)
    del models["audio"][CONV]


@case(f"'{PROJ}' is F32 in the base and I64 in audio")
def a_float_meets_an_integer(models: dict[str, Tensors]) -> None:
    models["audio"][PROJ] = torch.ones(5, 3, dtype=torch.int64)


@case(
    f"tensor '{NORM}': NaN or infinite values in image",
    f"repair the input, keep the tensor (rules: - {{match: '{NORM}'",
)
def nan_in_a_specialist(models: dict[str, Tensors]) -> None:
    models["image"][NORM][5] = float("nan")


@case(f"tensor '{NORM}': NaN or infinite values in base, audio")
def nan_in_the_base_and_a_specialist(models: dict[str, Tensors]) -> None:
    models["base"][NORM][5] = float("nan")
    models["audio"][NORM][6] = float("nan")


@case(f"tensor '{NORM}': NaN or infinite values in image")
def infinite_in_one_specialist_only(models: dict[str, Tensors]) -> None:
    models["image"][NORM][0] = float("inf")


@case("tensor 'audio_projector.weight': NaN or infinite values in audio", "keep: audio}")
def nan_in_a_grafted_module(models: dict[str, Tensors]) -> None:
    models["audio"]["audio_projector.weight"] = torch.tensor([[1.0, float("nan")]])


@case(
    f"tensor '{NORM}': NaN or infinite values in the result: it overflows the output dtype",
    "choose a wider output dtype",
    output={"dtype": "float16"},
)
def the_result_overflows(models: dict[str, Tensors]) -> None:
    for held in models.values():
        held[NORM] = held[NORM] + 1e5


@case(
    "NaN or infinite values in the result: it overflows the output dtype",
    output={"dtype": "float16"},
    merge={"rules": [{"match": NORM, "keep": "base"}]},
)
def a_kept_tensor_overflows(models: dict[str, Tensors]) -> None:
    for held in models.values():
        held[NORM] = held[NORM] + 1e5


@case(
    "the I64 tensor 'model.position_ids' differs between the base and audio",
    "choose which one to keep: rules: - {match:",
)
def integers_disagree(models: dict[str, Tensors]) -> None:
    for held in models.values():
        held["model.position_ids"] = torch.arange(9)
    models["audio"]["model.position_ids"] = torch.arange(1, 10)


@case("the BOOL tensor 'model.mask' differs between the base and image")
def booleans_disagree(models: dict[str, Tensors]) -> None:
    for held in models.values():
        held["model.mask"] = torch.tensor([True, False])
    models["image"]["model.mask"] = torch.tensor([True, True])


@case(
    "merge.yaml:",
    "rule: '*.proj.wieght' matches no tensor",
    "did you mean",
    code=2,
    merge={"rules": [{"match": "*.proj.wieght", "keep": "base"}]},
)
def a_rule_that_names_nothing(models: dict[str, Tensors]) -> None:
    pass


@case("copy: audio: 'audio_encodr' matches no tensor of audio", code=2, copy={"audio": ["audio_encodr"]})
def a_copy_that_names_nothing(models: dict[str, Tensors]) -> None:
    models["audio"]["audio_tower.layers.0.weight"] = torch.ones(2, 2)


@case(
    "takes 'model.extra.weight' from image, which has no such tensor",
    merge={"rules": [{"match": "model.extra.*", "keep": "image"}]},
)
def a_rule_takes_what_is_not_there(models: dict[str, Tensors]) -> None:
    models["audio"]["model.extra.weight"] = torch.ones(2, 2)


@case("components: audio_projector: 'nowhere.*' matches no tensor", components={"audio_projector": ["nowhere.*"]})
def a_component_that_matches_nothing(models: dict[str, Tensors]) -> None:
    pass


@case(
    "merge.yaml:5: the weights (1, -1) sum to 0, so they cannot be normalised",
    "change a weight, or set normalize: false",
    code=2,
    merge={"method": "linear", "weight": {"image": 1.0, "audio": -1.0}},
)
def weights_that_cancel(models: dict[str, Tensors]) -> None:
    pass


CASES = {name: value for name, value in globals().items() if isinstance(value, Case)}


def prepare(folder: Path, change: Change, recipe: dict[str, Any]) -> Path:
    models = sound()
    change(models)
    for label, tensors in models.items():
        write_model(folder / label, tensors)
    said: dict[str, Any] = {"base": "base", "specialists": {"image": "image", "audio": "audio"}, **recipe}
    said["output"] = {"path": "results/out", "shard_size": 300, **recipe.get("output", {})}
    return write_recipe(folder, **said)


@pytest.mark.parametrize("name", CASES)
def test_the_message_says_what_where_and_what_next(name: str, tmp_path: Path, command: Callable[..., Any]) -> None:
    case = CASES[name]
    recipe = prepare(tmp_path, case.change, case.recipe)
    before = digests(tmp_path)
    ran = command("fuse", recipe)
    assert ran.code == case.code, ran.err
    assert ran.out == ""
    for words in case.says:
        assert words in ran.err
    assert "Traceback" not in ran.err
    assert digests(tmp_path) == before
    assert not (tmp_path / "results").exists()


# --- what does not stand in the table -----------------------------------------------------------------------------


def test_every_missing_input_is_told_at_once(tmp_path: Path, command: Callable[..., Any]) -> None:
    recipe = prepare(tmp_path, lambda models: None, {})
    shutil.rmtree(tmp_path / "image")
    (tmp_path / "audio" / "model.safetensors").unlink()
    (tmp_path / "audio" / "pytorch_model.bin").write_bytes(b"")
    ran = command("fuse", recipe)
    assert ran.code == 2 and "2 problems" in ran.err
    assert f"{recipe}:3: image: there is no file or folder 'image', and it is not a hub id" in ran.err
    assert "check the path; relative paths are looked up in the recipe's folder, then in the current one" in ran.err
    assert f"{recipe}:4: audio: there are no readable weights in this folder ({tmp_path / 'audio'})" in ran.err
    assert "only 'pytorch_model.bin' is present: save only its tensors" in ran.err
    assert not (tmp_path / "results").exists()


def test_a_path_that_could_be_a_hub_id_is_told_as_both(tmp_path: Path, command: Callable[..., Any]) -> None:
    recipe = prepare(tmp_path, lambda models: None, {"base": "models/bse"})
    ran = command("fuse", recipe)
    assert ran.code == 2
    assert "base: there is no file or folder 'models/bse', and it" in ran.err and "from the hub" in ran.err


def test_a_missing_recipe(tmp_path: Path, command: Callable[..., Any]) -> None:
    ran = command("fuse", tmp_path / "merg.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "merg.yaml does not exist" in ran.err and "give the path of a recipe" in ran.err


def test_no_output_folder(tmp_path: Path, command: Callable[..., Any]) -> None:
    prepare(tmp_path, lambda models: None, {})
    recipe = write_recipe(tmp_path, base="base", specialists={"image": "image"})
    ran = command("fuse", recipe)
    assert ran.code == 2
    assert "no output folder" in ran.err and "give --out FOLDER, or output: {path: ...}" in ran.err


def test_a_broken_file_is_named(tmp_path: Path, command: Callable[..., Any]) -> None:
    recipe = prepare(tmp_path, lambda models: None, {})
    path = tmp_path / "image" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    ran = command("fuse", recipe)
    assert ran.code == 2
    assert "not a valid safetensors file: tensor" in ran.err and str(path) in ran.err
    assert "download or save it again" in ran.err


def test_two_inputs_of_other_lineages(tmp_path: Path) -> None:
    recipe = prepare(tmp_path, lambda models: None, {})
    write_model(tmp_path / "image", {f"encoder.stack.{i}.kernel": torch.ones(i + 1, 2) for i in range(4)})
    with pytest.raises(MergeError) as caught:
        plan(recipes.load(recipe))
    assert "image" in str(caught.value) and "encoder.stack.0.kernel" in str(caught.value)


OLD_POOLING = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("pooling", "words"),
    [
        ({"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True}, None),
        (OLD_POOLING, None),
        (
            {**OLD_POOLING, "pooling_mode_cls_token": True},
            "pooling_mode is ['cls', 'mean'] in image, 'mean' in the base",
        ),
        ({"embedding_dimension": 8, "pooling_mode": "cls"}, "pooling_mode is 'cls' in image, 'mean' in the base"),
        ({"embedding_dimension": 9, "pooling_mode": "mean"}, "embedding_dimension is 9 in image, 8 in the base"),
    ],
    ids=str,
)
def test_modules_must_work_alike_whatever_version_saved_them(tmp_path: Path, pooling: Any, words: str | None) -> None:
    recipe = prepare(tmp_path, lambda models: None, {})
    for label in ("base", "image", "audio"):
        (tmp_path / label / "1_Pooling").mkdir()
        rows = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
        (tmp_path / label / "modules.json").write_text(json.dumps(rows))
        settings = pooling if label == "image" else OLD_POOLING
        (tmp_path / label / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    if words is None:
        plan(recipes.load(recipe))
        return
    with pytest.raises(MergeError) as caught:
        plan(recipes.load(recipe))
    assert f"module 1 (Pooling): {words}" in str(caught.value) and str(tmp_path / "image") in str(caught.value)


# --- the disk -----------------------------------------------------------------------------------------------------


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load(prepare(tmp_path, lambda models: None, {}))
    before = digests(tmp_path)
    disk = SimpleNamespace(f_frsize=1, f_bavail=1000, f_files=0, f_favail=0)
    monkeypatch.setattr("taskmerge.checkpoints.output.writing.os.statvfs", lambda path: disk)
    with pytest.raises(OutputError) as caught:
        execute(plan(recipe), recipe, tmp_path / "results" / "out")
    problem = caught.value.problems[0]
    needed = int(problem.what.removeprefix("the output needs ").partition(" ")[0].replace(",", ""))
    assert problem.what == f"the output needs {needed:,} bytes, the disk has only 1,000 free"
    assert needed >= plan(recipe).bytes_written  # and its side files
    assert problem.place == str(tmp_path / "results" / "out")
    assert problem.next_move == "free space or choose another disk"
    assert digests(tmp_path) == before and not (tmp_path / "results").exists()


def test_no_room_for_so_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may be full of files while bytes are free; some file systems count none, and say 0 of 0."""
    recipe = recipes.load(prepare(tmp_path, lambda models: None, {}))
    before = digests(tmp_path)
    statvfs = "taskmerge.checkpoints.output.writing.os.statvfs"
    full = SimpleNamespace(f_frsize=1, f_bavail=10**12, f_files=1000, f_favail=7)
    monkeypatch.setattr(statvfs, lambda path: full)
    with pytest.raises(OutputError, match=r"needs \d+ files, the disk can hold only 7 more \(`df -i`\)") as caught:
        execute(plan(recipe), recipe, tmp_path / "results" / "out")
    assert caught.value.problems[0].next_move == "remove files or choose another disk"
    assert digests(tmp_path) == before and not (tmp_path / "results").exists()
    uncounted = SimpleNamespace(f_frsize=1, f_bavail=10**12, f_files=0, f_favail=0)
    monkeypatch.setattr(statvfs, lambda path: uncounted)
    execute(plan(recipe), recipe, tmp_path / "results" / "out")
    assert len(list((tmp_path / "results" / "out").iterdir())) <= 16 + len(plan(recipe).shards), "as many as were asked"


def test_the_disk_takes_no_more(tmp_path: Path) -> None:
    """The kernel refuses the last, large file; the finished ones stay, and the next run goes on from them."""

    def grow(models: dict[str, Tensors]) -> None:
        for held in models.values():
            held["model.layers.11.proj.weight"] = torch.ones(200, 200)

    recipe = recipes.load(prepare(tmp_path, grow, {}))
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            OutputError, match=r"(no disk space for [\d,]+ bytes|writing failed): .*File too large"
        ) as caught:
            execute(plan(recipe), recipe, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(out.parent / ".out.partial") in (caught.value.problems[0].place or "")
    assert caught.value.problems[0].next_move == (
        "the file system or `ulimit -f` does not allow such a large file: choose another place"
    )
    assert not out.exists()
    written = execute(plan(recipe), recipe, out)
    undisturbed = execute(plan(recipe), recipe, tmp_path / "other")
    assert written.sha256 == undisturbed.sha256
    assert len(written.resumed) == len(written.sha256) - 1 and undisturbed.resumed == ()


def test_an_output_below_a_file(tmp_path: Path) -> None:
    recipe = recipes.load(prepare(tmp_path, lambda models: None, {}))
    (tmp_path / "results").write_text("mine")
    with pytest.raises(OutputError, match="cannot be created: Not a directory") as caught:
        execute(plan(recipe), recipe, tmp_path / "results" / "out")
    assert caught.value.problems[0].next_move == "choose another output path"


def test_an_output_in_a_folder_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load(prepare(tmp_path, lambda models: None, {}))

    def mkdir(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot be created: Permission denied"):
        execute(plan(recipe), recipe, tmp_path / "results" / "out")
    assert not (tmp_path / "results").exists()


def test_an_input_that_changes_after_planning(tmp_path: Path) -> None:
    recipe = recipes.load(prepare(tmp_path, lambda models: None, {}))
    decided = plan(recipe)
    path = tmp_path / "image" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"was truncated while it was being read: 2,000 bytes are left of"):
        execute(decided, recipe, tmp_path / "results" / "out")
    assert not (tmp_path / "results").exists()


# --- what is allowed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_infinite_bounds_that_agree_are_copied(tmp_path: Path, method: str) -> None:
    models = sound()
    bounds = torch.tensor([-np.inf, np.inf, 0.5])
    for held in models.values():
        held["model.layers.0.input_max"] = bounds.clone()
    recipe = recipes.load(prepare(tmp_path, lambda held: held.update(models), {"merge": {"method": method}}))
    execute(plan(recipe), recipe, tmp_path / "out")
    assert same_bits(read_model(tmp_path / "out")["model.layers.0.input_max"], bounds)


def test_the_user_may_keep_a_tensor_that_holds_nan(tmp_path: Path) -> None:
    models = sound()
    models["base"][NORM][3] = float("nan")
    rules = {"merge": {"rules": [{"match": NORM, "keep": "base"}]}}
    recipe = recipes.load(prepare(tmp_path, lambda held: held.update(models), rules))
    execute(plan(recipe), recipe, tmp_path / "out")
    assert same_bits(read_model(tmp_path / "out")[NORM], models["base"][NORM])


def test_the_user_may_say_whose_integers_to_keep(tmp_path: Path) -> None:
    models = sound()
    for step, held in enumerate(models.values()):
        held["model.position_ids"] = torch.arange(5) + step
    rules = {"merge": {"rules": [{"match": "*.position_ids", "keep": "audio"}]}}
    recipe = recipes.load(prepare(tmp_path, lambda held: held.update(models), rules))
    execute(plan(recipe), recipe, tmp_path / "out")
    assert torch.equal(read_model(tmp_path / "out")["model.position_ids"], torch.arange(5) + 2)


def test_eight_bit_floats_are_refused_unless_they_are_kept() -> None:
    """Files of them may come with scales; tensors in memory never do."""
    models = sound()
    for held in models.values():
        held[PROJ] = held[PROJ].to(torch.float8_e4m3fn)
    specialists = {"image": models["image"], "audio": models["audio"]}
    with pytest.raises(MergeError) as caught:
        fuse(models["base"], specialists)
    (problem,) = caught.value.problems
    assert problem.what == f"{PROJ!r} is F8_E4M3: such tensors are not merged, because their scales are unknown"
    assert problem.next_move and problem.next_move.startswith(
        "dequantise the models first, or keep this tensor: rules: - {match"
    )
    kept = fuse(models["base"], specialists, rules=[{"match": PROJ, "keep": "image"}], dtype="bfloat16")
    assert same_bits(kept[PROJ], models["image"][PROJ])


def test_a_disk_that_fails_while_inputs_are_opened_is_not_the_recipes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is noted on the disk: a full one is told as a full disk, not at a line of the recipe."""
    for name in ("base", "image"):
        write_model(tmp_path / name, random_model(0))
    recipe = write_recipe(
        tmp_path,
        base="base",
        specialists={"image": {"model": "image", "weight": 1.0}},
        merge={"method": "task_arithmetic"},
        output={"path": "out"},
    )

    def full(*_: object, **__: object) -> None:
        raise OutputError("cannot be written: No space left on device", "out-report/fuse.json", "free disk space")

    monkeypatch.setattr("taskmerge.merging.inputs.open_stored", full)
    with pytest.raises(OutputError, match=r"^out-report/fuse\.json: cannot be written"):
        plan(recipes.load(recipe))
