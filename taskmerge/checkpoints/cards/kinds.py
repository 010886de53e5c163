"""The kind of model in a folder, in the hub's terms: the library that loads it, and its task.

It is decided by the files in the folder and the class in the config; everything that they do not state is left open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.config_sections import sections
from taskmerge.checkpoints.lineage.classes import class_name
from taskmerge.words.json_text import JsonError, load
from taskmerge.words.modalities import tower_in

ReadFile = Callable[[str], Any]
"""Name of a file of the folder -> what its JSON holds; True for a file that is not JSON; None where there is none."""

_LARGEST = 16 << 20
"""Bytes of a file that is parsed for its kind; of a larger one (a tokenizer) that it is there is enough."""

SENTENCE_TRANSFORMERS = "sentence-transformers"
TRANSFORMERS = "transformers"
PEFT = "peft"

_OF_HEADS: tuple[tuple[str, str], ...] = (
    (r"ForCausalLM|LMHeadModel", "text-generation"),
    (r"ForSequenceClassification", "text-classification"),
    (r"ForTokenClassification", "token-classification"),
    (r"ForQuestionAnswering", "question-answering"),
    (r"ForMaskedLM", "fill-mask"),
    (r"ForCTC|ForSpeechSeq2Seq", "automatic-speech-recognition"),
    (r"ForImageClassification", "image-classification"),
    (r"ForAudioClassification", "audio-classification"),
    (r"ForObjectDetection", "object-detection"),
    (r"ForDepthEstimation", "depth-estimation"),
)
_SPEECH = ("whisper", "speech_to_text", "moonshine")
_CONTRASTIVE = ("clip", "siglip", "siglip2", "chinese_clip", "altclip", "align", "metaclip_2")
_OF_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""peft's task_type -> the hub's task; one that says nothing of it (SEQ_2_SEQ_LM) has none."""


def reading(small: Callable[[str], bytes | None]) -> ReadFile:
    """Return what reads files for `kind_of`. small: name -> the bytes of a file, None if it is missing."""

    def read(name: str) -> Any:
        data = small(name)
        if data is None:
            return None
        if not name.endswith(".json") or len(data) > _LARGEST:
            return True
        try:
            return load(data)
        except JsonError:
            return True

    return read


def in_folder(folder: Path) -> ReadFile:
    """Return what reads files of a folder for `kind_of`; a link may not leave it."""

    def small(name: str) -> bytes | None:
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            return None
        return path.read_bytes() if path.stat().st_size <= _LARGEST else b""

    return reading(small)


@dataclass(frozen=True)
class Kind:
    """library: as the hub names it, None where no library but this one loads it.  pipeline: the hub's task, None where
    nothing says it.  loader: the class that loads it.  trust: whether that runs code of the folder.  texts, media:
    whether a tokenizer, a processor is there.  config: the model's."""

    library: str | None
    pipeline: str | None = None
    loader: str | None = None
    trust: bool = False
    texts: bool = False
    media: bool = False
    config: Mapping[str, Any] | None = None


def kind_of(read: ReadFile, record_kind: str, architecture: str | None = None) -> Kind:
    """Return the kind of a model whose files `read` reads.

    record_kind: what the record says the folder is.  architecture: of an adapter's base, as its config names it.
    """
    if record_kind == "task vector":
        return Kind(None)
    if record_kind == "adapter":
        return _adapter(_table(read, "adapter_config.json"), architecture)
    return _of_sentence_transformers(read) or _transformers(read, _table(read, "config.json"))


def loader_of(folder: Path) -> str | None:
    """The class of sentence-transformers that loads a folder; None for a folder that it did not save."""
    kind = _of_sentence_transformers(in_folder(folder))
    return None if kind is None else kind.loader


def _of_sentence_transformers(read: ReadFile) -> Kind | None:
    modules = read("modules.json")
    if isinstance(modules, list) and modules:
        return _sentence_transformer(read, modules)
    config = _table(read, "config.json")
    if "sentence_transformers" in config:  # how a cross-encoder saves its settings
        return Kind(SENTENCE_TRANSFORMERS, _of_cross_encoder(config), "CrossEncoder", texts=True, config=config)
    return None


def _table(read: ReadFile, name: str) -> Mapping[str, Any]:
    found = read(name)
    return found if isinstance(found, Mapping) else {}


def _sentence_transformer(read: ReadFile, modules: list[Any]) -> Kind:
    said = _table(read, "config_sentence_transformers.json")
    types = [str(row.get("type", "")) if isinstance(row, Mapping) else "" for row in modules]
    first = modules[0].get("path", "") if isinstance(modules[0], Mapping) else ""
    config = _table(read, f"{first}/config.json" if first else "config.json")
    loader = str(said.get("model_type") or "SentenceTransformer")
    if any(one.endswith(("SpladePooling", "SparseStaticEmbedding", "SparseAutoEncoder")) for one in types):
        loader = "SparseEncoder"
    trust = not all(one.startswith("sentence_transformers.") for one in types)
    pipelines = {"SentenceTransformer": "sentence-similarity", "SparseEncoder": "feature-extraction",
                 "MultiVectorEncoder": "feature-extraction"}  # fmt: skip
    if loader == "CrossEncoder":
        return Kind(SENTENCE_TRANSFORMERS, _of_cross_encoder(config), loader, trust, texts=True, config=config)
    if loader not in pipelines:
        return Kind(SENTENCE_TRANSFORMERS, None, None, trust, config=config)
    return Kind(SENTENCE_TRANSFORMERS, pipelines[loader], loader, trust, texts=True, config=config)


def _of_cross_encoder(config: Mapping[str, Any]) -> str:
    """As sentence-transformers has it: one score ranks, several classify."""
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else config.get("num_labels", 1)
    return "text-ranking" if count == 1 else "text-classification"


def _adapter(config: Mapping[str, Any], architecture: str | None) -> Kind:
    pipeline = _OF_TASKS.get(str(config.get("task_type")))
    own = architecture if architecture and re.fullmatch(r"[A-Za-z]\w*", architecture) else None
    if pipeline is None and own is not None:
        pipeline = next((task for heads, task in _OF_HEADS if re.search(rf"({heads})$", own)), None)
    return Kind(PEFT, pipeline, own, config=config)


def _transformers(read: ReadFile, config: Mapping[str, Any]) -> Kind:
    auto_map, own = config.get("auto_map"), class_name(config)
    texts = any(read(name) is not None for name in ("tokenizer.json", "tokenizer_config.json"))
    media = any(read(name) is not None for name in ("preprocessor_config.json", "processor_config.json"))
    if isinstance(auto_map, Mapping):
        loader = next((key for key, place in auto_map.items() if str(place).endswith(f".{own}")), None)
        if loader is None or not re.fullmatch(r"AutoModel\w*", loader):
            loader = "AutoModel" if "AutoModel" in auto_map else None
        return Kind(TRANSFORMERS if loader else None, _pipeline(config, own), loader, True, texts, media, config)
    model_type = str(config.get("model_type") or "")
    if not _is_known(model_type, own):
        return Kind(None, None, config=config)
    return Kind(TRANSFORMERS, _pipeline(config, own), own or "AutoModel", False, texts, media, config)


def _pipeline(config: Mapping[str, Any], own: str) -> str | None:
    """The hub's task of a class of transformers; None where class and config leave it open."""
    for heads, task in _OF_HEADS:
        if re.search(rf"({heads})$", own):
            return task
    model_type = config.get("model_type")
    towers = {
        tower
        for path, _ in sections(config)
        if (tower := tower_in(path.rpartition(".")[2].replace("-", "_").split("_"))) is not None
    }
    if re.search(r"(ForConditionalGeneration|ForImageTextToText|ForVision2Seq)$", own):
        if model_type in _SPEECH:
            return "automatic-speech-recognition"
        return {frozenset(("vision",)): "image-text-to-text", frozenset(("audio",)): "audio-text-to-text"}.get(
            frozenset(towers)
        )
    if own.endswith("Model"):
        if model_type in _CONTRASTIVE:
            return "zero-shot-image-classification"
        if not towers and model_type not in _SPEECH:
            if "vocab_size" in config:
                return "feature-extraction"
            if "image_size" in config or "patch_size" in config:
                return "image-feature-extraction"
    return None


@cache
def _is_known(model_type: str, own: str) -> bool:
    """Whether the transformers that is installed has this class (or, where none is named, this type of model)."""
    spec = find_spec("transformers")  # looks for it, and does not import it
    if spec is None or spec.origin is None or not re.fullmatch(r"[\w-]+", model_type):
        return False
    models, name = Path(spec.origin).parent / "models", model_type.replace("-", "_")
    while name:
        if (models / name).is_dir():
            if not own:
                return True
            if re.fullmatch(r"\w+", own) and any(
                re.search(rf"^class {own}\(", path.read_text("utf-8", errors="replace"), re.MULTILINE)
                for path in (models / name).glob("modeling_*.py")
            ):
                return True
        name = name.rpartition("_")[0]
    return False
