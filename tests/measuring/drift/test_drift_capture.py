"""Catching what projectors and layers put out, checked against transformers' own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import moved, qwen2_audio, sounds

from taskmerge.embedders import Embedder, open_embedder
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import UsageError
from taskmerge.measuring.drift.capture import capture
from taskmerge.measuring.drift.comparison import compare


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return open_embedder(qwen2_audio(tmp_path_factory.mktemp("models") / "qwen2_audio"))


def drifted(embedder: Embedder, amount: float, **options: Any) -> Embedder:
    return open_embedder(moved(embedder.module, amount, **options))


def test_native_parts_are_found(native: Embedder) -> None:
    anatomy = native.anatomy()
    model: Any = native.module
    network = model[0].auto_model
    assert list(anatomy.layers) == list(network.language_model.layers)
    assert anatomy.projectors["audio"] == (network.multi_modal_projector,)
    assert anatomy.placeholders == {"audio": 4}
    assert set(anatomy.projectors) == {"audio"}


def test_captured_states_are_the_models_own(native: Embedder) -> None:
    items = read_pairs(sounds(3)).load()
    caught = capture(native, items, native.anatomy(), "audio")
    features = native.prepare(items)
    model: Any = native.module
    with torch.no_grad():
        inputs = {key: value for key, value in features.items() if key != "modality"}
        own = model[0].auto_model(**inputs, output_hidden_states=True)
    mask = features["input_ids"] == 4
    assert len(caught.hidden) == 3  # before the first layer, and after each of two
    for depth in (0, 1):  # transformers puts its final norm on the last one
        np.testing.assert_allclose(caught.hidden[depth], own.hidden_states[depth][mask].numpy(), rtol=1e-5, atol=1e-6)
    # what enters the first layer is what the projector put out, its padding left out
    put_out = {row.tobytes() for row in caught.projected[0]}
    assert all(row.tobytes() in put_out for row in caught.hidden[0])
    assert caught.fed is not None
    np.testing.assert_array_equal(caught.fed, caught.hidden[0])
    np.testing.assert_allclose(caught.embeddings, model.encode(items), rtol=1e-5, atol=1e-6)


def test_no_hook_is_left_behind(native: Embedder) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in native.module.modules())

    before = hooks()  # transformers keeps some of its own
    capture(native, read_pairs(sounds(1)).load(), native.anatomy(), "audio")
    assert hooks() == before


def test_texts_hold_no_projected_tokens(native: Embedder) -> None:
    with pytest.raises(UsageError, match="no token of these items represents audio"):
        capture(native, ["a dog"], native.anatomy(), "audio")


def test_moving_the_backbone_shows_at_its_layer_and_not_in_the_control(native: Embedder) -> None:
    fused = drifted(native, 0.5, names="language_model.layers.1.")
    found = compare(native, fused, read_pairs(sounds(12)), batch_size=5)
    assert found.control.identical
    assert found.control.outputs > 12
    assert [change.relative_change for change in found.depths[:2]] == [0.0, 0.0]
    assert found.depths[2].relative_change > 0.01
    assert found.depths[1].cosine == pytest.approx(1)
    assert found.depths[2].cosine < 0.9999
    assert found.depths[0].debiased_cka == pytest.approx(1)
    assert set(found.control.norm_against_tokens or {}) == {"specialist", "fused"}


def test_moving_the_projector_breaks_the_control(native: Embedder) -> None:
    fused = drifted(native, 0.01, names="multi_modal_projector")
    control = compare(native, fused, read_pairs(sounds(4))).control
    assert not control.identical
    assert control.relative_change > 0


def test_batches_do_not_change_what_is_measured(native: Embedder) -> None:
    fused = drifted(native, 0.3)
    pairs = read_pairs(sounds(9))
    one, many = (compare(native, fused, pairs, batch_size=size) for size in (1, 9))
    for first, second in zip(one.depths, many.depths, strict=True):
        assert first.cosine == pytest.approx(second.cosine, abs=1e-4)
        assert first.debiased_cka == pytest.approx(second.debiased_cka, abs=1e-3)
    np.testing.assert_allclose(one.other.probes, many.other.probes, atol=1e-4)


def test_layers_beyond_the_memory_are_spaced_evenly(native: Embedder) -> None:
    found = compare(native, native, read_pairs(sounds(5)), moments_memory=1)
    assert [change.debiased_cka is not None for change in found.depths] == [True, True, True]


def test_backbones_of_different_depth_are_refused(native: Embedder, tmp_path: Path) -> None:
    import copy

    shallow = copy.deepcopy(native)
    model: Any = shallow.module
    del model[0].auto_model.language_model.layers[1]
    with pytest.raises(UsageError, match="have 2 and 1 layers"):
        compare(native, shallow, read_pairs(sounds(2)))


def test_half_precision_runs(native: Embedder) -> None:
    from taskmerge.measuring.drift.null_band import precision_twin

    name, twin = precision_twin(native)
    assert name == "bfloat16"
    items = read_pairs(sounds(2)).load()
    near = twin.encode(items)
    assert near.dtype == np.float32
    assert np.abs(near - native.encode(items)).max() > 0  # another precision, not the same model again
    assert native.dtype == torch.float32 and twin.dtype == torch.bfloat16
