"""Cards of models of every kind: what the hub reads, read by its own library; and code that runs as it stands."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from omni_models import tiny_backbone

from taskmerge.checkpoints.cards.card import Card, Score, card, kept_card, kept_in
from taskmerge.checkpoints.cards.kinds import in_folder, kind_of
from taskmerge.checkpoints.output.record import new_record

HUB: dict[str, Any] = {
    "base": {"source": "org/base", "commit": "0" * 40, "declared": [{"models": ["org/base"], "how": "hub"}]}
}


def made(folder: Path, kind: Any = "fused", stage: str = "fuse", **more: Any) -> Card:
    scores = more.pop("scores", ())
    record = new_record(kind, stage, more.pop("inputs", HUB), **more)
    return card(str(folder), record, in_folder(folder), scores=scores)


def code_of(text: str) -> str:
    found = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert found is not None
    return found[1]


def run_code(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(compile(code_of(text), "card", "exec"), {})
    return capsys.readouterr().out


def _network(folder: Path, class_name: str) -> None:
    import transformers

    tiny_backbone(folder, causal=class_name.startswith("Llama"))
    torch.manual_seed(0)
    loaded = getattr(transformers, class_name).from_pretrained(folder)
    loaded.save_pretrained(folder)


def _whisper(folder: Path) -> None:
    import zoo
    from transformers import WhisperFeatureExtractor

    model = zoo.BY_NAME["Whisper"].build()
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=1).save_pretrained(folder)


def _sentence(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import sentence_transformers as library
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        inside = tiny_backbone(folder.with_name(folder.name + "-network"))
        if kind == "CrossEncoder":
            library.CrossEncoder(str(inside), num_labels=1, device="cpu").save_pretrained(str(folder))
        elif kind == "SparseEncoder":
            from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
            from transformers import BertForMaskedLM

            BertForMaskedLM.from_pretrained(inside).save_pretrained(inside)
            parts: list[Any] = [MLMTransformer(str(inside)), SpladePooling("max")]
            library.SparseEncoder(modules=parts, device="cpu").save_pretrained(str(folder))
        else:
            parts = [Transformer(str(inside)), Pooling(32, "mean")]
            library.SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder))

    return make


def _graft(folder: Path) -> None:
    from taskmerge.embedders import graft

    graft(tiny_backbone(folder.with_name("backbone")), "image", "patches", "linear", folder)


KINDS: dict[str, tuple[Callable[[Path], None], str | None, str | None, str]] = {
    "bert": (lambda folder: _network(folder, "BertModel"), "transformers", "feature-extraction", "torch.Size"),
    "classifier": (lambda folder: _network(folder, "BertForSequenceClassification"), "transformers",
                   "text-classification", "LABEL_"),
    "masked": (lambda folder: _network(folder, "BertForMaskedLM"), "transformers", "fill-mask", "torch.Size"),
    "tokens": (lambda folder: _network(folder, "BertForTokenClassification"), "transformers", "token-classification",
               "torch.Size"),
    "causal": (lambda folder: _network(folder, "LlamaForCausalLM"), "transformers", "text-generation", ""),
    "sentences": (_sentence("SentenceTransformer"), "sentence-transformers", "sentence-similarity", "tensor"),
    "cross-encoder": (_sentence("CrossEncoder"), "sentence-transformers", "text-ranking", "["),
    "sparse": (_sentence("SparseEncoder"), "sentence-transformers", "feature-extraction", "tensor"),
    "graft": (_graft, "sentence-transformers", "sentence-similarity", "tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_code_of_every_kind_runs(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, library, pipeline, printed = KINDS[name]
    make(tmp_path / name)
    text = made(tmp_path / name).text
    data: Any = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == (library, pipeline)
    assert data.base_model == ["org/base"] and data.to_dict()["base_model_relation"] == "merge"
    assert printed in run_code(text, capsys)


@pytest.mark.parametrize(
    ("config", "library", "pipeline"),
    [
        ({"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"],
          "text_config": {"vocab_size": 9}, "vision_config": {"depth": 2}}, "transformers", "image-text-to-text"),
        ({"model_type": "qwen2_audio", "architectures": ["Qwen2AudioForConditionalGeneration"],
          "text_config": {}, "audio_config": {"d_model": 4}}, "transformers", "audio-text-to-text"),
        ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": 9},
         "transformers", "automatic-speech-recognition"),
        ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}, "transformers",
         "automatic-speech-recognition"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 9}, "transformers", None),
        ({"model_type": "vit", "architectures": ["ViTModel"], "image_size": 8}, "transformers",
         "image-feature-extraction"),
        ({"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": {}}, "transformers",
         "zero-shot-image-classification"),
        ({"model_type": "llama"}, "transformers", None),
        ({"model_type": "hearing", "architectures": ["HearingModel"]}, None, None),
        ({"model_type": "bert", "architectures": ["MyOwnBertModel"]}, None, None),
        ({"model_type": "own", "architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.OwnModel"},
          "vocab_size": 9}, "transformers", "feature-extraction"),
        ({"model_type": "../../etc", "architectures": ["X(import os)"]}, None, None),
        ({"architectures": 3}, None, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_what_a_config_says_and_what_it_leaves_open(
    tmp_path: Path, config: dict[str, Any], library: str | None, pipeline: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    kind = kind_of(in_folder(tmp_path), "fused")
    assert (kind.library, kind.pipeline) == (library, pipeline)
    data = ModelCard(made(tmp_path).text).data.to_dict()
    assert data.get("library_name") == library and data.get("pipeline_tag") == pipeline


def test_a_speech_model_hears_a_second_of_silence(tmp_path: Path) -> None:
    """Its tokenizer needs a vocabulary of thousands; that the code loads model and features is run here."""
    _whisper(tmp_path)
    text = code_of(made(tmp_path).text)
    assert "from transformers import AutoProcessor, WhisperForConditionalGeneration" in text
    assert compile(text, "card", "exec")


def test_adapters_and_task_vectors_say_what_they_are_added_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertModel

    from taskmerge import Checkpoint

    base = tiny_backbone(tmp_path / "base")
    model = BertModel.from_pretrained(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder" in name:
                parameter.add_(0.01 * torch.randn_like(parameter))
    shutil.copytree(base, tmp_path / "one")
    model.save_pretrained(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    vector = Checkpoint.open("one") - Checkpoint.open("base")
    for out, kind, library, pipeline in (
        ("adapter", "adapter", "peft", None), ("vector", "task vector", None, None),
    ):  # fmt: skip
        vector.save_lora(out, 2, base_name="base") if kind == "adapter" else vector.save(out)
        record = json.loads((tmp_path / out / "taskmerge.json").read_text())
        text = card(out, record, in_folder(tmp_path / out)).text
        data = ModelCard(text).data.to_dict()
        assert (data.get("library_name"), data.get("pipeline_tag")) == (library, pipeline)
        run_code(text, capsys)
    assert (tmp_path / "model-with-task-vector" / "model.safetensors").is_file()


def test_names_are_text(tmp_path: Path) -> None:
    evil = "x](http://evil) <img src=x> `|` \n# Heading ---"
    inputs = {
        evil: {"source": evil, "declared": [{"license": "mit"}]},
        "b": {"source": "b", "declared": [{"license": evil}]},
    }
    text = card(evil, new_record("fused", "fuse", inputs, recipe="```\n# out\n"), in_folder(tmp_path)).text
    body = text.split("\n---\n", 1)[1]
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", body, flags=re.DOTALL)
    assert "<img" not in re.sub(r"\\.", "", outside) and "\n# Heading" not in body.replace("\\n", "")
    assert "](" not in re.sub(r"\\.", "", outside)
    assert ModelCard(text).data.to_dict()["tags"] == ["merge", "taskmerge"]


def test_scores_stand_in_the_model_index(tmp_path: Path) -> None:
    scores = [Score("dev set", "recall_at_1", 0.25, "recall_at_1, item to text"), Score("dev set", "mrr", 0.5, "mrr")]
    found: Any = ModelCard(made(tmp_path, scores=scores).text).data
    assert found.eval_results is not None
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in found.eval_results] == [
        ("dev set", "recall_at_1", 0.25), ("dev set", "mrr", 0.5),
    ]  # fmt: skip


def test_the_card_of_the_base_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Base\n\n```\ncode\n```\nlast")
    kept = kept_card(tmp_path)
    assert kept == "# Base\n\n```\ncode\n```\nlast"
    text = card("out", new_record("fused", "fuse", HUB), in_folder(tmp_path), kept=kept).text
    assert kept_in(text) == kept and "> # Base\n>\n> ```\n" in text
    assert len(re.findall("license", text)) == 0, "its YAML is not ours"
    long = card("out", new_record("fused", "fuse", HUB), in_folder(tmp_path), kept="word " * 9000 + "\nend\n").text
    assert "The rest is left out here" in long and len(long) < 30_000


def test_a_base_of_ours_without_a_card_is_fused(tmp_path: Path) -> None:
    """What `Checkpoint.save` and `extract` write has a record and no README."""
    from taskmerge import Checkpoint, recipes
    from taskmerge.merging import execute, plan

    Checkpoint.open({"w": torch.ones(4)}).save(tmp_path / "base")
    text = "base: base\nspecialists: {a: base}\noutput: {path: out}\n"
    recipe = recipes.loads(text, "recipe.yaml", tmp_path)
    execute(plan(recipe), recipe, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file() and not (tmp_path / "base" / "README.md").exists()
