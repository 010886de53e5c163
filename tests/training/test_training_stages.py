"""specialize, recover, rehearse on tiny models: what learns, what must not move, what is refused first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omni_models import tiny_backbone, tone
from training_sets import NAMES, shades, tensors, tones

from taskmerge.embedders import graft, open_embedder
from taskmerge.errors import OutputError, TaskmergeError, UsageError
from taskmerge.training import LoraSettings, StageReport, TrainingSettings, recover, rehearse, specialize

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*'repr' attribute.*")

FAST = TrainingSettings(
    steps=40, batch_size=8, learning_rate=3e-3, warmup=4, evaluate_every=20, temperature=0.1, seed=1
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained embedder that hears and sees."""
    home = tmp_path_factory.mktemp("start")
    tiny_backbone(home / "backbone")
    graft(home / "backbone", "audio", {"kind": "log_mel", "mels": 16}, "linear", home / "audio")
    vision = {"kind": "patches", "height": 16, "patch_height": 16, "max_width": 32, "width": 24}
    graft(home / "audio", "image", vision, "mlp", home / "omni")
    return home / "omni"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("sounds")
    return {"train": tones(home / "train", 6), "held_out": tones(home / "held_out", 2, seed=1)}


def moved(before: Path, after: Path) -> set[str]:
    """Names of tensors whose bytes differ."""
    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name].tobytes() != new[name].tobytes()}


def test_recovery_trains_the_projector_alone(
    start: Path, sounds: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = recover(
        start, sounds["train"], ["audio_projector"], FAST, held_out=sounds["held_out"], out=tmp_path / "out"
    )
    assert report.after["audio_recall_at_1"] >= report.before["audio_recall_at_1"] + 0.5
    names = moved(start, tmp_path / "out")
    assert names and all(name.startswith("audio_projector.") for name in names)
    assert report.trained == 4 and report.frozen == len(tensors(start)) - 4
    texts = ["sound of dog", "a cat"]
    np.testing.assert_array_equal(open_embedder(start).encode(texts), open_embedder(tmp_path / "out").encode(texts))
    saved = json.loads((tmp_path / "out" / "taskmerge.json").read_text())
    assert (saved["kind"], saved["stage"]) == ("trained", "recover") and len(saved["report"]["curves"]) == 2
    assert saved["trained"] == sorted(names)
    assert capfd.readouterr().out == ""  # standard output belongs to results: `taskmerge run --json | jq`


def test_recovery_of_what_cannot_get_better_leaves_it(start: Path, sounds: dict[str, Path], tmp_path: Path) -> None:
    harmful = TrainingSettings(steps=4, batch_size=8, learning_rate=50.0, warmup=0, evaluate_every=4)
    recover(start, sounds["train"], ["audio_projector"], FAST, held_out=sounds["held_out"], out=tmp_path / "good")
    report = recover(
        tmp_path / "good", sounds["train"], ["audio_projector"], harmful, held_out=sounds["held_out"],
        out=tmp_path / "out",
    )  # fmt: skip
    assert not report.kept and report.after == report.before
    assert not moved(tmp_path / "good", tmp_path / "out")


def test_early_stopping_keeps_the_best_checkpoint(start: Path, sounds: dict[str, Path]) -> None:
    model: Any = open_embedder(start).module
    settings = TrainingSettings(steps=400, batch_size=8, learning_rate=3e-3, warmup=4, evaluate_every=10, patience=2)
    report = recover(model, sounds["train"], ["audio_projector"], settings, held_out=sounds["held_out"])
    assert report.steps < 400
    best = max(look["mrr"] for look in report.curves)
    assert report.after["mrr"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, scale=8.0)])
def test_specialist_learns_and_is_dense(
    start: Path, sounds: dict[str, Path], tmp_path: Path, lora: LoraSettings | None
) -> None:
    settings = TrainingSettings(
        steps=40, batch_size=8, learning_rate=3e-3, warmup=4, evaluate_every=20, temperature=0.1, lora=lora
    )
    report = specialize(start, sounds["train"], None, settings, held_out=sounds["held_out"], out=tmp_path / "out")
    assert report.after["audio_recall_at_1"] >= report.before["audio_recall_at_1"] + 0.5
    names = moved(start, tmp_path / "out")
    assert {name.partition(".")[0] for name in names} == {"backbone", "audio_projector"}
    if lora is not None:
        change = tensors(tmp_path / "out")["backbone.encoder.layer.0.attention.self.query.weight"].astype(np.float64)
        change -= tensors(start)["backbone.encoder.layer.0.attention.self.query.weight"]
        assert np.linalg.matrix_rank(change, tol=1e-5) <= 4
        assert "backbone.embeddings.word_embeddings.weight" not in names


def test_gradient_cache_gives_the_gradients_of_the_whole_batch(start: Path, sounds: dict[str, Path]) -> None:
    from dataclasses import replace

    found = []
    for cache in (None, 2):
        model: Any = open_embedder(start).module
        settings = replace(FAST, steps=3, warmup=0, gradient_cache=cache, learning_rate=1e-3)
        specialize(model, sounds["train"], ["backbone.encoder.*", "audio_projector"], settings)
        found.append(torch.cat([parameter.detach().flatten() for parameter in model[0].parameters()]))
    untrained: Any = open_embedder(start).module
    before = torch.cat([parameter.detach().flatten() for parameter in untrained[0].parameters()])
    assert (found[0] - before).abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("cache", [1, 3, 8])
def test_recovery_with_a_gradient_cache_embeds_no_more_at_once_and_has_the_same_gradients(
    start: Path, sounds: dict[str, Path], cache: int
) -> None:
    from taskmerge.training.columns import trainable
    from taskmerge.training.items import Bank
    from taskmerge.training.losses import LossSettings, against_bank

    embedder = open_embedder(start)
    model: Any = embedder.module
    trained = trainable(embedder)
    features = model.preprocess([tone(200.0 * number) for number in range(1, 9)])
    bank = torch.nn.functional.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    held = Bank(bank.numpy(), {})
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 1])
    projector, found, sizes = model[0].projector("audio"), [], []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]["input_ids"])))
    for size in (None, cache):
        model.zero_grad()
        sizes.clear()
        against_bank(trained, held, LossSettings(0.1, (), size))([dict(features)], labels).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in projector.parameters()]))
    assert max(sizes) == cache
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_the_seed_alone_decides_what_lora_becomes(start: Path, sounds: dict[str, Path]) -> None:
    from dataclasses import replace

    settings = replace(FAST, steps=2, warmup=0, lora=LoraSettings(rank=4, scale=8.0), seed=3)
    found = []
    for state in (1, 2):  # a new process starts with another state each time
        torch.manual_seed(state)
        model: Any = open_embedder(start).module
        specialize(model, sounds["train"], ["backbone.encoder.*"], settings)
        found.append(torch.cat([parameter.detach().flatten() for parameter in model[0].parameters()]))
    assert torch.equal(*found)


def test_a_model_trained_in_bfloat16_computes_in_its_own_precision(start: Path, sounds: dict[str, Path]) -> None:
    from dataclasses import replace

    model: Any = open_embedder(start).module
    report = recover(model, sounds["train"], settings=replace(FAST, bf16=True), held_out=sounds["held_out"])
    assert report.kept
    fresh: Any = open_embedder(start).module
    fresh[0].load_state_dict(model[0].state_dict())
    items = [tone(440), "a dog"]
    np.testing.assert_array_equal(model.encode(items), fresh.encode(items))


def test_rehearsal_learns_every_modality_in_balance(start: Path, sounds: dict[str, Path], tmp_path: Path) -> None:
    settings = TrainingSettings(
        steps=60, batch_size=8, learning_rate=3e-3, warmup=4, evaluate_every=30, temperature=0.1, balance=1e6
    )
    held: dict[str, Any] = {"audio": sounds["held_out"], "image": shades(2, seed=1)}
    report = rehearse(
        start,
        {"audio": sounds["train"], "image": shades(24)},
        ["backbone.encoder.*", "vision_*", "audio_projector"],
        settings,
        held_out=held,
        out=tmp_path / "out",
    )
    for modality in ("audio", "image"):
        assert report.after[f"{modality}_mrr"] > report.before[f"{modality}_mrr"] + 0.25
        assert all(f"{modality}_recall_at_1" in look for look in report.curves)


def test_a_stopped_run_resumes_and_ends_the_same(start: Path, sounds: dict[str, Path], tmp_path: Path) -> None:
    from dataclasses import replace

    from transformers import TrainerCallback

    import taskmerge.training.trainer as home

    class StopAtTwenty(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 20:
                control.should_save = True
                control.should_training_stop = True

    def run(name: str, stop: bool, **changes: Any) -> dict[str, torch.Tensor]:
        model: Any = open_embedder(start).module
        build = home.build_trainer

        def stopping(*args: Any, **kwargs: Any) -> Any:
            trainer = build(*args, **kwargs)
            if stop:
                trainer.add_callback(StopAtTwenty())
            return trainer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(home, "build_trainer", stopping)
            reports[name] = specialize(
                model, sounds["train"], ["backbone.encoder.*", "audio_projector"], replace(FAST, **changes),
                work=tmp_path / name,
            )  # fmt: skip
        return {key: value.clone() for key, value in model[0].state_dict().items()}

    reports: dict[str, StageReport] = {}
    whole = run("whole", stop=False)
    run("stopped", stop=True)
    resumed = run("stopped", stop=False, resume=True)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0, msg=name)
    assert reports["stopped"].losses == reports["whole"].losses and len(reports["whole"].losses) == FAST.steps


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([{"audio": tone(440), "text": ""}] * 12, "no text next to"),
        ([{"audio": np.zeros(0, np.float32), "text": f"a {name}"} for name in NAMES * 2], "is empty"),
        ([{"audio": {"array": tone(440), "sampling_rate": 3}, "text": name} for name in NAMES * 2], "sampling rate"),
        ([{"audio": "nowhere.flac", "text": "a dog"}] * 12, "does not exist"),
        ([{"audio": tone(440), "text": "a dog"}] * 12, "1 distinct texts are too few"),
    ],
)
def test_bad_data_is_told_before_training(start: Path, tmp_path: Path, pairs: list[Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        specialize(start, pairs, None, FAST, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_told_before_training(start: Path, sounds: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'audio_projector'"):
        recover(start, sounds["train"], ["audio_projecter"], FAST, held_out=sounds["held_out"])
    with pytest.raises(UsageError, match="no encoder for image"):
        specialize(start.parent / "audio", shades(3), None, FAST)
    with pytest.raises(UsageError, match="learning_rates: 'projecter'"):
        recover(
            start, sounds["train"], ["audio_projector"], TrainingSettings(learning_rates={"projecter": 1.0}),
            held_out=sounds["held_out"],
        )  # fmt: skip
    with pytest.raises(UsageError, match="LoRA has no linear layer to adapt"):
        recover(start, sounds["train"], ["audio_projector"], TrainingSettings(lora=LoraSettings()))
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(OutputError, match="not empty"):
        recover(start, sounds["train"], settings=FAST, out=tmp_path)
    with pytest.raises(UsageError, match="too few to reserve some for evaluation"):
        recover(start, [{"audio": tone(440), "text": "a dog"}] * 5, settings=FAST)
    wrong = (
        {"steps": 0},
        {"batch_size": 1},
        {"temperature": 0.0},
        {"gradient_cache": 0},
    )
    for settings in wrong:
        with pytest.raises(UsageError):
            TrainingSettings(**settings)


def test_where_losses_cannot_be_logged_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    with pytest.raises(UsageError, match="report_to: 'tensorbord' is unknown\n    did you mean 'tensorboard'"):
        TrainingSettings(report_to="tensorbord")
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    with pytest.raises(UsageError, match="report_to: 'tensorboard' is not installed"):
        TrainingSettings(report_to="tensorboard")
    assert TrainingSettings(report_to="wandb").report_to == "wandb"


def test_a_frozen_tensor_that_moves_is_noticed(start: Path) -> None:
    from taskmerge.training.components import assert_unchanged, frozen_hashes

    embedder = open_embedder(start)
    moving = "audio_projector.norm.bias"
    trained = [name for name in embedder.state_dict.tensors if name != moving]
    before = frozen_hashes(embedder, trained)
    assert set(before) == {moving}
    assert_unchanged(before, frozen_hashes(embedder, trained))
    with torch.no_grad():
        bias = embedder.state_dict.values[moving]
        bias[1] = torch.nextafter(bias[1], torch.tensor(9.0))
    with pytest.raises(TaskmergeError, match=r"audio_projector\.norm\.bias"):
        assert_unchanged(before, frozen_hashes(embedder, trained))
