"""An encoder that its library cannot load is told as every model is: what, where, and the next move, no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omni_models import tiny_backbone

from taskmerge.embedders import graft
from taskmerge.errors import TaskmergeError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a library that is not installed": ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "timm"),
    "a class of the future": ({"model_type": "qwen9_super"}, "qwen9_super"),
    "weights of other shapes": ({"model_type": "bert", "vocab_size": 7, **SMALL}, "the encoder cannot be loaded"),
    "no kind": ({}, "the encoder cannot be loaded"),
    "numbers that are none": ({"model_type": "bert", "hidden_size": "many"}, "the encoder cannot be loaded"),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("broken") / "backbone")


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_told(backbone: Path, tmp_path: Path, name: str) -> None:
    config, words = CONFIGS[name]
    folder = tmp_path / "encoder"
    folder.mkdir()
    shutil.copy(backbone / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TaskmergeError, match=words) as caught:
        graft(backbone, "image", str(folder), "linear")
    problem = caught.value.problems[0]
    assert str(folder) in str(caught.value) and problem.next_move
