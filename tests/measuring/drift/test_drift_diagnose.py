"""Whole diagnoses: of a model that owns its audio tower, of a grafted one, and from weights alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import moved, qwen2_audio, sounds, tiny_grafted

from taskmerge.checkpoints.components import component_map
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.errors import MergeError, UsageError
from taskmerge.measuring.drift import diagnose_drift, forecast_drift


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return qwen2_audio(tmp_path_factory.mktemp("models") / "qwen2_audio")


def test_report_of_a_native_model(native: Any, tmp_path: Path) -> None:
    base = moved(native, 0.5, seed=9)
    report = diagnose_drift(moved(native, 0.8), native, base, sounds(40), batch_size=8)
    assert report.forecasts["audio"].displacement == pytest.approx(0.8 / 0.5, rel=0.2)
    found = report.modalities["audio"]
    assert found.control.identical
    assert (found.probes, len(found.depths)) == (40, 3)
    assert found.onset is not None
    assert found.depths[found.onset].cosine < 0.99 <= found.depths[found.onset - 1].cosine
    assert found.verdict.probes == 40
    # a random network finds nothing, and the verdict says so instead of judging
    assert found.verdict.outcome == "cannot tell"
    assert (report.exit_code, report.open) == (4, ("audio",))  # neither "all is well" nor "drifted"
    assert set(found.intervals) == set(found.bands)
    report.save(tmp_path / "drift.json")
    stored = json.loads((tmp_path / "drift.json").read_text())
    assert stored["modalities"]["audio"]["verdict"]["outcome"] == "cannot tell"
    assert stored["modalities"]["audio"]["control"]["identical"] is True


def test_twins_of_a_model_have_not_moved(native: Any) -> None:
    found = diagnose_drift(native, native, None, sounds(64)).modalities["audio"]
    assert found.intervals["neighbour_overlap"].estimate == 1
    assert found.intervals["rotated_cosine"].estimate == pytest.approx(1, abs=1e-6)
    assert found.intervals["recall_at_1_loss"].high == 0
    assert found.onset is None
    assert found.explanations["debiased_cka"] == pytest.approx(1)
    assert found.explanations["frechet_distance"] == pytest.approx(0, abs=1e-6)


def test_four_paths(tmp_path: Path) -> None:
    """As the command hands them over: a text backbone, its grafted specialist, a fused model, probes on disk."""
    import soundfile

    specialist = tiny_grafted(tmp_path)
    moved(specialist, 0.3, names="backbone.encoder").save_pretrained(str(tmp_path / "base_and_ear"))
    moved(specialist, 0.5, names="backbone.encoder.layer.1.").save_pretrained(str(tmp_path / "fused"))
    lines = []
    for number, pair in enumerate(sounds(33)):
        soundfile.write(tmp_path / f"{number}.wav", pair["audio"]["array"], 16000)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": pair["text"]}))
    (tmp_path / "probes.jsonl").write_text("\n".join(lines))
    report = diagnose_drift(
        str(tmp_path / "fused"),
        str(tmp_path / "grafted"),
        base=str(tmp_path / "base_and_ear"),
        probes=str(tmp_path / "probes.jsonl"),
    )
    found = report.modalities["audio"]
    assert [change.relative_change > 0 for change in found.depths] == [False, False, True]
    assert found.control.identical
    assert [layer.displacement > 0 for layer in report.forecasts["audio"].layers] == [False, False, True]
    assert report.forecasts["audio"].overlap is not None
    only = diagnose_drift(str(tmp_path / "fused"), str(tmp_path / "grafted"), base=str(tmp_path / "base_and_ear"))
    assert only.forecasts["audio"] == report.forecasts["audio"]
    assert not only.modalities
    # a plain text backbone is a base too: its names are the grafted ones without their prefix
    plain = diagnose_drift(str(tmp_path / "fused"), str(tmp_path / "grafted"), base=str(tmp_path / "backbone"))
    (forecast,) = plain.forecasts.values()
    assert forecast.unit == "base" and "only the other specialists move it" in str(plain)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of base, grafted specialist, fused model, and probes that it finds."""
    import soundfile

    folder = tmp_path_factory.mktemp("four")
    specialist = tiny_grafted(folder)
    moved(specialist, 0.3, names="backbone.encoder").save_pretrained(str(folder / "base"))
    moved(specialist, 0.5, names="backbone.encoder.layer.1.").save_pretrained(str(folder / "fused"))
    rows = sounds(33)
    for number, pair in enumerate(rows):
        soundfile.write(folder / f"{number}.wav", pair["audio"]["array"], 16000)
    lines = [json.dumps({"audio": f"{number}.wav", "text": pair["text"]}) for number, pair in enumerate(rows)]
    (folder / "probes.jsonl").write_text("\n".join(lines))
    return folder


def test_the_command_without_probes_says_what_the_weights_forecast(on_disk: Path, command: Any) -> None:
    paths = [word for name in ("fused", "base") for word in (f"--{name}", on_disk / name)]
    ran = command("diagnose-drift", *paths, "--specialist", on_disk / "grafted")
    assert ran.code == 0
    title, columns, *rows = ran.out.splitlines()
    assert title.startswith("audio: distance of the fused backbone from the specialist")
    assert columns == "layer\tdisplacement\toverlap" and rows[1].startswith("1\t")
    assert "‖fused - specialist‖ / ‖specialist - base‖" in ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "5"], "--limit 5 is not a valid share\n    give a number above 0 and at most 1"),
        (["--limit", "0"], "--limit 0 is not a valid share"),
        (["--recover"], "--recover needs a recipe"),
        (["recipe.yaml"], "--specialist cannot be combined with a recipe\n    give either a recipe or these options"),
    ],
)
def test_the_command_refuses_before_it_reads(command: Any, words: list[str], said: str) -> None:
    ran = command("diagnose-drift", "--fused", "nowhere", "--specialist", "nowhere", *words)
    assert ran.code == 2 and said in ran.err


def test_recovery_without_its_section_is_told_first(command: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{base: b, specialists: {a: m}, output: {path: o}, drift: {specialist: a, probes: p}}", encoding="utf-8"
    )
    ran = command("diagnose-drift", recipe, "--recover")
    assert ran.code == 2 and "the recipe has no `recover` section" in ran.err


def test_probes_the_model_does_not_take_are_told(native: Any, on_disk: Path) -> None:
    from PIL import Image

    pictures = [{"image": Image.new("RGB", (8, 8)), "text": text} for text in ("a", "b")]
    with pytest.raises(
        UsageError, match="contains image, for which the model has no encoder\n    the model takes text, a"
    ):
        diagnose_drift(str(on_disk / "fused"), str(on_disk / "grafted"), None, pictures)
    with pytest.raises(UsageError, match="limit must be a number above 0 and at most 1, not 0"):
        diagnose_drift(native, native, None, sounds(2), limit=0.0)


def test_two_grafted_projectors_at_once(tmp_path: Path) -> None:
    from PIL import Image

    from taskmerge.embedders import graft, open_embedder

    tiny_grafted(tmp_path)
    graft(str(tmp_path / "grafted"), "image", encoder="patches", projector="mlp", out=tmp_path / "both")
    specialist: Any = open_embedder(tmp_path / "both").module
    fused = moved(specialist, 0.3, names="backbone.encoder.layer.1.")
    rng = np.random.default_rng(0)
    pictures = [
        {"image": Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)), "text": f"picture {i}"}
        for i in range(32)
    ]
    report = diagnose_drift(fused, {"hear": specialist, "see": specialist}, None, {"hear": sounds(32), "see": pictures})
    assert [found.modality for found in report.modalities.values()] == ["audio", "image"]
    for found in report.modalities.values():
        assert found.control.identical
        assert found.control.outputs > 0
        assert found.control.norm_against_tokens is not None
        assert [change.relative_change > 0 for change in found.depths] == [False, False, True]


def test_bad_probes_are_told_before_any_model_runs() -> None:
    broken = [{"audio": {"array": np.zeros(0, dtype=np.float32), "sampling_rate": 16000}, "text": "nothing"}]
    same = [{"query": "a", "text": "b"}, {"query": "c", "text": "b"}]
    probes: dict[str, Any] = {"a": broken, "b": same}
    with pytest.raises(UsageError) as error:  # the models are no models: they must not be touched
        diagnose_drift("fused", {"a": "x", "b": "y"}, None, probes)
    assert "empty" in str(error.value)
    assert "all probes have the same text" in str(error.value)
    with pytest.raises(UsageError, match="nothing to diagnose"):
        diagnose_drift("fused", "specialist")
    with pytest.raises(UsageError, match="no such specialist"):
        diagnose_drift("fused", {"a": "x"}, None, {"c": same})


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "embed_tokens.weight": rng.standard_normal((7, 6)),
        "layers.0.self_attn.q_proj.weight": rng.standard_normal((6, 6)),
        "layers.1.mlp.up_proj.weight": rng.standard_normal((9, 6)),
        "layers.1.mlp.down_proj.weight": rng.standard_normal((6, 9)),
        "norm.weight": rng.standard_normal(6),
    }


def test_the_forecast_equals_its_formulas() -> None:
    base, own, fused = tensors(0), tensors(1), tensors(2)
    direction = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 2)))[0]
    projector = {"audio_projector.weight": direction @ np.eye(5)[:2]}
    found = forecast_drift(MemoryStateDict(fused), MemoryStateDict(own | projector), MemoryStateDict(base), "audio")
    names = [name for name in base if name != "embed_tokens.weight"]

    def norm(a: dict[str, np.ndarray], b: dict[str, np.ndarray], names: list[str]) -> float:
        return float(np.sqrt(sum(((a[name] - b[name]) ** 2).sum() for name in names)))

    assert found.displacement == pytest.approx(norm(fused, own, names) / norm(own, base, names))
    layers = {layer.layer: layer for layer in found.layers}
    assert list(layers) == [None, 0, 1]
    inside = ["layers.1.mlp.up_proj.weight", "layers.1.mlp.down_proj.weight"]
    assert layers[1].displacement == pytest.approx(norm(fused, own, inside) / norm(own, base, inside))
    moved_rows = fused["layers.1.mlp.up_proj.weight"] - own["layers.1.mlp.up_proj.weight"]
    share = np.linalg.norm(moved_rows @ direction) ** 2 / np.linalg.norm(moved_rows) ** 2
    assert layers[1].overlap == pytest.approx(share)
    assert (found.written, found.chance) == (2, pytest.approx(2 / 6))
    product = sum(float(((own[n] - base[n]) * (fused[n] - base[n])).sum()) for n in names)
    assert found.cosine == pytest.approx(product / norm(own, base, names) / norm(fused, base, names))
    assert layers[None].overlap is None


def test_the_forecast_of_the_specialist_itself() -> None:
    base, own = tensors(0), tensors(1)
    found = forecast_drift(MemoryStateDict(own), MemoryStateDict(own), MemoryStateDict(base))
    assert (found.displacement, found.cosine, found.overlap) == (0, pytest.approx(1), None)


def test_a_specialist_that_trained_its_projector_alone_is_moved_only_by_the_others() -> None:
    """Displacements are then shares of the base's norm, layer by layer."""
    base, fused = tensors(0), tensors(1)
    found = forecast_drift(MemoryStateDict(fused), MemoryStateDict(base), MemoryStateDict(base))
    names = [name for name in base if component_map(MemoryStateDict(base).tensors)[name] == "backbone"]
    moved = sum(float(((fused[name] - base[name]) ** 2).sum()) for name in names)
    assert found.unit == "base" and found.cosine == 0
    assert found.displacement == pytest.approx((moved / sum(float((base[name] ** 2).sum()) for name in names)) ** 0.5)
    assert f"only the other specialists move it, by {found.displacement:.1%} of the base's norm" in str(found)
    still = forecast_drift(MemoryStateDict(base), MemoryStateDict(base), MemoryStateDict(base))
    assert still.displacement == 0


def test_models_without_a_common_backbone_are_refused() -> None:
    base = MemoryStateDict({"lm_head.weight": tensors(0)["layers.1.mlp.up_proj.weight"]})
    with pytest.raises(MergeError, match="have no backbone tensors"):
        forecast_drift(base, base, base)


def test_half_precision_is_read_exactly() -> None:
    base, own, fused = ({k: torch.tensor(v) for k, v in tensors(seed).items()} for seed in range(3))
    halves = [{k: v.to(torch.bfloat16) for k, v in part.items()} for part in (fused, own, base)]
    exact = [{k: v.double() for k, v in part.items()} for part in halves]

    def forecast(parts: list[dict[str, torch.Tensor]]) -> Any:
        own, specialist, start = (MemoryStateDict(part) for part in parts)
        return forecast_drift(own, specialist, start)

    assert forecast(halves) == forecast(exact)


def test_a_projector_that_was_only_rounded_was_left_as_it_was(tmp_path: Path) -> None:
    """A bfloat16 fuse of a float32 specialist: the projector's output moves by rounding, which is not blamed on it."""
    from taskmerge import open_embedder

    specialist = open_embedder(tiny_grafted(tmp_path))
    fused = specialist.copied().to(dtype=torch.bfloat16)
    control = diagnose_drift(fused, specialist, probes=sounds(12)).modalities["audio"].control
    assert control.rounded and not control.identical and control.passed
    with torch.no_grad():
        fused.state_dict.values["audio_projector.layers.0.weight"].mul_(2)
    report = diagnose_drift(fused, specialist, probes=sounds(12))
    assert report.modalities["audio"].control.passed is False
    assert "The encoder or the projector itself differs" in str(report)
