"""Code that loads a model and runs it once, for its card. It runs unchanged; tests run it."""

from __future__ import annotations

from taskmerge.checkpoints.cards.kinds import PEFT, SENTENCE_TRANSFORMERS, TRANSFORMERS, Kind

_TWO = '["A sentence.", "Another sentence."]'


def usage(kind: Kind, name: str, base: str | None = None, record_kind: str = "") -> str:
    """Return Python code for a card.

    name: of the model on the hub, or of its folder.  base: the same of an adapter's or task vector's base.
    record_kind: what the record says the folder is.
    """
    if kind.library == SENTENCE_TRANSFORMERS and kind.loader:
        return _sentence_transformers(kind, name)
    if kind.library == TRANSFORMERS and kind.loader:
        return _transformers(kind, name)
    if kind.library == PEFT:
        return _peft(kind.loader or "AutoModel", name, base or "BASE")
    if record_kind == "task vector":
        return _lines(
            "from taskmerge import Checkpoint, TaskVector",
            "",
            f"base = Checkpoint.open({base or 'BASE'!r})",
            f"model = base + TaskVector.load({name!r}, base)",
            'model.save("model-with-task-vector")',
        )
    return _lines(
        "from taskmerge import Checkpoint",
        "",
        f"model = Checkpoint.open({name!r})  # no class of transformers is named in its config.json",
        "print({name: info.shape for name, info in model.tensors.items()})",
    )


def packages(kind: Kind) -> str:
    """Return what has to be installed for `usage`."""
    names = [kind.library] if kind.library else ["taskmerge"]
    if kind.library == PEFT:
        names.append(TRANSFORMERS)
    if kind.library == SENTENCE_TRANSFORMERS and kind.trust:
        names.append("taskmerge")
    return " ".join(names)


def _lines(*lines: str) -> str:
    return "\n".join(lines)


def _sentence_transformers(kind: Kind, name: str) -> str:
    trust = ", trust_remote_code=True" if kind.trust else ""
    load = (f"from sentence_transformers import {kind.loader}", "", f"model = {kind.loader}({name!r}{trust})")
    if kind.loader == "CrossEncoder":
        return _lines(*load, 'print(model.predict([("A question?", "An answer."), ("A question?", "Another one.")]))')
    return _lines(*load, f"embeddings = model.encode({_TWO})", "print(model.similarity(embeddings, embeddings))")


def _peft(loader: str, name: str, base: str) -> str:
    return _lines(
        "from peft import PeftModel",
        f"from transformers import {loader}",
        "",
        f"base = {loader}.from_pretrained({base!r})",
        f"model = PeftModel.from_pretrained(base, {name!r})",
    )


def _transformers(kind: Kind, name: str) -> str:
    trust = ", trust_remote_code=True" if kind.trust else ""
    speech = kind.pipeline == "automatic-speech-recognition" and kind.media
    reader = "AutoProcessor" if speech else "AutoTokenizer" if kind.texts and _takes_text(kind) else None
    imports = ", ".join(sorted(filter(None, [reader, kind.loader])))
    model = f"model = {kind.loader}.from_pretrained({name!r}{trust})"
    if reader is None:
        return _lines(f"from transformers import {imports}", "", model)
    variable = "processor" if speech else "tokenizer"
    read = f"{variable} = {reader}.from_pretrained({name!r}{trust})"
    if speech:
        return _lines(
            "import numpy", f"from transformers import {imports}", "", read, model,
            'sound = numpy.zeros(16000, dtype="float32")  # one second, mono, 16 kHz',
            'inputs = processor(sound, sampling_rate=16000, return_tensors="pt")',
            *_spoken(kind),
        )  # fmt: skip
    inputs = 'inputs = tokenizer("A sentence.", return_tensors="pt")'
    return _lines(f"from transformers import {imports}", "", read, model, inputs, *_run(kind))


def _spoken(kind: Kind) -> tuple[str, ...]:
    if (kind.loader or "").endswith("ForCTC"):
        return ("print(processor.batch_decode(model(**inputs).logits.argmax(-1)))",)
    return ("print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True))",)


def _run(kind: Kind) -> tuple[str, ...]:
    loader = kind.loader or ""
    if kind.pipeline == "text-classification":
        return ("scores = model(**inputs).logits[0]", "print(model.config.id2label[int(scores.argmax())], scores)")
    if kind.pipeline == "text-generation" or loader.endswith("ForConditionalGeneration"):
        return ("print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))",)
    return ("print(model(**inputs)[0].shape)",)


def _takes_text(kind: Kind) -> bool:
    """Whether a model runs on what a tokenizer alone gives it."""
    config = kind.config or {}
    if kind.pipeline in ("text-generation", "text-classification", "token-classification", "question-answering",
                         "fill-mask", "feature-extraction"):  # fmt: skip
        return kind.loader is not None and not (kind.pipeline == "question-answering" and kind.media)
    return (
        (kind.loader or "").endswith("ForConditionalGeneration")
        and bool(config.get("is_encoder_decoder"))
        and (not kind.media)
    )
