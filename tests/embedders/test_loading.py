"""Opening an embedder: what it takes, what it refuses, and that nothing in it starts from random numbers."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import qwen2_audio, sounds, tiny_grafted
from live_models import MAKERS, save
from omni_models import tiny_backbone
from safetensors.torch import load_file, save_file

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.embedders import Embedder, graft, open_embedder
from taskmerge.errors import CheckpointError, UsageError
from taskmerge.measuring.evaluation import evaluate_retrieval

Tensors = dict[str, torch.Tensor]
TEXTS = ["a dog", "sound of rain", "high tone"]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a random BERT of 2 layers, mean pooling."""
    from sentence_transformers import SentenceTransformer

    home = tmp_path_factory.mktemp("text")
    SentenceTransformer(str(tiny_backbone(home / "plain")), device="cpu").save_pretrained(str(home / "model"))
    return home / "model"


def changed(source: Path, out: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a folder with other tensors in its file."""
    shutil.copytree(source, out)
    tensors = change(load_file(source / "model.safetensors"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def with_other_names(tensors: Tensors) -> Tensors:
    return {f"t{place}": tensor for place, tensor in enumerate(tensors.values())}


def without_last_layer(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}


def with_another_layer(tensors: Tensors) -> Tensors:
    more = {name.replace("layer.1.", "layer.2."): tensor.clone() for name, tensor in tensors.items()}
    return {**more, **tensors}


def with_a_projector(tensors: Tensors) -> Tensors:
    return {**tensors, "audio_projector.weight": torch.zeros(32, 8)}


@pytest.mark.parametrize("folder", ["model", "plain"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            with_other_names,
            r"tensors are missing from the file of this BertModel: embeddings\.LayerNorm\.bias.* and \d+ more",
        ),
        (with_other_names, r"\d\d tensors in the file have no counterpart in BertModel: t0"),
        (without_last_layer, r"16 tensors are missing from the file of this BertModel: encoder\.layer\.1\."),
        (with_another_layer, r"16 tensors in the file have no counterpart in BertModel: encoder\.layer\.2\."),
        (with_a_projector, r"1 tensor in the file has no counterpart in BertModel: audio_projector\.weight"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(
    text_model: Path, tmp_path: Path, folder: str, change: Callable[[Tensors], Tensors], words: str
) -> None:
    broken = changed(text_model.parent / folder, tmp_path / "broken", change)
    with pytest.raises(CheckpointError, match=words) as told:
        open_embedder(broken)
    assert str(broken) in str(told.value) and "taskmerge inspect" in str(told.value)
    assert len(str(told.value).splitlines()) <= 20
    with pytest.raises(CheckpointError, match=words):
        graft(broken, "audio", "log_mel")


def test_measuring_refuses_it_too(text_model: Path, tmp_path: Path) -> None:
    broken = changed(text_model, tmp_path / "broken", with_other_names)
    pairs = [{"query": text, "text": text} for text in TEXTS]
    with pytest.raises(CheckpointError, match="are missing from the file"):
        evaluate_retrieval({"broken": broken}, {"pairs": pairs})


def test_another_shape_is_told_in_one_line(text_model: Path, tmp_path: Path) -> None:
    def wider(tensors: Tensors) -> Tensors:
        return {**tensors, "embeddings.LayerNorm.weight": torch.ones(48)}

    with pytest.raises(CheckpointError, match="the embedder cannot be loaded"):
        open_embedder(changed(text_model, tmp_path / "broken", wider))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "pooler" not in name},
        lambda tensors: {**tensors, "cls.predictions.transform.dense.weight": torch.zeros(32, 32)},
        lambda tensors: {**tensors, "lm_head.weight": torch.zeros(18, 32)},
        lambda tensors: {**tensors, "embeddings.position_ids": torch.arange(64)[None]},
        lambda tensors: {**tensors, "quantizer.codevectors": torch.zeros(1, 4)},
        lambda tensors: {f"bert.{name}": tensor for name, tensor in tensors.items()},
    ],
    ids=[
        "no pooler",
        "masked language head",
        "output head",
        "old buffer",
        "pretraining",
        "prefix of a headed class",
    ],
)
def test_heads_and_buffers_may_come_and_go(text_model: Path, tmp_path: Path, change: Any, caplog: Any) -> None:
    """The embeddings are those of the whole file, and transformers' own table of the difference is not printed."""
    with caplog.at_level(logging.WARNING):
        other = open_embedder(changed(text_model, tmp_path / "other", change))
    assert "LOAD REPORT" not in caplog.text
    np.testing.assert_array_equal(other.encode(TEXTS), open_embedder(text_model).encode(TEXTS))


def test_from_pretrained_is_as_it_was(text_model: Path, tmp_path: Path) -> None:
    from transformers import BertModel, PreTrainedModel

    before = PreTrainedModel.__dict__["from_pretrained"]
    with pytest.raises(CheckpointError):
        open_embedder(changed(text_model, tmp_path / "broken", with_other_names))
    assert PreTrainedModel.__dict__["from_pretrained"] is before
    assert isinstance(BertModel.from_pretrained(tmp_path / "broken"), BertModel)


def test_an_adapter_folder_opens_on_its_base(text_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    network = get_peft_model(
        AutoModel.from_pretrained(text_model.parent / "plain"), LoraConfig(r=2, target_modules=["query"])
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    network.save_pretrained(str(tmp_path / "adapter"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text_model.parent / "plain" / file, tmp_path / "adapter" / file)
    plain = SentenceTransformer(str(tmp_path / "adapter"), device="cpu")
    np.testing.assert_array_equal(open_embedder(tmp_path / "adapter").encode(TEXTS), plain.encode(TEXTS))


# ------------------------------------------------------------------------------------------------- what it takes


def test_a_loaded_model_is_used_in_place_and_an_embedder_comes_back(text_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(text_model), device="cpu")
    embedder = open_embedder(model)
    assert embedder.module is model
    assert open_embedder(embedder) is embedder
    assert isinstance(embedder, Embedder)
    np.testing.assert_array_equal(embedder.encode(TEXTS), model.encode(TEXTS))
    assert open_embedder(embedder, dtype=torch.bfloat16).dtype == next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("thing", [3, torch.nn.Linear(2, 2), {"a": 1}])
def test_what_is_no_model_is_told(thing: Any) -> None:
    with pytest.raises(UsageError, match=rf"a {type(thing).__name__} is not an embedder\n    give a folder"):
        open_embedder(thing)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "7:7"])
def test_a_device_that_is_not_there_is_told_first(device: str) -> None:
    with pytest.raises(UsageError, match=f"'{device}'.*\n    write cpu, cuda, cuda:1 or mps; `taskmerge doctor`"):
        open_embedder("nowhere", device=device)


def test_the_class_of_a_graft_has_one_address_for_good(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    import taskmerge

    model = tiny_grafted(tmp_path)
    path = tmp_path / "grafted" / "modules.json"
    rows = json.loads(path.read_text())
    assert rows[0]["type"] == "taskmerge.OmniEmbedder"
    assert type(model[0]) is taskmerge.OmniEmbedder
    items = [pair["audio"] for pair in sounds(3)]
    for address in (
        "taskmerge.OmniEmbedder", "taskmerge.omni.embedder.OmniEmbedder", "taskmerge.embedders.embedder.OmniEmbedder"
    ):  # fmt: skip
        rows[0]["type"] = address
        path.write_text(json.dumps(rows))
        trusted = SentenceTransformer(str(path.parent), trust_remote_code=True, device="cpu")
        np.testing.assert_array_equal(open_embedder(path.parent).encode(items), model.encode(items))
        np.testing.assert_array_equal(trusted.encode(items), model.encode(items))


# ------------------------------------------------------------------------------------------------ names of tensors


def test_weights_have_the_names_of_the_file(tmp_path: Path, text_model: Path) -> None:
    qwen2_audio(tmp_path / "qwen")
    tiny_grafted(tmp_path)
    for folder in (text_model, tmp_path / "grafted", tmp_path / "qwen"):
        stored, weights = open_stored(folder), open_embedder(folder).state_dict
        assert not [name for name in weights.tensors if name not in stored.tensors]
        left = [name for name in stored.tensors if name not in weights.tensors]
        assert left == (["language_model.lm_head.weight"] if folder.name == "qwen" else []), folder
        for name, info in weights.tensors.items():
            assert info == stored.tensors[name]
            np.testing.assert_array_equal(weights.read(name), stored.read(name))


def test_writing_to_weights_changes_the_model(text_model: Path) -> None:
    embedder = open_embedder(text_model)
    before = embedder.encode(TEXTS)
    with torch.no_grad():
        embedder.state_dict.values["encoder.layer.0.output.dense.weight"].mul_(3)
    assert np.abs(embedder.encode(TEXTS) - before).max() > 1e-3


def test_modules_behind_the_first_are_under_their_folders(text_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    from taskmerge.training import TrainingSettings, specialize

    model = SentenceTransformer(str(text_model), device="cpu")
    model.append(Dense(32, 8))
    model.save_pretrained(str(tmp_path / "dense"))
    for opened in (open_embedder(tmp_path / "dense"), open_embedder(model)):
        assert {"2_Dense/linear.weight", "2_Dense/linear.bias"} <= set(opened.state_dict.tensors)
        assert opened.dimension == 8
    pairs = [{"query": text, "text": text[::-1]} for text in "a dog cat bird rain sound of high".split()]
    embedder = open_embedder(tmp_path / "dense")
    head = embedder.state_dict.values["2_Dense/linear.weight"].detach().clone()
    report = specialize(embedder, pairs, ["backbone"], TrainingSettings(steps=2, batch_size=4, learning_rate=1e-2))
    assert torch.equal(embedder.state_dict.values["2_Dense/linear.weight"], head)  # it was not asked for
    assert report.trained + report.frozen == len(embedder.state_dict.tensors)


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder"])
def test_a_model_of_another_kind_is_not_run_as_an_embedder(tmp_path: Path, kind: str) -> None:
    """sentence-transformers would convert it, and its scores would be those of a mean over its tokens."""
    import sentence_transformers

    backbone = str(tiny_backbone(tmp_path / "backbone"))
    made = MAKERS[kind](tmp_path) if kind in MAKERS else getattr(sentence_transformers, kind)(backbone, device="cpu")
    with pytest.raises(CheckpointError, match=f"is a {kind} of sentence-transformers"):
        open_embedder(save(made, tmp_path / "model"))
