"""Specialists that bring modules of their own: shared tensors merged, theirs copied, the result loads as what it is."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo
from tokenizer_files import tokenizer

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.errors import TaskmergeError


def fuse(out: Path, base: Path, specialists: dict[str, Any], **extra: Any) -> fusion.Plan:
    recipe = recipes.from_dict(
        {
            "base": str(base),
            "specialists": {label: {"model": str(folder), "weight": 0.5} for label, folder in specialists.items()},
            "merge": {"method": "task_arithmetic"},
            **extra,
        }
    )
    plan = fusion.plan(recipe)
    fusion.execute(plan, recipe, out)
    return plan


def load(folder: Path, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def values(folder: Path) -> dict[str, np.ndarray]:
    stored = open_stored(folder)
    return {name: stored.read(name) for name in stored.tensors}


@pytest.fixture(scope="module")
def embedding_gemma(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text model; the same with a vision tower; the same with an audio tower; and with both, as a yardstick."""
    root, kind = tmp_path_factory.mktemp("gemma"), zoo.BY_NAME["EmbeddingGemma 2"]
    folders = {}
    for seed, (name, without) in enumerate(
        {"text": ("vision_config", "audio_config"), "vision": ("audio_config",), "audio": ("vision_config",)}.items()
    ):
        own = dataclasses.replace(kind, config={**kind.config, **dict.fromkeys(without)})
        folders[name] = zoo.save(zoo.perturb(own.build(), seed), root / name)
        modality = {"vision": "image_processor", "audio": "feature_extractor"}.get(name)
        if modality:
            (folders[name] / "processor_config.json").write_text(
                json.dumps({modality: {"made_for": name}, "shared": 1})
            )
    return folders


def test_two_grafts_in_one_recipe(embedding_gemma: dict[str, Path], tmp_path: Path) -> None:
    folders = embedding_gemma
    out = tmp_path / "out"
    plan = fuse(out, folders["text"], {"image": folders["vision"], "sound": folders["audio"]})
    merged, parts = values(out), {name: values(folder) for name, folder in folders.items()}
    for name, value in merged.items():
        if name in parts["text"]:
            base = parts["text"][name].astype("f8")
            expected = base + 0.5 * (parts["vision"][name] - base) + 0.5 * (parts["audio"][name] - base)
            np.testing.assert_allclose(value, expected, rtol=2e-7, atol=1e-9, err_msg=name)
        else:
            owner = "vision" if name in parts["vision"] else "audio"
            np.testing.assert_array_equal(value, parts[owner][name], err_msg=name)
    assert set(merged) == set().union(*(set(part) for part in parts.values()))
    assert {step.action for step in plan.steps if step.component == "audio_encoder"} == {"copy"}
    model = load(out, "EmbeddingGemma2Model")
    assert model.config.vision_config is not None and model.config.audio_config is not None
    assert json.loads((out / "processor_config.json").read_text()) == {
        "image_processor": {"made_for": "vision"},
        "feature_extractor": {"made_for": "audio"},
        "shared": 1,
    }
    with torch.no_grad():
        assert torch.isfinite(model(**zoo.text())[0]).all()
    infinite = [name for name, value in merged.items() if np.isinf(value).any()]
    assert infinite and all(name.endswith(("_min", "_max")) for name in infinite)


@pytest.mark.parametrize(("kind", "text_kind"), [("Qwen2-Audio", "Qwen2"), ("LLaVA", "Llama"), ("Voxtral", "Llama")])
def test_a_specialist_of_another_class(kind: str, text_kind: str, tmp_path: Path) -> None:
    """A text model and the multimodal model grown from it: the result is of the multimodal class, under its names."""
    grown, plain = zoo.BY_NAME[kind], zoo.BY_NAME[text_kind]
    base = zoo.save(plain.build(), tmp_path / "base")
    audio = zoo.save(grown.build(seed=1), tmp_path / "audio")
    other = zoo.save(zoo.perturb(plain.build(), 5), tmp_path / "other")
    out = tmp_path / "out"
    fuse(out, base, {"grown": audio, "text": other})
    merged, own, start, text = values(out), values(audio), values(base), values(other)
    assert set(merged) == set(own)
    model = load(out, grown.classes[0])
    assert type(model).__name__ == grown.classes[0]
    q = "layers.1.self_attn.q_proj.weight"
    expected = start[f"model.{q}"].astype("f8")
    expected = expected + 0.5 * (own[f"language_model.model.{q}"] - expected) + 0.5 * (text[f"model.{q}"] - expected)
    np.testing.assert_allclose(merged[f"language_model.model.{q}"], expected, rtol=2e-7, atol=1e-9)
    for name in own:
        if name.startswith(("audio_tower", "vision_tower", "multi_modal_projector")):
            np.testing.assert_array_equal(merged[name], own[name])
    with torch.no_grad():
        model(**grown.inputs())


def test_grafts_of_two_classes_that_call_their_modules_alike_are_refused(tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Llama"].build(), tmp_path / "base")
    image = zoo.save(zoo.BY_NAME["LLaVA"].build(), tmp_path / "image")
    sound = zoo.save(zoo.BY_NAME["Voxtral"].build(), tmp_path / "sound")
    with pytest.raises(TaskmergeError, match="image and sound both have their own 'multi_modal_projector"):
        fuse(tmp_path / "out", base, {"image": image, "sound": sound})
    assert not (tmp_path / "out").exists()


def test_two_specialists_with_the_same_graft_must_be_told_apart(tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME["Qwen2"].build(), tmp_path / "base")
    first = zoo.save(zoo.BY_NAME["Qwen2-Audio"].build(seed=1), tmp_path / "first")
    second = zoo.save(zoo.BY_NAME["Qwen2-Audio"].build(seed=2), tmp_path / "second")
    specialists = {"first": first, "second": second}
    with pytest.raises(TaskmergeError, match="first and second both have their own"):
        fuse(tmp_path / "out", base, specialists)
    fuse(tmp_path / "out", base, specialists, copy={"second": ["audio_encoder", "audio_projector"]})
    name = "audio_tower.layers.0.fc1.weight"
    np.testing.assert_array_equal(values(tmp_path / "out")[name], values(second)[name])


def test_an_adapter_is_a_specialist_named_either_way(tmp_path: Path) -> None:
    import peft

    kind = zoo.BY_NAME["Qwen3"]
    base = zoo.save(kind.build(), tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            kind.build(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
        )
        model.save_pretrained(str(tmp_path / "adapter"))
        zoo.save(model.merge_and_unload(), tmp_path / "merged")
    for number, specialist in enumerate(
        ({"model": "base", "adapter": str(tmp_path / "adapter")}, str(tmp_path / "adapter"))
    ):
        recipe = recipes.from_dict(
            {"base": str(base), "specialists": {"one": specialist}, "merge": {"method": "task_arithmetic"}}
        )
        out = tmp_path / f"out{number}"
        fusion.execute(fusion.plan(recipe), recipe, out)
        for name, value in values(tmp_path / "merged").items():
            np.testing.assert_allclose(values(out)[name], value, rtol=1e-6, atol=1e-7)


def test_copying_a_tower_takes_its_buffers_along(embedding_gemma: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    kind = zoo.BY_NAME["EmbeddingGemma 2"]
    own = dataclasses.replace(kind, config={**kind.config, "vision_config": None})
    zoo.save(zoo.perturb(own.build(), 9), again)
    fuse(
        tmp_path / "out",
        embedding_gemma["text"],
        {"one": embedding_gemma["audio"], "two": again},
        copy={"two": ["audio_encoder", "audio_projector"]},
    )
    name = next(name for name in values(again) if "audio_tower" in name and name.endswith("input_max"))
    np.testing.assert_array_equal(values(tmp_path / "out")[name], values(again)[name])


@pytest.fixture(scope="module")
def audio_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Qwen2 with its tokenizer, and the Qwen2-Audio grown from it: three more tokens, an encoder, a processor."""
    root = tmp_path_factory.mktemp("qwen2_audio")
    words = "a dog cat red blue sound of tone high low".split()
    added = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    plain, grown = tokenizer(words), tokenizer(words, added)
    text_kind, kind = zoo.BY_NAME["Qwen2"], zoo.BY_NAME["Qwen2-Audio"]
    base_config = {**text_kind.config, "vocab_size": len(plain)}
    zoo.save(dataclasses.replace(text_kind, config=base_config).build(), root / "base")
    plain.save_pretrained(root / "base")
    token = grown.convert_tokens_to_ids("<|AUDIO|>")
    text_config = {**kind.config["text_config"], "vocab_size": len(grown)}
    config = {**kind.config, "text_config": text_config, "audio_token_id": token}
    config.pop("audio_token_index")
    zoo.save(dataclasses.replace(kind, config=config).build(seed=1), root / "audio")
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1, n_fft=400, hop_length=160)
    processor = transformers.Qwen2AudioProcessor(extractor, grown, chat_template="{{ messages }}")
    processor.save_pretrained(root / "audio")
    return root / "base", root / "audio"


def test_a_grafted_qwen2_audio_listens(audio_pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, audio = audio_pair
    out = tmp_path / "out"
    fuse(out, base, {"audio": audio})
    model = load(out, "Qwen2AudioForConditionalGeneration")
    processor = transformers.AutoProcessor.from_pretrained(out)
    assert model.config.audio_token_id == processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    sound = np.random.default_rng(0).standard_normal(8000).astype("f4")
    said = "a dog <|audio_bos|> <|AUDIO|> <|audio_eos|>"
    inputs = processor(text=said, audio=sound, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    own, merged, start = values(audio), values(out), values(base)
    width = 32
    table, theirs = (v["language_model.model.embed_tokens.weight"].reshape(-1, width) for v in (merged, own))
    first = start["model.embed_tokens.weight"].reshape(-1, width)
    np.testing.assert_array_equal(table[len(first) :], theirs[len(first) :])  # new tokens: the specialist's rows
    expected = first + 0.5 * (theirs[: len(first)].astype("f8") - first)
    np.testing.assert_allclose(table[: len(first)], expected, rtol=2e-7, atol=1e-9)


def test_a_tied_specialist_lends_its_table_to_an_untied_base(tmp_path: Path) -> None:
    kind = zoo.BY_NAME["Qwen3"]
    base = zoo.save(kind.build(), tmp_path / "base")
    tied = zoo.save(kind.build(seed=1, variant="tied"), tmp_path / "tied")
    fuse(tmp_path / "out", base, {"tied": tied})
    start, own, merged = values(base), values(tied), values(tmp_path / "out")
    assert "lm_head.weight" not in own
    expected = start["lm_head.weight"].astype("f8")
    expected = expected + 0.5 * (own["model.embed_tokens.weight"] - expected)
    np.testing.assert_allclose(merged["lm_head.weight"], expected, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("kind_name", ["Qwen2", "Qwen3", "Llama", "Mistral", "Gemma 3 text"])
def test_tied_heads_stay_tied(kind_name: str, tmp_path: Path) -> None:
    kind = zoo.BY_NAME[kind_name]
    base, one = (zoo.save(kind.build(seed=seed, variant="tied"), tmp_path / str(seed)) for seed in (0, 1))
    fuse(tmp_path / "out", base, {"one": one})
    model = load(tmp_path / "out", kind.classes[0])
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("kind", "text_kind"), [("Qwen2-Audio", "Qwen2"), ("LLaVA", "Llama"), ("Gemma 3", "Gemma 3 text")]
)
def test_a_text_specialist_moves_the_backbone_of_a_multimodal_base(kind: str, text_kind: str, tmp_path: Path) -> None:
    base = zoo.save(zoo.BY_NAME[kind].build(), tmp_path / "base")
    text = zoo.save(zoo.BY_NAME[text_kind].build(seed=1), tmp_path / "text")
    plan = fuse(tmp_path / "out", base, {"text": text})
    merged, start, own = values(tmp_path / "out"), values(base), values(text)
    assert set(merged) == set(start)
    for name, value in merged.items():
        theirs = own.get(name.removeprefix("language_model."))
        if theirs is None:
            np.testing.assert_array_equal(value, start[name], err_msg=name)
        else:
            expected = start[name].astype("f8") + 0.5 * (theirs - start[name].astype("f8"))
            np.testing.assert_allclose(value, expected, rtol=2e-7, atol=1e-9, err_msg=name)
    kept = {step.component for step in plan.steps if step.action == "keep"}
    assert kept and kept <= {"vision_encoder", "audio_encoder", "vision_projector", "audio_projector", "buffers"}
    load(tmp_path / "out", zoo.BY_NAME[kind].classes[0])
