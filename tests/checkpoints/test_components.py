"""Components from names and config alone, against what transformers' own module accessors say of the live model."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import zoo

from taskmerge.checkpoints.components import component_map, layer_index
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import MergeError
from taskmerge.numbers.dtypes import BY_TORCH_NAME


def headers(state: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")].name, tuple(tensor.shape))
        for name, tensor in state.items()
    }


def names_only(*names: str) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", (4,)) for name in names}


# Heads that stand inside what transformers calls the base model.
HEADS = ("logit_", "embedding_proj_layer", "pooler.")


def path_of(model: torch.nn.Module, module: torch.nn.Module | None) -> str | None:
    return next((path for path, own in model.named_modules() if own is module), None)


# What transformers' accessors do not say, by module path: where each class keeps the modules beside the decoder.
TOWERS = {
    "clip": {
        "vision_model": "vision_encoder",
        "visual_projection": "vision_projector",
        "text_projection": "text_projector",
    },
    "siglip": {"vision_model": "vision_encoder"},
    "clap": {
        "audio_model": "audio_encoder",
        "audio_projection": "audio_projector",
        "text_projection": "text_projector",
    },
    "whisper": {"encoder": "audio_encoder"},
    "llava": {"multi_modal_projector": "vision_projector"},
    "gemma3": {"multi_modal_projector": "vision_projector"},
    "qwen2_vl": {"visual.merger": "vision_projector"},
    "qwen2_5_vl": {"visual.merger": "vision_projector"},
    "qwen3_vl": {"visual.merger": "vision_projector", "visual.deepstack_merger_list": "vision_projector"},
    "colqwen2": {"visual": "vision_encoder", "visual.merger": "vision_projector"},
    "qwen2_audio": {"multi_modal_projector": "audio_projector"},
    "voxtral": {"multi_modal_projector": "audio_projector"},
    "audioflamingo3": {"multi_modal_projector": "audio_projector"},
    "qwen2_5_omni_thinker": {
        "audio_tower.proj": "audio_projector",
        "audio_tower.ln_post": "audio_projector",
        "visual.merger": "vision_projector",
    },
    "qwen3_omni_moe_thinker": {
        "audio_tower.proj1": "audio_projector",
        "audio_tower.proj2": "audio_projector",
        "audio_tower.ln_post": "audio_projector",
        "visual.merger": "vision_projector",
        "visual.merger_list": "vision_projector",
    },
    "embedding_gemma2": {"embed_audio": "audio_projector", "embed_vision": "vision_projector"},
    "phi4_multimodal": {
        "embed_tokens_extend.audio_embed": "audio_encoder",
        "embed_tokens_extend.audio_embed.up_proj_for_speech": "audio_projector",
        "embed_tokens_extend.audio_embed.down_proj_for_speech": "audio_projector",
        "embed_tokens_extend.audio_embed.up_proj_for_vision_speech": "audio_projector",
        "embed_tokens_extend.audio_embed.down_proj_for_vision_speech": "audio_projector",
        "embed_tokens_extend.image_embed": "vision_encoder",
        "embed_tokens_extend.image_embed.img_projection_up": "vision_projector",
        "embed_tokens_extend.image_embed.img_projection_down": "vision_projector",
    },
}


def truth(model: Any) -> dict[str, str]:
    """Component by module identity: buffers, input embeddings, encoders, decoder, base model, in that order."""
    base = path_of(model, model.base_model) or ""
    rows = dict(TOWERS.get(model.config.model_type, {}))
    placed = {}
    for modality, component in (("audio", "audio_encoder"), ("image", "vision_encoder")):
        try:
            encoder = model.get_encoder(modality)
        except (TypeError, AttributeError):
            continue
        path = path_of(model, encoder)
        if encoder is not None and path not in (None, "", base) and encoder is not model.get_decoder():
            placed[path] = component
    for path, component in rows.items():
        inner = base if not path_of_exists(model, path) else ""
        placed[f"{inner}.{path}" if inner else path] = component
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tables = token_tables(model)
    roles = {}
    for name in model.state_dict():
        inside = [path for path in placed if name.startswith(path + ".")]
        if name not in parameters:
            roles[name] = "buffers"
        elif name in tables:
            roles[name] = "embeddings"
        elif inside:
            roles[name] = placed[max(inside, key=len)]
        elif (base and not name.startswith(base + ".")) or name.startswith(HEADS):
            roles[name] = "head"
        else:
            roles[name] = "backbone"
    return roles


def path_of_exists(model: torch.nn.Module, path: str) -> bool:
    return any(own == path for own, _ in model.named_modules())


def token_tables(model: torch.nn.Module) -> set[str]:
    """Every name of every embedding module with one row per token of the vocabulary."""
    return {
        f"{path}.weight"
        for path, own in model.named_modules(remove_duplicate=False)
        if isinstance(own, torch.nn.Embedding) and own.num_embeddings == zoo.VOCABULARY
    }


CASES = [(kind, name) for kind in zoo.KINDS for name in kind.classes]


@pytest.mark.parametrize(("kind", "class_name"), CASES, ids=lambda value: getattr(value, "name", value))
def test_agrees_with_the_live_model(kind: zoo.Kind, class_name: str) -> None:
    model = kind.build(class_name)
    found = component_map(headers(model.state_dict()), model.config.to_dict())
    expected = truth(model)
    assert dict(found) == expected
    assert "backbone" in found.values()


def test_words_inside_words_are_no_projectors() -> None:
    found = component_map(
        names_only(
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.out_proj.weight",
            "model.layers.0.mlp.vision_gate.weight",
            "model.connectors.weight",
        )
    )
    assert set(found.values()) == {"backbone"}


def test_a_projector_of_numbered_layers_does_not_name_the_backbone() -> None:
    names = ["audio_projector.layers.0.weight", "backbone.embeddings.LayerNorm.weight",
             "backbone.encoder.layer.0.output.dense.weight"]  # fmt: skip
    found = component_map({name: TensorInfo(name, "F32", (2, 2)) for name in names}, {"model_type": "taskmerge_omni"})
    assert [found[name] for name in names] == ["audio_projector", "backbone", "backbone"]


def test_a_flamingo_of_two_towers_tells_its_projectors_apart() -> None:
    found = component_map(
        names_only(
            "model.language_model.layers.0.mlp.weight",
            "model.audio_tower.layers.0.mlp.weight",
            "model.vision_tower.layers.0.mlp.weight",
            "model.audio_projector.weight",
            "model.visual_projector.weight",
            "model.multi_modal_projector.weight",
        ),
        {"audio_config": {}, "vision_config": {}},
    )
    assert list(found.values()) == [
        "backbone",
        "audio_encoder",
        "vision_encoder",
        "audio_projector",
        "vision_projector",
        "projector",
    ]


LAYER = "model.language_model.layers.0.mlp.weight"
EXCEPTIONS: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "Granite speech": (
        {"model_type": "granite_speech"},
        {"model.encoder.layers.0.ff.weight": "audio_encoder", "model.projector.linear.weight": "audio_projector"},
    ),
    "SmolVLM": (
        {"model_type": "smolvlm", "vision_config": {}},
        {"model.connector.modality_projection.proj.weight": "vision_projector"},
    ),
    "BLIP-2": (
        {"model_type": "blip-2", "vision_config": {}, "qformer_config": {}},
        {"query_tokens": "vision_projector", "qformer.encoder.layer.0.dense.weight": "vision_projector"},
    ),
    "Kosmos-2": (
        {"model_type": "kosmos-2", "vision_config": {}},
        {"image_to_text_projection.dense.weight": "vision_projector", "text_model.lm_head.weight": "head"},
    ),
    "Ovis 2": (
        {"model_type": "ovis2", "vision_config": {}},
        {"model.visual_embeddings_table.weight": "vision_projector"},
    ),
    "Janus": (
        {"model_type": "janus", "vision_config": {}},
        {
            "model.vqmodel.encoder.mid.attn_1.proj_out.weight": "image_decoder",
            "model.generation_head.proj_out.weight": "image_decoder",
            "model.aligner.fc1.weight": "vision_projector",
        },
    ),
    "Moonshine": (
        {"model_type": "moonshine"},
        {"model.encoder.layers.0.mlp.fc1.weight": "audio_encoder", "proj_out.weight": "head"},
    ),
    "ALBERT": ({"model_type": "albert"}, {"predictions.dense.weight": "head"}),
    "BART": ({"model_type": "bart"}, {"final_logits_bias": "buffers", "model.shared.weight": "embeddings"}),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_classes_with_names_of_their_own(name: str) -> None:
    config, expected = EXCEPTIONS[name]
    found = component_map(names_only(*expected, LAYER), config)
    assert {own: found[own] for own in expected} == expected


def test_full_omni_checkpoints_set_the_speaking_half_apart() -> None:
    found = component_map(
        names_only(
            "thinker.model.layers.0.mlp.weight",
            "thinker.audio_tower.proj.weight",
            "talker.model.layers.0.mlp.weight",
            "token2wav.code2wav_dit_model.layers.0.weight",
        )
    )
    assert list(found.values()) == ["backbone", "audio_projector", "speech_decoder", "speech_decoder"]


def test_inner_names_and_depth_do_not_depend_on_who_saved() -> None:
    full = zoo.BY_NAME["Qwen3-VL"]
    inner = []
    for class_name in full.classes:
        model = full.build(class_name)
        found = component_map(headers(model.state_dict()), model.config.to_dict())
        assert found.depth("backbone") == 2
        inner.append({f"{found[name]}.{found.inner_name(name)}" for name in found if found[name] != "head"})
    assert inner[0] == inner[1]
    assert "backbone.layers.0.self_attn.q_proj.weight" in inner[0]
    assert "vision_encoder.blocks.1.attn.qkv.weight" in inner[0]


def test_layer_index() -> None:
    assert layer_index("bert.encoder.layer.3.output.dense.weight") == 3
    assert layer_index("model.layers.12.mlp.experts.5.up_proj.weight") == 12
    assert layer_index("feature_extractor.conv_layers.1.conv.weight") is None
    assert layer_index("lm_head.weight") is None


def test_buffers_remember_the_module_that_holds_them() -> None:
    model = zoo.BY_NAME["EmbeddingGemma 2"].build()
    found = component_map(headers(model.state_dict()), model.config.to_dict())
    bounds = [name for name in found if name.endswith("input_max")]
    assert bounds and all(found[name] == "buffers" for name in bounds)
    assert {found.home(name) for name in bounds} <= {"audio_encoder", "vision_encoder"}


def test_overrides_win_and_must_match() -> None:
    tensors = names_only("model.layers.0.mlp.weight", "model.my_bridge.weight")
    found = component_map(tensors, {}, {"audio_projector": ["model.my_bridge.*"]})
    assert found["model.my_bridge.weight"] == "audio_projector"
    assert found["model.layers.0.mlp.weight"] == "backbone"
    with pytest.raises(MergeError, match="'model.bridge.*' matches no tensor".replace("*", r"\*")):
        component_map(tensors, {}, {"audio_projector": ["model.bridge.*"]})


def test_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, taskmerge.checkpoints.components; print({'torch', 'transformers', 'numba'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "set()"
