"""Making the files that the demo ships, from MiniLM, espeak-ng and scikit-learn's digits alone (`--from-scratch`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.output.record import FILE, is_made_here, new_record, render
from taskmerge.demo import pictures, speech
from taskmerge.demo.unpacking import TOWER_FILE, base_model, minilm, picture_tower, specialist_model
from taskmerge.errors import OutputError

if TYPE_CHECKING:
    from taskmerge.training import StageReport, TrainingSettings

SEED = 0
BACKBONE = "backbone.encoder.*"
TOWER_STEPS, IMAGE_STEPS, AUDIO_STEPS, FIT_STEPS = 60, 150, 250, 100
RATES = {"projector": 1e-3}
VISION_RATES = {**RATES, "vision_encoder": 1e-3}


def make(folder: Path, say: Callable[[str], None], steps: float = 1.0) -> None:
    """Write data, vision encoder and compressed task vectors into `folder`. steps: share of the training steps.

    Raises UsageError when espeak-ng or a library is missing, before anything is made.
    """
    from taskmerge.embedders import graft

    for name, maker in (("image", pictures.make), ("audio", speech.make)):
        for split, rows in maker(SEED).items():
            _write_rows(folder / "data" / f"{name}_{split}.parquet", rows)
        say(f"  {name}: data generated")
    scratch = folder / "scratch"
    if is_made_here(scratch, "work"):
        shutil.rmtree(scratch)
    if scratch.exists():
        raise OutputError(
            "is in the place where the demo works, and was not made by taskmerge", str(scratch), "move it away"
        )
    scratch.mkdir(parents=True)
    (scratch / FILE).write_text(render(new_record("work", "demo")), "utf-8")
    settings = _settings(
        steps=_share(TOWER_STEPS, steps), batch_size=32, learning_rate=1e-3, warmup=20, temperature=0.05
    )
    model = graft(minilm(), "image", *picture_tower(), seed=SEED)
    report = _specialize(model, folder, "image", ["vision_*"], settings)
    _save_tower(model, folder / TOWER_FILE)
    say(f"  picture tower trained on the frozen language model: {report.steps} steps in {report.seconds:.0f} s")

    base = base_model(folder, scratch / "base")
    train = [BACKBONE, "vision_*"]
    settings = _full(VISION_RATES, steps=_share(IMAGE_STEPS, steps), batch_size=32)
    report = _specialize(base, folder, "image", train, settings, scratch / "image")
    _compress(base, scratch / "image", folder / "image", train)
    say(f"  image specialist trained: {report.steps} steps in {report.seconds:.0f} s")

    train = [BACKBONE, "audio_projector"]
    model = graft(base, "audio", "log_mel", "linear", seed=SEED)
    settings = _full(RATES, steps=_share(AUDIO_STEPS, steps), batch_size=48)
    report = _specialize(model, folder, "audio", train, settings, scratch / "audio")
    say(f"  audio specialist trained: {report.steps} steps in {report.seconds:.0f} s")
    _compress(base, scratch / "audio", scratch / "audio_vector", train)
    report = _fit_projector(base, scratch / "audio_vector", folder, _share(FIT_STEPS, steps), scratch / "audio_fitted")
    _compress(base, scratch / "audio_fitted", folder / "audio", train)
    say(f"  its projector fitted to the compressed backbone: {report.steps} steps in {report.seconds:.0f} s")
    shutil.rmtree(scratch)


def _share(steps: int, share: float) -> int:
    return max(1, round(share * steps))


def _settings(**said: Any) -> TrainingSettings:
    from taskmerge.training import TrainingSettings

    return TrainingSettings(seed=SEED, input_noise=0.1, evaluate_every=10_000, **said)


def _full(rates: Mapping[str, float], **said: Any) -> TrainingSettings:
    """A backbone that learns fast under linear projectors: where it does the work, there is something to drift."""
    return _settings(learning_rate=2e-4, learning_rates=rates, warmup=40, **said)


def _specialize(
    model: Any, folder: Path, modality: str, train: Sequence[str], settings: TrainingSettings, out: Path | None = None
) -> StageReport:
    from taskmerge.training import specialize

    return specialize(model, folder / "data" / f"{modality}_train.parquet", train, settings, out=out)


def _fit_projector(base: Path, vector: Path, folder: Path, steps: int, out: Path) -> StageReport:
    """One bit a weight moves the backbone too, so the projector is trained on that; compressed again it is the same."""
    from taskmerge.training import TrainingSettings, recover

    model = specialist_model(base, vector, out.with_name("audio_compressed"))
    settings = TrainingSettings(
        steps=steps, batch_size=48, learning_rate=1e-3, warmup=20, evaluate_every=min(25, steps), seed=SEED
    )
    train, held_out = (folder / "data" / f"audio_{split}.parquet" for split in ("train", "validation"))
    return recover(model, train, ["audio_projector"], settings, held_out=held_out, out=out)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _save_tower(model: Any, path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from taskmerge.embedders import open_embedder

    tensors = open_embedder(model).state_dict.values
    tower = {name: tensor.detach() for name, tensor in tensors.items() if name.startswith("vision_")}
    save_file({name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tower.items()}, path)


def _compress(base: Path, specialist: Path, out: Path, trained: Sequence[str]) -> None:
    """What the specialist's training changed, one bit a weight and a scale a row (BitDelta)."""
    from taskmerge.merging.algebra import Checkpoint

    vector = (Checkpoint.open(specialist, label=f"{out.name} specialist") - Checkpoint.open(base)).only(*trained)
    vector.save(out, dtype="bfloat16", form="sign", fresh=True)
