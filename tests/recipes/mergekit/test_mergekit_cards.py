"""Published mergekit files, planned on tiny models with as many layers as each asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from places import TESTS
from safetensors.numpy import save_file

from taskmerge import recipes
from taskmerge.errors import TaskmergeError
from taskmerge.merging.plan import Plan, plan

CARDS = sorted((TESTS / "recipes" / "mergekit" / "cards").glob("*.yml"))
REFUSED = {
    "hx-mistral-1.5b": "is listed twice",  # so does mergekit 0.1.5
    "megamoon-karcher": "is listed twice",  # so does mergekit 0.1.5
    "kansensakura-erosion": "there is no model",  # the tokenizer of a model that is not merged
    "phi-2-ranked-ties": "merge method 'ranked_ties' is not supported",  # of a fork
}
"""Card -> why it is refused. All others plan."""
LEAST_SHARE = 0.9
USUAL_LAYERS = 6
WIDTH, ROWS = 4, 8


def said(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def models_in(value: Any, found: list[str] | None = None) -> list[str]:
    """Every model that a configuration names, as it is written."""
    found = [] if found is None else found
    if isinstance(value, dict):
        found += [value[key] for key in ("model", "base_model") if isinstance(value.get(key), str)]
        for entry in value.values():
            models_in(entry, found)
    elif isinstance(value, list):
        for entry in value:
            models_in(entry, found)
    return list(dict.fromkeys(found))


def layers_in(value: Any) -> int:
    """One past the last layer that is taken."""
    if isinstance(value, dict):
        own = value["layer_range"][1] if "layer_range" in value else 0
        return max([own, *(layers_in(entry) for entry in value.values())])
    return max([0, *(layers_in(entry) for entry in value)]) if isinstance(value, list) else 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("store")


@cache
def model(store: Path, layers: int) -> Path:
    """A Llama of so many layers and a tokenizer."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, WIDTH), "lm_head.weight": (ROWS, WIDTH)}
    for layer in range(layers):
        names = [
            *(f"self_attn.{part}_proj" for part in "qkvo"),
            *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        ]
        shapes |= {f"model.layers.{layer}.{name}.weight": (WIDTH, WIDTH) for name in names}
        shapes |= {f"model.layers.{layer}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (WIDTH,)
    folder = store / f"{layers}-layers"
    folder.mkdir()
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": False, "vocab_size": ROWS}
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"w{row}": row for row in range(ROWS)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


@cache
def adapter(store: Path) -> Path:
    folder = store / "adapter"
    folder.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {"A": np.ones((1, WIDTH), np.float32), "B": np.ones((WIDTH, 1), np.float32)}
    tensors = {f"{module}.lora_{side}.weight": values for side, values in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def planned(path: Path, store: Path, folder: Path) -> Plan:
    """The card with its models' names replaced by those of tiny models, planned."""
    text, config = path.read_text("utf-8"), said(path)
    layers = layers_in(config) or USUAL_LAYERS
    parts = {part.strip(): number > 0 for name in models_in(config) for number, part in enumerate(name.split("+"))}
    for number, (part, is_adapter) in enumerate(sorted(parts.items(), key=lambda row: -len(row[0]))):
        text = text.replace(part, f"tiny{number}_")
        source = adapter(store) if is_adapter else model(store, layers)
        (folder / f"tiny{number}_").mkdir()
        for file in source.iterdir():
            os.link(file, folder / f"tiny{number}_" / file.name)
    return plan(recipes.loads(text, path.name, folder))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_published_file_plans_or_is_refused_by_name(path: Path, store: Path, tmp_path: Path) -> None:
    if path.stem not in REFUSED:
        made = planned(path, store, tmp_path)
        layers = sum(1 for step in made.steps if step.info.name.endswith("self_attn.q_proj.weight"))
        assert layers == (wanted_layers(said(path)) or USUAL_LAYERS)
        assert made.beside.config["num_hidden_layers"] == layers
        return
    with pytest.raises(TaskmergeError) as caught:
        planned(path, store, tmp_path)
    assert any(REFUSED[path.stem] in problem.what for problem in caught.value.problems), str(caught.value)
    assert any((problem.place or "").startswith(path.name) for problem in caught.value.problems)


def wanted_layers(config: dict[str, Any]) -> int:
    """How many layers the output has, 0 where whole models are merged."""
    inside = config.get("modules", {}).get("default", config)
    ranges = [part["sources"][0]["layer_range"] for part in inside.get("slices", [])]
    return sum(end - first for first, end in ranges)


def test_nine_in_ten_published_files_plan() -> None:
    assert len(CARDS) >= 60
    assert set(REFUSED) <= {path.stem for path in CARDS}
    assert 1 - len(REFUSED) / len(CARDS) >= LEAST_SHARE
