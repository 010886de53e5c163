"""What stands beside weights survives whatever wraps them; foreign objects are taken as weights.

Wrappers are found, not listed: a new subclass of `StateDict` or field of `Beside`, fails here until somebody says
what becomes of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import taskmerge
from taskmerge import Checkpoint, fuse
from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.lineage.adapters import adapted
from taskmerge.checkpoints.lineage.overlay import overlaid
from taskmerge.checkpoints.lineage.stacking import StackedStateDict
from taskmerge.checkpoints.lineage.token_rows import MatchedTokens
from taskmerge.checkpoints.lineage.tokenizers import Rows
from taskmerge.checkpoints.live.values import WithLiveValues
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.repacking import Repacked, Unpacked
from taskmerge.checkpoints.soups import Averaged
from taskmerge.checkpoints.state_dict import Adopted, Beside, StateDict, adopted
from taskmerge.checkpoints.views import ViewedStateDict, whole

NAME = "model.layers.0.mlp.up_proj.weight"
TABLE = "model.embed_tokens.weight"


@pytest.fixture
def source(tmp_path: Path) -> MemoryStateDict:
    """Weights with something of their own in every field of `Beside`."""
    file = tmp_path / "model.safetensors"
    save_file({NAME: torch.ones(2, 2)}, str(file))
    told: dict[str, Any] = {
        "config": {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}, "dtype": "float16"},
        "folder": tmp_path,
        "module_folders": {"": "0_Transformer", "2_Dense": "2_Dense"},
        "own_tokenizer": tmp_path / "tokenizer",
        "prompts": {"prompts": {"query": "find: "}},
        "commit": "abc",
        "files": {"model.safetensors": WeightFile("model.safetensors", file)},
        "output_dtype": "bfloat16",
        "notes": ("the model is taken from ['state_dict']",),
    }
    assert set(told) == {field.name for field in fields(Beside)}, "say here what the new field holds"
    weights = MemoryStateDict({
        NAME: torch.ones(2, 2).to(torch.float8_e4m3fn), f"{NAME}_scale": torch.ones(()), TABLE: torch.ones(3, 2),
    })  # fmt: skip
    weights.beside = Beside(**told)
    return weights


def adapter(folder: Path) -> Path:
    folder.mkdir()
    text = '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["up_proj"]}'
    (folder / "adapter_config.json").write_text(text)
    stem = f"base_model.model.{NAME.removesuffix('.weight')}"
    factors = {f"{stem}.lora_A.weight": torch.ones(1, 2), f"{stem}.lora_B.weight": torch.ones(2, 1)}
    save_file(factors, str(folder / "adapter_model.safetensors"))
    return folder


def projector(path: Path) -> Path:
    save_file({TABLE: torch.zeros(3, 2)}, str(path))
    return path


def matched(source: StateDict, tmp_path: Path) -> StateDict:
    rows = Rows(3, {"base": np.arange(3)}, {}, tmp_path)
    return MatchedTokens("base", {"base": source}, {TABLE}, rows, "base", source.config)


def moved(source: StateDict, tmp_path: Path) -> StateDict:
    """The source, dequantised as algebra does, plus something."""
    model = Checkpoint(dequantized(source))
    return (model + (Checkpoint.open({name: model[name] + 1 for name in model.tensors}) - model)).underlying


def fused(source: StateDict, tmp_path: Path) -> StateDict:
    plain = dequantized(source)
    model = Checkpoint(plain)
    return fuse(model, {"other": {name: model[name] for name in model.tensors}}).underlying


# Wrapper -> how it is made over a source, and the fields that it changes on purpose.
WRAPPERS: dict[str, tuple[Callable[[StateDict, Path], StateDict], set[str]]] = {
    "ViewedStateDict": (lambda w, _: ViewedStateDict(w, {n: whole(i, n) for n, i in w.tensors.items()}), set()),
    "Dequantized": (lambda w, _: dequantized(w), {"config", "output_dtype"}),
    "MatchedTokens": (matched, set()),
    "AdaptedStateDict": (
        lambda w, path: adapted(replace_beside(dequantized(w), w.beside), adapter(path / "lora")),
        {"files"},
    ),
    "Overlaid": (lambda w, path: overlaid(w, [projector(path / "projector.safetensors")]), {"files", "notes"}),
    "StackedStateDict": (lambda w, _: StackedStateDict(w, {n: (w, n) for n in w.tensors}, w.config), set()),
    "Averaged": (lambda w, _: Averaged([w, w], (0.5, 0.5), "a soup"), {"files", "notes"}),
    "WithLiveValues": (lambda w, _: WithLiveValues(w, MemoryStateDict({})), set()),
    "Unpacked": (lambda w, _: Unpacked(w, {}), {"config"}),  # which no longer says that numbers are in few bits
    "Repacked": (lambda w, _: Repacked(w, Unpacked(w, {})), set()),
    "FusedStateDict (of the algebra)": (moved, {"config", "output_dtype", "files", "commit", "notes"}),
    # one commit, one set of files and one tokenizer say nothing of what several models were merged into
    "FusedStateDict": (fused, {"config", "output_dtype", "files", "commit", "notes"}),
}
# Not made from one other `StateDict`: they are where what stands beside begins.
BEGINNINGS = {
    *("StoredStateDict", "MemoryStateDict", "Adopted", "Outline", "CompressedDeltas", "StoredDeltas"),
    *("_Deltas", "Trimmed", "_Whole", "_Nothing"),  # a task vector's, beside which only a config stands
}


def replace_beside(weights: StateDict, beside: Beside) -> StateDict:
    weights.beside = beside
    return weights


def every_class() -> set[str]:
    for module in pkgutil.walk_packages(taskmerge.__path__, "taskmerge."):
        if ".checkpoints" in module.name or ".merging" in module.name:
            importlib.import_module(module.name)
    found: set[str] = set()
    left = list(StateDict.__subclasses__())
    while left:
        cls = left.pop()
        left += cls.__subclasses__()
        if cls.__module__.startswith("taskmerge."):
            found.add(cls.__name__)
    return found


def test_no_class_is_forgotten() -> None:
    assert every_class() == {wrapper.partition(" ")[0] for wrapper in WRAPPERS} | BEGINNINGS


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("field", [field.name for field in fields(Beside)])
def test_what_stands_beside_survives(wrapper: str, field: str, source: MemoryStateDict, tmp_path: Path) -> None:
    make, changed = WRAPPERS[wrapper]
    (tmp_path / "tokenizer").mkdir()
    wrapped = make(source, tmp_path)
    assert type(wrapped).__name__ == wrapper.partition(" ")[0]
    if field not in changed:
        assert getattr(wrapped.beside, field) == getattr(source.beside, field)


def test_what_changes_is_what_must(source: MemoryStateDict, tmp_path: Path) -> None:
    plain = dequantized(source)
    assert plain.config == {"model_type": "llama", "dtype": "float16"}
    assert plain.beside.output_dtype == "float16"
    over = adapted(plain, adapter(tmp_path / "lora"))
    assert set(over.beside.files) == {"model.safetensors", "adapter/adapter_model.safetensors"}
    assert moved(source, tmp_path).beside.files == {}  # the files do not say what was added


class Foreign:
    """Another library's object: the four members that are asked for, and no more."""

    label = "theirs"

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.config = {"model_type": "llama"}
        self._inner = MemoryStateDict(tensors)
        self.tensors = self._inner.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._inner.read(name, start, stop)


def test_a_foreign_object_is_taken_as_weights(tmp_path: Path) -> None:
    theirs = Foreign({"a": np.arange(3.0)})
    model = Checkpoint.open(theirs)
    assert isinstance(model.underlying, Adopted)
    assert (model.label, model.config, model.underlying.beside.folder) == ("theirs", {"model_type": "llama"}, None)
    saved = open_stored(model.save(tmp_path / "saved", dtype="bfloat16"))
    assert (saved.config["model_type"], saved.tensors["a"].dtype) == ("llama", "BF16")
    merged = fuse(theirs, {"x": Foreign({"a": np.arange(3.0) + 2})}, weights=0.5)
    np.testing.assert_array_equal(merged["a"], np.arange(3.0) + 1)


def test_weights_are_not_wrapped_twice() -> None:
    weights = MemoryStateDict({"a": np.ones(1)})
    assert adopted(weights) is weights


def test_the_tokenizer_lies_with_the_transformer_unless_it_has_a_folder_of_its_own(tmp_path: Path) -> None:
    beside = Beside(folder=tmp_path, module_folders={"": "0_Transformer"})
    assert beside.tokenizer_folder == tmp_path / "0_Transformer"
    assert replace(beside, own_tokenizer=tmp_path / "x").tokenizer_folder == tmp_path / "x"
    assert Beside().tokenizer_folder is None
