"""Task-vector algebra: its laws, its statistics against NumPy, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import SHAPES, Tensors, digests, random_model, read_model, same_bits, write_model
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays
from kernel_oracles import rounded

from taskmerge import Checkpoint, TaskVector
from taskmerge.errors import CheckpointError, MergeError, TaskmergeError, UsageError
from taskmerge.merging.algebra import comparison, statistics
from taskmerge.merging.algebra import task_vector as module
from taskmerge.numbers.dtypes import BY_TORCH_NAME
from taskmerge.numbers.randomness import stream_key, uniform_bits

NAMES = ("model.layers.0.mlp.weight", "model.layers.1.mlp.weight", "model.norm.weight")
BASE = {"model.layers.0.mlp.weight": (3, 4), "model.layers.1.mlp.weight": (2, 0), "model.norm.weight": (5,)}


def whole_numbers(draw: Any) -> dict[str, np.ndarray]:
    """A model whose entries are small whole numbers, so that every sum is exact."""
    return {name: draw(arrays.arrays(np.float64, shape, elements=some.integers(-8, 8))) for name, shape in BASE.items()}


exact_models = some.composite(whole_numbers)()


def equal(one: TaskVector, two: TaskVector) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


# --- laws ---------------------------------------------------------------------------------------------------------


@given(base=exact_models, one=exact_models, two=exact_models, three=exact_models, factor=some.integers(-4, 4))
@settings(max_examples=40, deadline=None)
def test_task_vectors_are_a_vector_space(base: Any, one: Any, two: Any, three: Any, factor: int) -> None:
    start = Checkpoint.open(base)
    u, v, w = (Checkpoint.open(model) - start for model in (one, two, three))
    assert equal(u + v, v + u) and equal((u + v) + w, u + (v + w))
    assert equal(factor * (u + v), factor * u + v * factor)
    assert equal(u - v, u + -v) and equal(-u, -1.0 * u) and equal((4 * u) / 4, u)
    total: Any = sum([u, v, w])  # from the 0 that sum() starts with
    assert equal(total, u + v + w)
    assert all(not (u - u)[name].any() for name in u)
    for name in BASE:
        assert np.array_equal(u[name].numpy(), (one[name] - base[name]).astype(np.float32))
        moved = start + (factor * u + v)
        assert np.array_equal(
            moved[name].numpy(), base[name] + factor * (one[name] - base[name]) + two[name] - base[name]
        )
        assert np.array_equal((v + start)[name].numpy(), two[name])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_a_specialist_comes_back_bit_for_bit(dtype: str) -> None:
    base = Checkpoint.open(random_model(0, dtype))
    specialist = Checkpoint.open(random_model(1, dtype, near=random_model(0, dtype)))
    back = base + (specialist - base)
    for name in SHAPES:
        close = dtype == "F64" and torch.allclose(back[name], specialist[name], rtol=1e-15, atol=1e-17)
        assert close or same_bits(back[name], specialist[name])


def test_sums_are_rounded_once() -> None:
    """Three deltas far below half a unit of bf16 each move it together."""
    base = {"w": torch.ones(4, dtype=torch.bfloat16)}
    step = {"w": torch.full((4,), 1 + 2.0**-9 + 2.0**-11)}
    vector = Checkpoint.open(step) - Checkpoint.open(base)
    moved = Checkpoint.open(base) + (vector + vector + vector)
    want = (torch.ones(4).double() + 3 * (2.0**-9 + 2.0**-11)).to(torch.bfloat16)
    assert same_bits(moved["w"], want) and not torch.equal(moved["w"], base["w"])
    one_by_one = Checkpoint.open({"w": (Checkpoint.open(base) + vector)["w"]})
    assert torch.equal(one_by_one["w"], base["w"]), "a single one rounds away"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_moved_model_saved_in_another_format_is_rounded_once(tmp_path: Path, dtype: str) -> None:
    base = {"w": torch.full((1,), 1.0)}
    # Just above the middle of two bfloat16 (and of two float16) neighbours, by less than a float32 can tell.
    for step in (2.0**-8 + 2.0**-30, 2.0**-11 + 2.0**-30):
        vector = Checkpoint.open({"w": torch.full((1,), 1.0 + step, dtype=torch.float64)}) - Checkpoint.open(base)
        path = (Checkpoint.open(base) + vector).save(tmp_path / "out", dtype=dtype, fresh=True)
        want = rounded(1.0 + step, BY_TORCH_NAME[dtype].name)  # torch itself rounds twice here
        assert read_model(path)["w"].item() == want, step


# --- parts --------------------------------------------------------------------------------------------------------


def omni() -> tuple[Tensors, Tensors]:
    base = random_model(0) | {"model.embed_tokens.weight": torch.ones(6, 3), "lm_head.weight": torch.ones(6, 3)}
    audio = {name: tensor + 0.25 for name, tensor in base.items()}
    audio |= {"audio_tower.layers.0.weight": torch.ones(2, 2), "audio_projector.linear.weight": torch.ones(3, 2)}
    return base, audio


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (("embeddings",), {"model.embed_tokens.weight"}),
        (("head", "embeddings"), {"model.embed_tokens.weight", "lm_head.weight"}),
        (("model.layers.{1..10}.proj.weight",), {"model.layers.2.proj.weight", "model.layers.10.proj.weight"}),
        (("backbone.layers.2.*",), {"model.layers.2.proj.weight"}),
        (("audio_projector",), {"audio_projector.linear.weight"}),
        (("*.conv.weight", "audio_encoder"), {"model.layers.1.conv.weight", "audio_tower.layers.0.weight"}),
    ],
    ids=lambda value: "+".join(sorted(value)),
)
def test_only_and_without_split_a_task_vector(patterns: tuple[str, ...], kept: set[str]) -> None:
    base, audio = omni()
    vector = Checkpoint.open(audio) - Checkpoint.open(base)
    part, rest = vector.only(*patterns), vector.without(*patterns)
    assert set(part.shapes) | set(part.own) == kept
    assert set(rest.shapes) | set(rest.own) == set(audio) - kept
    assert equal(part + rest, vector)
    moved = Checkpoint.open(base) + part
    for name, tensor in moved.state_dict().items():
        assert same_bits(tensor, audio[name] if name in kept else base[name])


def test_what_a_specialist_brings_is_copied_whatever_the_weight() -> None:
    base, audio = omni()
    vector = Checkpoint.open(audio) - Checkpoint.open(base)
    assert set(vector.own) == {"audio_tower.layers.0.weight", "audio_projector.linear.weight"}
    moved = Checkpoint.open(base) + 0.5 * vector
    assert same_bits(moved["audio_tower.layers.0.weight"], audio["audio_tower.layers.0.weight"])
    assert torch.equal(moved["lm_head.weight"], torch.full((6, 3), 1.125))


def test_heads_and_buffers_may_be_missing_and_integers_have_no_delta() -> None:
    base, audio = omni()
    base |= {"model.position_ids": torch.arange(3), "model.layers.0.inv_freq": torch.ones(2)}
    del audio["lm_head.weight"]
    vector = Checkpoint.open(audio) - Checkpoint.open(base)
    absent = {"lm_head.weight", "model.position_ids", "model.layers.0.inv_freq"}
    assert set(vector) == set(base) - absent
    moved = Checkpoint.open(base) + vector
    assert all(same_bits(moved[name], base[name]) for name in absent)


# --- statistics ---------------------------------------------------------------------------------------------------


def vectors(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, np.ndarray], list[TaskVector], list[np.ndarray]]:
    monkeypatch.setattr(module, "CHUNK", 13)
    base = {name: tensor.double().numpy() for name, tensor in random_model(0, "F64").items()}
    start = Checkpoint.open(base)
    near = [random_model(seed, "F64", near=random_model(0, "F64")) for seed in (1, 2)]
    made = [Checkpoint.open(model) - start for model in near]
    flat = [np.concatenate([(model[name].numpy() - base[name]).ravel() for name in base]) for model in near]
    return base, made, flat


def test_statistics_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (one, two), (a, b) = vectors(monkeypatch)
    assert one.norm() == pytest.approx(np.linalg.norm(a), rel=1e-13)
    assert math.hypot(*one.norms().values()) == pytest.approx(np.linalg.norm(a), rel=1e-13)
    name = "model.layers.1.conv.weight"
    assert one.norms()[name] == pytest.approx(float(np.linalg.norm(one[name].double())), rel=1e-6)
    assert one.cosine(two) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    assert one.cosine(-2 * one) == pytest.approx(-1, rel=1e-15)
    assert statistics.dot(one, two) == pytest.approx(a @ b, rel=1e-12)
    both = (a != 0) & (b != 0)
    assert 0 < both.sum() < len(a)
    assert one.sign_conflict(two) == float(np.mean(np.sign(a[both]) != np.sign(b[both])))
    assert (one.sign_conflict(one), one.sign_conflict(-one)) == (0, 1)
    nothing = 0.0 * one
    assert math.isnan(one.cosine(nothing)) and math.isnan(one.sign_conflict(nothing))


@given(
    values=arrays.arrays(np.float64, some.integers(1, 60), elements=some.floats(-9, 9, width=16)),
    share=some.floats(0, 1),
    size=some.integers(1, 70),
)
@settings(max_examples=150, deadline=None)
def test_the_least_entry_kept_is_exact(values: np.ndarray, share: float, size: int) -> None:
    vector = Checkpoint.open({"w": values}) - Checkpoint.open({"w": np.zeros(len(values))})
    rank = max(1, math.floor(share * len(values)))
    sizes = np.abs(values).astype(np.float32)
    want = np.where(sizes >= np.sort(sizes)[::-1][rank - 1], values, 0.0) if share else np.zeros(len(values))
    kept = vector.sparsify(share)
    found = [kept.read("w", start, min(start + size, len(values))) for start in range(0, len(values), size)]
    assert np.array_equal(np.concatenate(found), want)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_sparsify_by_magnitude_keeps_the_largest_and_all_ties(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (vector, _), _ = vectors(monkeypatch)
    thin = vector.sparsify(density)
    for name in vector:
        delta = vector[name].double().numpy().ravel()
        kept = thin[name].double().numpy().ravel()
        if delta.size == 0:
            continue
        sizes = np.abs(delta).astype(np.float32)
        least = np.sort(sizes)[::-1][max(1, math.floor(density * delta.size)) - 1] if density else np.inf
        assert np.array_equal(kept, np.where(sizes >= least, delta, 0.0)), name


def test_sparsify_at_random_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (vector, _), _ = vectors(monkeypatch)
    thin = vector.sparsify(0.3, "random", seed=4)
    for name in vector:
        bits = uniform_bits(stream_key(4, vector.label, name), 0, vector.count(name)).reshape(SHAPES[name])
        want = np.where(bits < math.floor(0.3 * 2**32), vector[name].double().numpy() / 0.3, 0.0)
        assert np.allclose(thin[name].double().numpy(), want, rtol=1e-6, atol=0)
    assert equal(thin, vector.sparsify(0.3, "random", seed=4))
    assert not equal(thin, vector.sparsify(0.3, "random", seed=5))


def test_comparing_task_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, (a, b) = vectors(monkeypatch)
    models = {name: random_model(seed, "F64", near=random_model(0, "F64")) for name, seed in (("x", 1), ("y", 2))}
    table = comparison.compare_task_vectors(base, models)
    whole = np.concatenate([tensor.ravel() for tensor in base.values()])
    assert table["norms"]["x"] == pytest.approx([np.linalg.norm(a), np.linalg.norm(a) / np.linalg.norm(whole)])
    assert (
        table["cosine"]["x"]["y"]
        == table["cosine"]["y"]["x"]
        == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    )
    assert table["cosine"]["x"]["x"] == pytest.approx(1) and table["sign_conflict"]["y"]["y"] == 0
    layers = {name.split(".")[2] for name in SHAPES}
    assert set(table["by_layer"]) == {f"backbone.{layer}" for layer in layers}
    norms = [row["y"] for row in table["by_layer"].values()]
    assert math.hypot(*norms) == pytest.approx(np.linalg.norm(b))
    with pytest.raises(UsageError, match="nothing to compare"):
        comparison.compare_task_vectors(base, {})


def test_differences_are_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "CHUNK", 5)
    one = {
        "a": torch.zeros(12),
        "b": torch.tensor([float("nan")]),
        "c": torch.ones(2),
        "d": torch.arange(3),
        "e": torch.ones(0),
    }
    two = {**one, "a": one["a"].clone(), "c": torch.ones(3), "d": torch.tensor([0, 1, 5]), "f": torch.ones(1)}
    two["a"][3], two["a"][11] = -0.0, 0.5
    del two["e"]
    rows = {row["tensor"]: row for row in comparison.differences(one, two)}
    assert rows["a"] == {"tensor": "a", "difference": "values", "entries": 2, "largest": 0.5}
    assert rows["c"]["difference"] == "F32 [2] and F32 [3]"
    assert (rows["d"]["entries"], rows["d"]["largest"]) == (1, None)
    assert (rows["e"]["difference"], rows["f"]["difference"]) == ("only in the first", "only in the second")
    assert set(rows) == {"a", "c", "d", "e", "f"}
    assert comparison.differences(one, one) == []


# --- on disk ------------------------------------------------------------------------------------------------------


def test_a_task_vector_is_saved_and_loaded(tmp_path: Path) -> None:
    base, audio = omni()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "audio", audio, {"model_type": "llama", "audio_config": {}})
    start = Checkpoint.open(tmp_path / "base")
    vector = Checkpoint.open(tmp_path / "audio") - start
    path = vector.save(tmp_path / "vector", dtype="float64")
    loaded = TaskVector.load(path, start)
    assert equal(loaded, vector) and set(loaded.own) == set(vector.own)
    direct, indirect = (start + vector).save(tmp_path / "direct"), (start + loaded).save(tmp_path / "indirect")
    apart = {"taskmerge.json"}  # it says what each was made from
    files = [
        {name: digest for name, digest in digests(path).items() if name not in apart} for path in (direct, indirect)
    ]
    assert files[0] == files[1]
    assert all(same_bits(tensor, audio[name]) for name, tensor in read_model(indirect).items())
    with pytest.raises(CheckpointError, match="a checkpoint, not a task vector") as caught:
        TaskVector.load(tmp_path / "base", start)
    assert caught.value.problems[0].next_move == "make a task vector of it: taskmerge extract BASE MODEL"


def test_a_task_vector_of_a_sentence_transformers_folder_keeps_every_module(tmp_path: Path) -> None:
    for label, step in (("base", 0.0), ("tuned", 0.5)):
        folder = write_model(tmp_path / label, {"encoder.layer.0.weight": torch.ones(2, 2) + step})
        write_model(folder / "2_Dense", {"linear.weight": torch.ones(3, 2) + step})
        (folder / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    base = Checkpoint.open(tmp_path / "base")
    vector = Checkpoint.open(tmp_path / "tuned") - base
    loaded = TaskVector.load(vector.save(tmp_path / "vector"), base)
    assert set(loaded) == {"encoder.layer.0.weight", "2_Dense/linear.weight"}
    saved = (base + loaded).save(tmp_path / "out")
    assert torch.equal(read_model(saved / "2_Dense")["linear.weight"], torch.full((3, 2), 1.5))


def test_a_narrow_task_vector_is_rounded_once(tmp_path: Path) -> None:
    base, audio = omni()
    vector = Checkpoint.open(audio) - Checkpoint.open(base)
    saved = read_model((0.1 * vector).save(tmp_path / "vector", dtype="bfloat16"))
    want = (0.1 * (audio["lm_head.weight"].double() - base["lm_head.weight"].double())).to(torch.bfloat16)
    assert same_bits(saved["lm_head.weight"], want)
    with pytest.raises(UsageError, match="unknown output dtype 'int8'"):
        vector.save(tmp_path / "other", dtype="int8")


# --- what is refused ----------------------------------------------------------------------------------------------


def small(label: str, **tensors: tuple[int, ...]) -> Checkpoint:
    return Checkpoint.open({f"model.{name}.weight": np.ones(shape) for name, shape in tensors.items()}, label=label)


A, B = small("A", w=(2,), v=(3,)), small("B", w=(2,), v=(3,))
VECTOR = B - A
OTHER_GRAFT = Checkpoint.open({**A.state_dict(), "audio_tower.weight": torch.zeros(2)}, label="G") - A
GRAFT = Checkpoint.open({**A.state_dict(), "audio_tower.weight": torch.ones(2)}, label="G") - A
REFUSED: dict[str, tuple[Callable[[], Any], type[TaskmergeError], str, str]] = {
    "model + model": (
        lambda: A + B,
        UsageError,
        "two models cannot be added: A + B",
        "subtract the base from each specialist first: base + (specialist - base)",
    ),
    "number * model": (lambda: 0.5 * A, UsageError, "a model times 0.5 is not a model", "scale task vectors:"),
    "model - task vector": (lambda: A - VECTOR, UsageError, "model - task vector is ambiguous", "model + (-1) * task_"),
    "an unknown tensor": (lambda: A["model.x.weight"], MergeError, "no tensor 'model.x.weight' in A", "did you mean"),
    "an unknown delta": (lambda: VECTOR["model.x.weight"], MergeError, "no delta 'model.x.weight' in B", "did you"),
    "a pattern for nothing": (lambda: VECTOR.only("bakbone"), UsageError, "only: 'bakbone' matches no", "'backbone'?"),
    "without nothing": (lambda: VECTOR.without("*.z"), UsageError, "without: '*.z' matches no tensor of B", ""),
    "a missing tensor": (
        lambda: small("C", w=(2,)) - A, MergeError, "C (C) lacks the base's tensor 'model.v.weight'", "trained from",
    ),
    "another shape": (
        lambda: small("C", w=(2,), v=(4,)) - A, MergeError,
        "'model.v.weight' is [3] in the base (A) and [4] in C (C)", "trained from the same model",
    ),
    "another kind": (
        lambda: Checkpoint.open({**B.state_dict(), "model.v.weight": torch.arange(3)}, label="C") - A,
        MergeError, "'model.v.weight' is F64 in the base and I64 in C", "",
    ),
    "a model of another shape": (
        lambda: small("C", w=(2,), v=(4,)) + VECTOR, MergeError,
        "'model.v.weight' is [4] in the base (C) and [3] in B (B)",
        "check that both were trained from the same model",
    ),
    "a model that lacks a tensor": (
        lambda: small("C", w=(2,)) + VECTOR, MergeError, "C lacks 'model.v.weight', which B changes", "without(",
    ),
    "the same graft twice": (
        lambda: GRAFT + OTHER_GRAFT, MergeError, "G and G (2) both have their own 'audio_tower.weight'",
        "without('audio_tower.weight')",
    ),
    "deltas of different shapes": (
        lambda: VECTOR + (small("C", w=(3,)) - small("D", w=(3,))), MergeError, "'model.w.weight' is [2] in", "",
    ),
    "nothing in common": (
        lambda: VECTOR.cosine(small("C", u=(3,)) - small("D", u=(3,))), MergeError, "B and C have no tensor in", "",
    ),
    "a density above one": (lambda: VECTOR.sparsify(1.5), UsageError, "density 1.5 is not a share", "from 0 to 1"),
    "a density of nothing": (lambda: VECTOR.sparsify(0, "random"), UsageError, "density 0 drops everything", "above 0"),
    "an unknown way": (lambda: VECTOR.sparsify(0.5, "top"), UsageError, "unknown way to sparsify 'top'", '"magnitude"'),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_and_what_was_meant(kind: str) -> None:
    action, error, what, next_move = REFUSED[kind]
    with pytest.raises(error) as caught:
        action()
    assert what in str(caught.value) and next_move in str(caught.value)


@pytest.mark.parametrize("other", ["text", None, [1], True], ids=str)
def test_python_refuses_the_rest(other: Any) -> None:
    for action in (lambda: A + other, lambda: A - other, lambda: VECTOR + other, lambda: VECTOR - other):
        with pytest.raises(TypeError):
            action()
    with pytest.raises(TypeError):
        VECTOR * other
