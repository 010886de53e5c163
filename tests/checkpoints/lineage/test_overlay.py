"""A projector saved alone, and what LoRA runs save beside the adapter, over a model: against the tensors themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.errors import TaskmergeError
from taskmerge.merging import FusedStateDict, execute, plan

Tensors = dict[str, torch.Tensor]
PROJECTOR = "multi_modal_projector."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "base"
    return zoo.save(zoo.BY_NAME["LLaVA"].build(seed=0), folder)


def inside(base: Path) -> Tensors:
    """The base's projector by the names inside it, under whatever the file puts before."""
    return {name.partition(PROJECTOR)[2]: one for name, one in load_file(base / "model.safetensors").items()
            if PROJECTOR in name}  # fmt: skip


def numbered(name: str) -> str:
    return name.replace("linear_1", "0").replace("linear_2", "2")


NAMES: dict[str, tuple[Callable[[str], str], str]] = {
    "as transformers": (lambda name: PROJECTOR + name, ""),
    "bare": (lambda name: name, ""),
    "in a module": (lambda name: f"module.{PROJECTOR}{name}", ""),
    "LLaVA's own": (lambda name: f"model.mm_projector.{numbered(name)}", "paired by their order and shapes"),
    "a sequence": (numbered, "paired by their order and shapes"),
    "under peft": (lambda name: f"base_model.model.model.mm_projector.{numbered(name)}", "paired by their order"),
}


def trained(base: Path) -> Tensors:
    return {name: one + torch.randn(one.shape, generator=torch.Generator().manual_seed(5)) for name, one in
            inside(base).items()}  # fmt: skip


def recipe_of(folder: Path, row: dict[str, Any], base: Path) -> recipes.Recipe:
    said = {"base": str(base), "specialists": {"one": row}, "merge": {"method": "task_arithmetic"}}
    return recipes.from_dict(said, folder)


def check(decided: Any, base: Path, projector: Tensors, weight: float) -> None:
    fused, stored = FusedStateDict(decided), load_file(base / "model.safetensors")
    for name, value in stored.items():
        expected = value.double()
        if PROJECTOR in name:
            expected = expected + weight * (projector[name.partition(PROJECTOR)[2]].double() - expected)
        np.testing.assert_allclose(
            fused.read(name), expected.float().numpy().reshape(-1), rtol=2e-7, atol=1e-9, err_msg=name
        )
    assert set(fused.tensors) == set(stored)


@pytest.mark.parametrize("how", ["pt", "wrapped", "bin", "safetensors", "folder"])
@pytest.mark.parametrize("case", NAMES)
def test_a_projector_alone_is_a_specialist(base: Path, tmp_path: Path, case: str, how: str) -> None:
    rename, said = NAMES[case]
    projector = trained(base)
    file = {rename(name): one for name, one in projector.items()}
    also = {"pt": "projector.pt", "wrapped": "last.ckpt", "bin": "mm_projector.bin"}.get(how, "projector.safetensors")
    if how == "safetensors":
        save_file(file, tmp_path / also)
    elif how == "folder":
        also = "stage1"
        (tmp_path / also).mkdir()
        torch.save(file, tmp_path / also / "mm_projector.bin")
    else:
        torch.save({"state_dict": file} if how == "wrapped" else file, tmp_path / also)
    decided = plan(recipe_of(tmp_path, {"model": "base", "also": also, "weight": 0.5}, base))
    check(decided, base, projector, 0.5)
    notes = " ".join(decided.warnings)
    assert f"{also}: 4 tensors replace the model's" in notes and said in notes


def test_over_another_model_and_several_files(base: Path, tmp_path: Path) -> None:
    other = zoo.perturb(zoo.BY_NAME["LLaVA"].build(seed=0), 3)
    zoo.save(other, tmp_path / "other")
    projector = trained(base)
    one = {name: value for name, value in projector.items() if name.startswith("linear_1")}
    torch.save({f"{PROJECTOR}{name}": value for name, value in one.items()}, tmp_path / "one.pt")
    recipe = recipe_of(tmp_path, {"model": "other", "also": ["one.pt"]}, base)
    execute(plan(recipe), recipe, tmp_path / "out")
    out, whole = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "other" / "model.safetensors")
    for name, value in whole.items():
        expected = one.get(name.partition(PROJECTOR)[2], value) if PROJECTOR in name else value
        torch.testing.assert_close(out[name], expected, rtol=2e-7, atol=1e-8)
    record = json.loads((tmp_path / "out" / "taskmerge.json").read_text())
    assert "also/one.pt" in record["inputs"]["one"]["files"]


def lora(base: Path, folder: Path) -> Path:
    import peft

    model: Any = peft.get_peft_model(
        zoo.BY_NAME["LLaVA"].build(seed=0), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(folder)
    model.merge_and_unload().save_pretrained(folder.parent / "merged")
    return folder


@pytest.mark.parametrize("with_config", [False, True], ids=["adapter alone", "config.json beside it"])
@pytest.mark.parametrize("row", [{"model": "lora"}, {"model": "base", "adapter": "lora"}], ids=["model", "adapter"])
def test_what_was_trained_beside_an_adapter_is_found(
    base: Path, tmp_path: Path, row: dict[str, Any], with_config: bool
) -> None:
    folder, projector = lora(base, tmp_path / "lora"), trained(base)
    names = {f"base_model.model.model.mm_projector.{numbered(name)}": one for name, one in projector.items()}
    torch.save(names, folder / "non_lora_trainables.bin")
    if with_config:
        (folder / "config.json").write_text((base / "config.json").read_text())
    decided = plan(recipe_of(tmp_path, row, base))
    fused, merged = FusedStateDict(decided), open_stored(tmp_path / "merged")
    for name in merged.tensors:
        expected = merged.read(name)
        if PROJECTOR in name:
            expected = projector[name.partition(PROJECTOR)[2]].numpy().reshape(-1)
        np.testing.assert_allclose(fused.read(name), expected, rtol=2e-5, atol=2e-6, err_msg=name)
    assert "non_lora_trainables.bin: 4 tensors replace the model's" in " ".join(decided.warnings)


def test_a_tower_that_the_base_lacks_is_brought(base: Path, tmp_path: Path) -> None:
    torch.save({"audio_projector.linear.weight": torch.ones(4, 3)}, tmp_path / "audio.pt")
    decided = plan(recipe_of(tmp_path, {"model": "base", "also": "audio.pt"}, base))
    step = next(step for step in decided.steps if step.info.name.endswith("audio_projector.linear.weight"))
    assert step.action == "copy" and "1 new" in " ".join(decided.warnings)


REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "another width": ({f"{PROJECTOR}linear_1.weight": torch.ones(3, 3)}, "use a file that belongs to this model"),
    "names that say nothing": ({"a.weight": torch.ones(3, 3), "b.weight": torch.ones(5)}, "cannot be matched"),
    "nothing": ({}, "contains no"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused(base: Path, tmp_path: Path, case: str) -> None:
    tensors, words = REFUSED[case]
    torch.save(tensors, tmp_path / "p.pt")
    with pytest.raises(TaskmergeError) as caught:
        plan(recipe_of(tmp_path, {"model": "base", "also": "p.pt"}, base))
    assert words in str(caught.value)


def test_an_empty_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    folder = lora(base, tmp_path / "lora")
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(TaskmergeError, match=r"contains no tensors: the adapter changes nothing\s.*\s*save it again"):
        plan(recipe_of(tmp_path, {"model": "lora"}, base))


def test_factors_that_were_not_gathered_are_refused(base: Path, tmp_path: Path) -> None:
    folder = lora(base, tmp_path / "lora")
    empty = {name: torch.empty(0) for name in load_file(folder / "adapter_model.safetensors")}
    save_file(empty, folder / "adapter_model.safetensors")
    with pytest.raises(TaskmergeError, match="ZeRO-3"):
        plan(recipe_of(tmp_path, {"model": "lora"}, base))
