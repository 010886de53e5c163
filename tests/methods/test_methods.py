"""Every merge method against float64 NumPy and against the invariants of merging, from one table: a method is a row."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import method_oracles as oracles
import numpy as np
import pytest
import spectral_oracles as spectral
import torch
from kernel_oracles import fractions, rounded

from taskmerge.errors import MergeError, UsageError
from taskmerge.kernels import Measurement, Operand, combine, measure, measure_model
from taskmerge.kernels.program import KeepLargest
from taskmerge.methods import MergeMethod, all_methods, find_method
from taskmerge.methods.agreement import emr_masks
from taskmerge.methods.weighting import metagpt_weights, weighed_by_metagpt
from taskmerge.numbers.randomness import stream_key, uniform_bits

SHAPES = [(), (0,), (1,), (7,), (5, 3), (3, 0), (1, 6), (2, 3, 3, 3)]
SELECTIVE: list[dict[str, Any]] = [{"elect": "mass"}, {"elect": "count"}, {"average": "count"}, {"average": "none"}]
RESCALED: list[dict[str, Any]] = [{"rescale": "l1"}, {"rescale": "none"}, {"density": 1.0}, {"density": 0.1}]


@dataclass(frozen=True)
class Row:
    """One method of the table.

    options: what to try besides the defaults.  identity: options under which one specialist at weight 1 is returned as
    it is (None: it has none).  equivariant: f(c·d) = c·f(d), c > 0.
    specialists: how many it takes when not any number.
    """

    name: str
    options: Sequence[Mapping[str, Any]] = ()
    identity: Mapping[str, Any] | None = field(default_factory=dict)
    equivariant: bool = True
    specialists: int = 3
    oracle: Callable[..., np.ndarray] | None = None

    @property
    def method(self) -> MergeMethod:
        return find_method(self.name)

    @property
    def expected(self) -> Callable[..., np.ndarray]:
        return self.oracle or getattr(oracles, self.name)


TABLE = [
    Row("linear", [{"normalize": False}, {"scale": 0.4}], equivariant=False),
    Row("task_arithmetic", [{"normalize": True}, {"scale": -0.7}]),
    Row(
        "ties",
        [*SELECTIVE, {"density": (0.1, 0.5, 0.9)}, {"density": 0.0}, {"density": 0.5}, {"trim": "model"}],
        {"density": 1.0},
    ),
    Row("dare_linear", [*RESCALED, {"density": (0.1, 0.5, 1.0)}, {"normalize": True}], {"density": 1.0}),
    Row("dare_ties", [*RESCALED, *SELECTIVE], {"density": 1.0}),
    Row(
        "breadcrumbs",
        [
            {"density": (0.3, 0.1, 0.9), "outliers": (0.0, 0.5, 0.1)},
            {"density": 0.3, "outliers": 0.3},
            {"outliers": 0.99},
        ],
        {"density": 1.0, "outliers": 0.0},
    ),
    Row("breadcrumbs_ties", [*SELECTIVE, {"density": 0.4}], {"density": 1.0, "outliers": 0.0}),
    Row(
        "della_linear",
        [{"rescale": "none"}, {"rescale": "l1"}, {"density": 0.95}, {"epsilon": 0.6}],
        {"density": 1.0, "epsilon": 0.0},
    ),
    Row(
        "della",
        [*SELECTIVE, {"density": (0.3, 0.5, 0.9), "epsilon": (0.0, 0.2, 0.1)}, {"epsilon": 0.0}],
        {"density": 1.0, "epsilon": 0.0},
    ),
    Row("magmax"),
    Row("consensus", [{"theta": 0.0}, {"theta": 3.0}, {"minimum": 1}, {"minimum": 9}]),
    Row("sce", [{"select": 0.3}]),
    Row("pcb", [{"ratio": 0.5}, {"ratio": 1.0}], {"ratio": 1.0}, equivariant=False),
    Row("emr"),
    Row("model_stock"),
    Row(
        "slerp",
        [{"fraction": 0.2}, {"space": "model"}, {"lerp_above": 0.0}],
        None,
        specialists=2,
    ),
    Row("nuslerp", [{"space": "model"}], None, specialists=2),
    Row("karcher", [{"space": "model"}]),
    Row("multislerp", [{"space": "model"}, {"normalize": False}]),
    Row("nearswap", [{"limit": 0.5}, {"limit": 0.0}], {"limit": 1e9}, equivariant=False),
    Row("arcee_fusion", identity=None, equivariant=False),
    Row("ram", [{"above": 0.8}], {"above": 0.0}),
    Row("ramplus_tl", [{"above": 0.8, "most": 2.0}], {"above": 0.0}),
    Row("regmean", oracle=oracles.task_arithmetic),  # without covariances; with them: test_covariance_methods.py
    Row("actmat", [{"ridge": 0.0}, {"ridge": 1.0}, {"density": 0.5}]),
    Row("tact", [{"ridge": 0.0}]),
    Row("tsv", oracle=spectral.tsv),
    Row("iso_c", identity=None, oracle=spectral.iso_c),
    Row("iso_cts", [{"common": 0.0}, {"common": 0.5}, {"common": 1.0}], identity=None, oracle=spectral.iso_cts),
    Row("wudi", [{"ridge": 0.0}], oracle=spectral.wudi),
    Row("swudi", [{"init": "mean"}, {"density": 1.0}, {"time": 2.0}], oracle=spectral.swudi),
    Row("cart", [{"rank_share": 0.5, "spread": 0.3}], oracle=spectral.cart),
    Row("star", [{"energy": 0.8}], {"energy": 1.0}, oracle=spectral.star),
    Row("svc", [{"floor": 0.9}], oracle=spectral.svc),
    Row("knots", [{"inside": "task_arithmetic"}], {"density": 1.0}, oracle=spectral.knots),
    Row("core", [{"inside": "task_arithmetic"}], {"density": 1.0}, oracle=spectral.core),
]
ROWS = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
CASES = pytest.mark.parametrize(
    ("row", "options"),
    [(row, options) for row in TABLE for options in ({}, *row.options)],
    ids=lambda value: value.name if isinstance(value, Row) else ",".join(f"{k}={v}" for k, v in value.items()) or "-",
)


def test_every_method_has_a_row() -> None:
    tested = {row.name for row in TABLE}
    built_in = {method.name for method in all_methods() if method.function.__module__.startswith("taskmerge.")}
    assert built_in == tested


@dataclass(frozen=True)
class Inputs:
    deltas: np.ndarray
    weights: np.ndarray
    base: np.ndarray
    bits: np.ndarray

    @property
    def specialists(self) -> int:
        return len(self.weights)


def inputs(shape: tuple[int, ...], specialists: int, seed: int = 0) -> Inputs:
    """Random task vectors, a few entries zero, weights that differ."""
    draw = np.random.default_rng(seed)
    deltas = draw.normal(size=(specialists, *shape)) * (draw.random((specialists, *shape)) > 0.1)
    count = int(np.prod(shape))
    keys = [stream_key(seed, str(index), "t") for index in range(specialists)]
    bits = np.stack([uniform_bits(key, 0, count).astype(np.int64) for key in keys]).reshape(deltas.shape)
    return Inputs(deltas, np.linspace(0.3, 0.9, specialists), draw.normal(size=shape), bits)


def merged(
    method: MergeMethod, given: Inputs, options: Mapping[str, Any], dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    return method.merge(
        torch.from_numpy(given.deltas).to(dtype),
        torch.from_numpy(given.weights),
        method.options(options),
        base=torch.from_numpy(np.asarray(given.base)).to(dtype),
        random_bits=torch.from_numpy(given.bits),
    )


def exactly(row: Row, given: Inputs, options: Mapping[str, Any]) -> np.ndarray:
    """`expected`, in fractions; a 0-d tensor as one of one entry."""
    shape = given.base.shape or (1,)
    deltas, weights, base = map(fractions, (given.deltas.reshape(-1, *shape), given.weights, given.base.reshape(shape)))
    return expected(row, Inputs(deltas, weights, base, given.bits.reshape(-1, *shape)), options)


def expected(row: Row, given: Inputs, options: Mapping[str, Any]) -> np.ndarray:
    have = {"base": given.base, "bits": given.bits}
    wanted = {name: have[name] for name in inspect.signature(row.expected).parameters if name in have}
    return row.expected(given.deltas, given.weights, **wanted, **options)


@CASES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_formula(row: Row, options: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    given = inputs(shape, row.specialists)
    found = merged(row.method, given, options)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected(row, given, options), rtol=1e-9, atol=1e-9)


@CASES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_streams_its_formula_correctly_rounded(row: Row, options: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """A float64 output is the float64 nearest to the formula in fractions. Coefficients found from angles and lengths
    are float64 themselves: there the plain function is what the stream is compared with."""
    given = inputs(shape, row.specialists, seed=1)
    filled = row.method.options(options)
    program = row.method.program(given.weights.tolist(), filled, shape)
    if program is None:
        assert not row.method.elementwise
        return
    models = given.base + given.deltas
    base = operand(given.base)
    specialists = [operand(model) for model in models]
    keys = [stream_key(1, str(index), "t") for index in range(given.specialists)]
    thresholds = None
    if program.across_model:
        ways = [way for way in program.ways if isinstance(way, KeepLargest)]
        bounds = measure_model([(base, specialists)], [[way] for way in ways])
        lowest, highest = zip(*(row[way] for row, way in zip(bounds, ways, strict=True)), strict=True)
        thresholds = Measurement(lowest=lowest, highest=highest)
    measurement = measure(base, specialists, program, keys, out_dtype="F64", thresholds=thresholds)
    out = np.empty(base.count)
    combine(base, specialists, program, measurement, keys, 0, base.count, out, "F64")
    if not base.count:
        return
    if program.from_gram is not None or row.oracle is not None:
        exact = Inputs(models - given.base, given.weights, given.base, given.bits)
        wanted = given.base + merged(row.method, exact, options).numpy()
        np.testing.assert_allclose(out.reshape(shape), wanted, rtol=1e-11, atol=1e-11)
        return
    start = fractions(given.base)
    differences = np.stack([fractions(model) - start for model in models])
    change = exactly(row, Inputs(differences, given.weights, start, given.bits), options)
    wanted = start.reshape(-1) + change.reshape(-1)
    assert not any(isinstance(value, float) for value in wanted)
    assert out.tolist() == [rounded(value, "F64") for value in wanted]


def operand(values: np.ndarray) -> Operand:
    flat = np.ascontiguousarray(values).ravel()
    return Operand("F64", values.shape, lambda start, stop: flat[start:stop])


@ROWS
def test_computes_in_float64_whatever_it_is_given(row: Row) -> None:
    given = inputs((5, 4), row.specialists, seed=2)
    single = Inputs(
        given.deltas.astype(np.float32).astype(float),
        given.weights,
        given.base.astype(np.float32).astype(float),
        given.bits,
    )
    found, wide = merged(row.method, given, {}, torch.float32), merged(row.method, single, {})
    assert found.dtype == torch.float64 and torch.equal(found, wide)


@ROWS
def test_one_specialist_alone_is_returned(row: Row) -> None:
    if row.identity is None:
        pytest.skip("changes a single specialist, or takes two")
    given = inputs((6, 4), 1, seed=3)
    given = Inputs(given.deltas, np.ones(1), given.base, given.bits)
    found = merged(row.method, given, row.identity)
    np.testing.assert_allclose(found.numpy(), given.deltas[0], rtol=1e-9, atol=1e-12)


@ROWS
def test_order_of_specialists_does_not_matter(row: Row) -> None:
    given = inputs((6, 4), row.specialists, seed=4)
    turned = Inputs(given.deltas[::-1].copy(), given.weights[::-1].copy(), given.base, given.bits[::-1].copy())
    one, other = merged(row.method, given, {}).numpy(), merged(row.method, turned, {}).numpy()
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@ROWS
def test_scale_zero_leaves_the_base(row: Row) -> None:
    given = inputs((6, 4), row.specialists, seed=5)
    assert not merged(row.method, given, {"scale": 0.0}).numpy().any()
    assert merged(row.method, given, {}).numpy().any()


@ROWS
def test_scales_with_the_task_vectors(row: Row) -> None:
    given = inputs((6, 4), row.specialists, seed=6)
    tripled = Inputs(3.0 * given.deltas, given.weights, given.base, given.bits)
    one = merged(row.method, given, {}).numpy()
    three = merged(row.method, tripled, {}).numpy()
    assert np.allclose(3.0 * one, three, rtol=1e-9, atol=1e-9) == (row.equivariant or row.name == "linear")


@ROWS
def test_zero_task_vectors_and_zero_weights_give_the_base(row: Row) -> None:
    given = inputs((6, 4), row.specialists, seed=7)
    still = Inputs(np.zeros_like(given.deltas), given.weights, given.base, given.bits)
    np.testing.assert_allclose(merged(row.method, still, {}).numpy(), 0.0, atol=1e-12)
    if row.name not in ("slerp", "nuslerp"):
        unweighted = Inputs(given.deltas, np.zeros_like(given.weights), given.base, given.bits)
        assert not merged(row.method, unweighted, {}).numpy().any()


# Means over those that agree: who agrees alone decides an entry, however little it weighs; at weight 0 nobody does.
MEANS_OF_WHO_AGREES = {"ties", "dare_ties", "della", "breadcrumbs_ties", "sce", "knots", "core"}


@ROWS
def test_a_weight_of_zero_is_the_limit_of_small_weights(row: Row) -> None:
    if row.name in MEANS_OF_WHO_AGREES:
        assert "At weight 0" in row.method.doc
        return
    given = inputs((6, 4), row.specialists, seed=12)
    weights = given.weights.copy()
    results = []
    for least in (0.0, 1e-12):
        weights[1] = least
        results.append(merged(row.method, Inputs(given.deltas, weights.copy(), given.base, given.bits), {}).numpy())
    np.testing.assert_allclose(results[0], results[1], atol=1e-7)


@ROWS
def test_leaves_its_inputs_alone(row: Row) -> None:
    given = inputs((5, 5), row.specialists, seed=8)
    before = given.deltas.copy()
    merged(row.method, given, {})
    np.testing.assert_array_equal(given.deltas, before)


@ROWS
def test_says_what_it_is(row: Row) -> None:
    method = row.method
    assert method.summary.endswith((".", "λ Σ w d", "d_i|)", "w")) and len(method.summary) > 30
    assert method.source
    assert method.elementwise or "->" in method.doc
    assert all(parameter.doc for parameter in method.parameters)


def test_linear_without_normalizing_sums_the_models() -> None:
    given = inputs((4, 4), 2)
    program = find_method("linear").program((0.3, 0.9), {"normalize": False, "scale": 1.0}, (4, 4))
    assert program is not None and program.base_factor() == pytest.approx(1.2)
    models = given.base + given.deltas
    found = given.base + merged(find_method("linear"), given, {"normalize": False}).numpy()
    np.testing.assert_allclose(found, 0.3 * models[0] + 0.9 * models[1], rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "model_stock", "nuslerp", "karcher"])
def test_weights_that_cancel_are_refused(name: str) -> None:
    given = inputs((4,), 2)
    cancelling = Inputs(given.deltas, np.array([1.0, -1.0]), given.base, given.bits)
    with pytest.raises(MergeError, match=r"the weights \(1, -1\) sum to 0"):
        merged(find_method(name), cancelling, {})


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_two_specialists_only(name: str) -> None:
    with pytest.raises(MergeError, match="interpolates two specialists, not 3"):
        merged(find_method(name), inputs((4,), 3), {})


def test_slerp_of_parallel_and_opposed_vectors_is_straight() -> None:
    vector = np.random.default_rng(0).normal(size=9)
    for factor in (1.0, -1.0):
        given = Inputs(np.stack([vector, factor * vector]), np.ones(2), np.zeros(9), np.zeros((2, 9), np.int64))
        found = merged(find_method("slerp"), given, {"fraction": 0.25}).numpy()
        np.testing.assert_allclose(found, (0.75 + 0.25 * factor) * vector, rtol=1e-12)


def test_karcher_of_opposites_takes_a_direction() -> None:
    vector = np.random.default_rng(0).normal(size=9)
    given = Inputs(np.stack([vector, -vector]), np.ones(2), np.zeros(9), np.zeros((2, 9), np.int64))
    found = merged(find_method("karcher"), given, {}).numpy()
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(vector))


def test_sce_tells_specialists_apart_however_small_their_entries() -> None:
    draw = np.random.default_rng(0)
    direction = np.abs(draw.normal(size=50)) * 1e-9
    given = Inputs(np.stack([direction, 3 * direction]), np.ones(2), np.zeros(50), np.zeros((2, 50), np.int64))
    found = merged(find_method("sce"), given, {}, torch.float32).numpy()
    np.testing.assert_allclose(found, (1 * 1 + 9 * 3) / 10 * direction, rtol=1e-5)


def test_emr_masks_restore_each_specialist_in_norm() -> None:
    given = inputs((8, 8), 3)
    deltas = torch.from_numpy(given.deltas)
    unified = find_method("emr")(deltas, torch.ones(3))
    masks, factors = emr_masks(deltas, unified)
    for delta, mask, factor in zip(given.deltas, masks.numpy(), factors.numpy(), strict=True):
        assert (mask == (np.sign(delta) * np.sign(unified.numpy()) > 0)).all()
        restored = factor * mask * unified.numpy()
        assert np.abs(restored).sum() == pytest.approx(np.abs(delta).sum())


def test_ties_with_given_thresholds_trims_by_them() -> None:
    given = inputs((6, 4), 3, seed=9)
    method = find_method("ties")
    found = method.merge(
        torch.from_numpy(given.deltas),
        torch.from_numpy(given.weights),
        method.options({"trim": "model"}),
        thresholds=Measurement(lowest=(0.5, 1.0, 5.0), highest=(math.inf,) * 3),
    )
    limits = np.array([0.5, 1.0, 5.0]).reshape(3, 1, 1)
    trimmed = np.where(np.abs(given.deltas) >= limits, given.deltas, 0.0)
    np.testing.assert_allclose(found.numpy(), oracles.elected(trimmed, given.weights, "weighted_mass", "weight"))


def test_della_keeps_ties_by_their_mean_rank() -> None:
    """Survivors are divided by their own probability, which tells it."""
    row = np.array([[[0.5, 1.0, 1.0, -1.0]]])
    given = Inputs(row, np.ones(1), np.zeros((1, 4)), np.zeros((1, 1, 4), np.int64))
    found = merged(find_method("della_linear"), given, {"density": 0.7, "epsilon": 0.1}).numpy()
    np.testing.assert_allclose(np.abs(row[0] / found), [[0.6, 0.733333, 0.733333, 0.733333]], rtol=1e-5)


def test_metagpt_weights_any_method() -> None:
    given = inputs((6, 4), 3, seed=10)
    flat = given.deltas.reshape(3, -1)
    np.testing.assert_allclose(metagpt_weights(flat @ flat.T), oracles.metagpt(given.deltas), rtol=1e-12)
    method = weighed_by_metagpt(find_method("task_arithmetic"))
    program = method.program((1.0, 1.0, 1.0), method.options(), (6, 4))
    assert program is not None
    base, specialists = operand(given.base), [operand(given.base + delta) for delta in given.deltas]
    out = np.empty(24)
    combine(base, specialists, program, measure(base, specialists, program, ()), (), 0, 24, out, "F64")
    wanted = given.base + np.einsum("i,ijk->jk", oracles.metagpt(given.deltas), given.deltas)
    np.testing.assert_allclose(out.reshape(6, 4), wanted, rtol=1e-11)
    np.testing.assert_allclose(given.base + merged(method, given, {}).numpy(), wanted, rtol=1e-11)


def test_metagpt_is_refused_where_a_method_finds_its_own_weights() -> None:
    with pytest.raises(UsageError, match="model_stock finds its own weights"):
        weighed_by_metagpt(find_method("model_stock"))
    assert not metagpt_weights(np.zeros((2, 2))).any()


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "dare_linear", "della", "knots", "sce"])
def test_metagpt_goes_with_every_way_to_sparsify(name: str) -> None:
    given = inputs((6, 4), 3, seed=11)
    options = {"rescale": "l1"} if name in ("dare_linear", "della") else {}
    method = weighed_by_metagpt(find_method(name))
    weighed = Inputs(given.deltas, oracles.metagpt(given.deltas), given.base, given.bits)
    row = next(row for row in TABLE if row.name == name)
    np.testing.assert_allclose(merged(method, given, options).numpy(), expected(row, weighed, options), rtol=1e-9)
