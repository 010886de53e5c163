"""A vision-language base, a specialist that sees, dense or LoRA, and one that hears: fused, everything is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo
from omni_models import picture, tone
from safetensors.torch import load_file
from vision_models import SEEING, processor, vision_model

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.anatomy import components_of
from taskmerge.merging import execute, plan
from taskmerge.recipes import loads

RECIPE = """\
base: base
specialists:
  image: {model: image, weight: 0.3}
  audio: {model: audio, weight: 0.5}
merge: {method: task_arithmetic}
copy: {audio: [audio_encoder, audio_projector]}
output: {path: out}
"""


def headed(name: str, folder: Path) -> Any:
    return getattr(transformers, SEEING[name].kind.classes[0]).from_pretrained(folder)


def hearing(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """A grafted specialist all of whose tensors moved; returns them."""
    grafted = graft(base, "audio", {"kind": "log_mel", "mels": 16, "layers": 1, "width": 24}, "mlp", pooling="mean")
    zoo.perturb(grafted, 3, 0.02)
    open_embedder(grafted).save(folder)
    return load_file(folder / "model.safetensors")


def fused(home: Path) -> dict[str, torch.Tensor]:
    recipe = loads(RECIPE, "recipe.yaml", home)
    execute(plan(recipe), recipe, home / "out")
    return load_file(home / "out" / "model.safetensors")


@pytest.mark.parametrize("name", list(SEEING))
def test_every_tensor_is_summed_kept_or_copied_and_the_result_runs(name: str, tmp_path: Path) -> None:
    base = vision_model(name, tmp_path / "base")
    zoo.perturb(headed(name, base), 5, 0.02).save_pretrained(tmp_path / "image")  # type: ignore[operator]
    processor(name).save_pretrained(tmp_path / "image")
    audio = hearing(base, tmp_path / "audio")
    found = fused(tmp_path)
    # by the network's own names, which transformers writes otherwise
    start, seen = (headed(name, tmp_path / one).model.state_dict() for one in ("base", "image"))
    for place, tensor in audio.items():
        inner = place.removeprefix("backbone.")
        if inner == place:
            assert torch.equal(found[place], tensor), place
            continue
        rows = start[inner].shape[0] if start[inner].ndim else 1
        own = tensor if tensor.ndim == 0 else tensor[:rows]
        expected = start[inner].double() + 0.3 * (seen[inner].double() - start[inner].double())
        expected += 0.5 * (own.double() - start[inner].double())
        got = found[place] if tensor.ndim == 0 else found[place][:rows]
        assert torch.equal(got, expected.float()), place
    left = {place for place in found if place not in audio}
    assert left <= {"lm_head.weight", "language_model.lm_head.weight"}
    model = open_embedder(tmp_path / "out")
    items = ["a dog", picture(100), tone(440), {"audio": tone(300), "image": picture(3)}]
    vectors = model.encode(items)
    assert np.isfinite(vectors).all() and len({row.tobytes() for row in vectors.round(4)}) == len(items)
    assert set(components_of(model.state_dict).values()) >= {
        "backbone", "vision_encoder", "vision_projector", "audio_encoder", "audio_projector"
    }  # fmt: skip


def test_a_lora_that_sees_and_a_graft_that_hears(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    name = "Qwen3-VL"
    base = vision_model(name, tmp_path / "base")
    torch.manual_seed(0)
    wrapped: Any = get_peft_model(headed(name, base), LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"]))
    with torch.no_grad():
        for place, parameter in wrapped.named_parameters():
            if "lora_B" in place:
                parameter.normal_(std=0.1)
    wrapped.save_pretrained(str(tmp_path / "image"))
    audio = hearing(base, tmp_path / "audio")
    found = fused(tmp_path)
    seen = wrapped.merge_and_unload().model.state_dict()
    start = headed(name, base).model.state_dict()
    moved = 0
    for inner in ("language_model.layers.1.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.weight"):
        place = f"backbone.{inner}"
        expected = start[inner] + 0.3 * (seen[inner] - start[inner]) + 0.5 * (audio[place] - start[inner])
        torch.testing.assert_close(found[place], expected, atol=1e-6, rtol=1e-5)
        moved += int(not torch.equal(seen[inner], start[inner]))
    assert moved == 2
    assert open_embedder(tmp_path / "out").encode([picture(1), tone(300)]).shape == (2, 32)
