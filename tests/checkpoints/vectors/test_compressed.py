"""Task vectors as small files, and as adapters: sizes and errors as said, restored exactly, loaded by peft itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from adapter_cases import GPT2
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.vectors.compressed import CompressedDeltas, largest, low_rank_factors, restore
from taskmerge.errors import TaskmergeError
from taskmerge.merging.algebra import Checkpoint, TaskVector

FORMS: dict[str, dict[str, Any]] = {"sparse": {"density": 0.2}, "low_rank": {"rank": 3}, "sign": {}}


def approximated(form: str, delta: np.ndarray) -> np.ndarray:
    """The form's definition, whole-matrix NumPy."""
    matrix = delta.reshape(delta.shape[0], -1)
    if form == "sparse":
        kept = max(1, int(0.2 * matrix.size))
        order = np.argsort(-np.abs(matrix), axis=None, kind="stable")[:kept]
        out = np.zeros(matrix.size)
        out[order] = matrix.reshape(-1)[order].astype("f4")
    elif form == "low_rank":
        left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
        out = (left[:, :3] * sizes[:3]) @ right[:3]
    else:
        out = np.where(matrix >= 0, 1, -1) * np.abs(matrix).mean(axis=1, keepdims=True)
    return out.reshape(-1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return two(zoo.BY_NAME["Qwen3"], tmp_path_factory.mktemp("pair"))


def two(kind: zoo.Kind, root: Path) -> tuple[Path, Path]:
    """A base and a specialist."""
    return zoo.save(kind.build(), root / "base"), zoo.save(zoo.perturb(kind.build(), 1), root / "specialist")


@pytest.mark.parametrize("form", FORMS)
def test_files_give_back_their_form_with_the_error_they_state(
    pair: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    base, specialist = (Checkpoint.open(folder) for folder in pair)
    vector = specialist - base
    folder = vector.save(tmp_path / "vector", form=form, **FORMS[form])
    back = TaskVector.load(folder, base)
    report = json.loads((folder / "task_vector.json").read_text())["report"]
    lost = size = 0.0
    for name, shape in vector.shapes.items():
        delta, found = vector.read(name, 0, vector.count(name)), back.read(name, 0, vector.count(name))
        if len(shape) >= 2:
            np.testing.assert_allclose(
                found, approximated(form, delta.reshape(shape)), rtol=2e-5, atol=2e-7, err_msg=name
            )
        else:
            np.testing.assert_array_equal(found, delta.astype("f4"))
        own, total = np.square(found - delta).sum(), np.square(delta).sum()
        assert report["relative_errors"][name] == pytest.approx(np.sqrt(own / total), rel=1e-6, abs=1e-9)
        lost, size = lost + own, size + total
        start, stop = vector.count(name) // 3, vector.count(name) // 2 + 1
        np.testing.assert_array_equal(back.read(name, start, stop), found[start:stop])
    assert report["relative_error"] == pytest.approx(np.sqrt(lost / size), rel=1e-6)
    stored = open_stored(folder)
    assert report["bytes"] == sum(info.nbytes for info in stored.tensors.values()) < 0.45 * report["dense_bytes"]
    moved = base + 0.5 * back
    name = "model.layers.0.mlp.up_proj.weight"
    expected = base[name].double().numpy().reshape(-1) + 0.5 * back.read(name, 0, back.count(name))
    np.testing.assert_array_equal(moved[name].numpy().reshape(-1), expected.astype("f4"))


def test_full_rank_and_density_one_lose_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, specialist = (Checkpoint.open(folder) for folder in pair)
    vector = specialist - base
    forms: dict[Any, dict[str, Any]] = {"sparse": {"density": 1.0}, "low_rank": {"rank": 32}}
    for form, settings_ in forms.items():
        folder = vector.save(tmp_path / form, form=form, **settings_)
        assert json.loads((folder / "task_vector.json").read_text())["report"]["relative_error"] < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_kept_in_the_format_asked_for(pair: tuple[Path, Path], tmp_path: Path, form: str) -> None:
    base, specialist = (Checkpoint.open(folder) for folder in pair)
    vector = specialist - base
    wide, narrow = (vector.save(tmp_path / t, form=form, dtype=t, **FORMS[form]) for t in ("float32", "bfloat16"))
    full, half = Checkpoint.open(wide), Checkpoint.open(narrow)
    for name, info in full.tensors.items():
        if info.dtype == "F32":
            assert half[name].dtype == torch.bfloat16
            torch.testing.assert_close(half[name].float(), full[name], rtol=2**-8, atol=0)
        else:
            assert torch.equal(half[name], full[name])
    back = TaskVector.load(narrow, base)
    lost = {name: float((back[name] - vector[name]).norm() / vector[name].norm()) for name in vector}
    report = json.loads((narrow / "task_vector.json").read_text())["report"]
    assert report["relative_errors"] == pytest.approx(lost, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("form", "settings_"),
    [("sparse", {}), ("sparse", {"density": 0.0}), ("low_rank", {}), ("low_rank", {"rank": 0}), ("wavelet", {})],
)
def test_forms_without_what_they_need_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, form: str, settings_: dict[str, Any]
) -> None:
    base, specialist = (Checkpoint.open(folder) for folder in pair)
    with pytest.raises(TaskmergeError):
        (specialist - base).save(tmp_path / "vector", form=form, **settings_)
    assert not (tmp_path / "vector").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"d#indices": np.array([3, 2], "i4")},
        {"d#indices": np.array([1, 99], "i4")},
        {"d#indices": np.array([-1, 2], "i4")},
        {"d#indices": np.array([1], "i4")},
        {"d#values": np.zeros((2, 1), "f4")},
    ],
)
def test_pieces_that_do_not_fit_are_refused(change: dict[str, np.ndarray]) -> None:
    good = {"d#indices": np.array([1, 5], "i4"), "d#values": np.ones(2, "f4")}
    assert restore(MemoryStateDict(good), "sparse", {"d": (3, 4)})("d", 0, 12)[5] == 1
    with pytest.raises(TaskmergeError, match="the pieces of 'd'"):
        restore(MemoryStateDict(good | change), "sparse", {"d": (3, 4)})


@settings(max_examples=100, deadline=None)
@given(data=st.data(), form=st.sampled_from(list(FORMS)), rows=st.integers(1, 9), columns=st.integers(1, 40))
def test_any_delta_comes_back_as_its_form(data: Any, form: str, rows: int, columns: int) -> None:
    values = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=rows * columns, max_size=rows * columns)), "f8")
    shapes = {"d": (rows, columns)}
    made = CompressedDeltas(lambda _, start, stop: values[start:stop], shapes, form, **FORMS[form])  # type: ignore[arg-type]
    pieces = {name: made.read(name).reshape(info.shape) for name, info in made.tensors.items()}
    found = restore(MemoryStateDict(pieces), form, shapes)("d", 0, values.size)
    if "d" in pieces:
        np.testing.assert_array_equal(found, values)
    elif form != "low_rank":
        np.testing.assert_allclose(found, approximated(form, values.reshape(rows, columns)), rtol=1e-6)
    expected = np.linalg.norm(found - values) / (np.linalg.norm(values) or 1)
    assert made.report()["relative_error"] == pytest.approx(expected, abs=1e-9)


def test_the_randomised_factors_are_nearly_the_best() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((700, 40)) @ generator.standard_normal((40, 600)) + generator.standard_normal(
        (700, 600)
    )
    left, right = low_rank_factors(matrix, 16)
    sizes = np.linalg.svd(matrix, compute_uv=False)
    best = np.sqrt(np.square(sizes[16:]).sum())
    assert np.linalg.norm(matrix - left @ right) < 1.01 * best
    again = low_rank_factors(matrix, 16)
    np.testing.assert_array_equal(left, again[0])


def test_largest_takes_the_first_of_equals() -> None:
    np.testing.assert_array_equal(largest(np.array([1.0, -2, 2, 2, 0]), 2), [1, 2])


# ---------------------------------------------------------------------------------------------------- as adapters


@pytest.mark.parametrize("kind_name", ["Qwen3", "Qwen2", "BERT", "Whisper", "GPT-2", "Qwen2-Audio", "Qwen3-VL"])
def test_an_extracted_adapter_is_read_by_peft_and_by_us(kind_name: str, tmp_path: Path) -> None:
    import peft

    kind = GPT2 if kind_name == "GPT-2" else zoo.BY_NAME[kind_name]
    base, specialist = two(kind, tmp_path)
    models = [Checkpoint.open(folder) for folder in (base, specialist)]
    vector = models[1] - models[0]
    made = vector.save_lora(tmp_path / "adapter", 64)
    assert made.relative_error < 1e-6 and not made.left_out
    back = models[0] + TaskVector.load(tmp_path / "adapter", models[0])
    for name in vector:
        np.testing.assert_allclose(back[name].numpy(), models[1][name].numpy(), rtol=1e-4, atol=2e-6, err_msg=name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(kind.build(), tmp_path / "adapter").merge_and_unload()
    expected = zoo.perturb(kind.build(), 1).state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_the_error_of_a_small_rank_is_that_of_the_best_approximation(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, specialist = (Checkpoint.open(folder) for folder in pair)
    vector = specialist - base
    made = vector.save_lora(tmp_path / "adapter", 4)
    lost = size = 0.0
    for name, shape in vector.shapes.items():
        delta = vector.read(name, 0, vector.count(name)).reshape(shape)
        size += np.square(delta).sum()
        if len(shape) == 2:
            best = np.square(np.linalg.svd(delta, compute_uv=False)[4:]).sum()
            assert made.errors[name] == pytest.approx(np.sqrt(best / np.square(delta).sum()), rel=1e-3)
            lost += best
    assert made.relative_error == pytest.approx(np.sqrt(lost / size), rel=1e-3)
    again = TaskVector.load(tmp_path / "adapter", base)
    found = sum(np.square(again.read(n, 0, again.count(n)) - vector.read(n, 0, vector.count(n))).sum() for n in vector)
    assert np.sqrt(found / size) == pytest.approx(made.relative_error, rel=1e-3)


def test_packed_experts_are_left_out_by_name(tmp_path: Path) -> None:
    kind = zoo.BY_NAME["Qwen3-MoE"]
    base, specialist = two(kind, tmp_path)
    made = (Checkpoint.open(specialist) - Checkpoint.open(base)).save_lora(tmp_path / "adapter", 64)
    assert made.left_out and all(".experts." in name for name in made.left_out)
    assert made.relative_error > 0.1
