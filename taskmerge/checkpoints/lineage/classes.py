"""The class in a config.json, and the tensors that a class of transformers can contain: by its name alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TASK = re.compile(r"(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|EncoderModel|TextModel|Model)$")
# What a head's module is called -> the tasks after which transformers names the classes that have one.
_HEADS: tuple[tuple[str, str], ...] = (
    (
        r"lm_head|embed_out",
        r"CausalLM|ConditionalGeneration|LMHead|DoubleHeads|MaskedLM|PreTraining|CTC|Seq2Seq|Vision2Seq|ImageTextToText",
    ),
    (r"proj_out", r"ConditionalGeneration|CausalLM"),
    (r"cls|predictions|vocab_\w+|generator_\w+", r"MaskedLM|PreTraining|CausalLM|LMHead|NextSentence"),
    (r"classifier|score|pre_classifier", r"Classification|MultipleChoice|Reward"),
    (r"head|decoder", r"MaskedLM|PreTraining|Classification|QuestionAnswering|MultipleChoice"),
    (r"qa_outputs", r"QuestionAnswering"),
    (r"pooler", r"Model|PreTraining|NextSentence"),
)

_OF_A_TASK = ("architectures", "id2label", "label2id", "num_labels", "problem_type")


def class_name(config: Mapping[str, Any]) -> str:
    """Return the class in a config; "" without one."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def family(name: str) -> str:
    """Return a class name without its task: "Qwen3VL" of Qwen3VLModel and of Qwen3VLForConditionalGeneration."""
    return _TASK.sub("", name)


def of_another_class(config: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Return whether a config has another architecture than the base's: another model_type, or a class of its own."""
    own_type, base_type = config.get("model_type"), base.get("model_type")
    if own_type and base_type and own_type != base_type:
        return True
    own, theirs = class_name(config), class_name(base)
    return bool(own) and own != theirs and (family(own) != family(theirs) if theirs else "auto_map" in config)


def lacks_head(config: Mapping[str, Any], name: str) -> str | None:
    """Return the module of a head that the config's class cannot have; None if it can, or if that is unknown.

    Only classes that transformers names after a task are known, and only heads by the names they bear there.
    """
    own = class_name(config)
    if not _TASK.search(own):
        return None
    for part in name.split("."):
        for heads, tasks in _HEADS:
            if re.fullmatch(heads, part):
                return None if re.search(rf"({tasks})\w*$", own) else part
    return None


def ordinary_head(name: str) -> bool:
    """Return whether a head has a name that classes of every architecture use: `lm_head`, `classifier`, ..."""
    return any(re.fullmatch(heads, part) for part in name.split(".") for heads, _ in _HEADS)


def with_task(config: Mapping[str, Any], other: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Return a config with the other's class and labels, if that class can have a head and its own cannot."""
    if lacks_head(config, head) is None or not class_name(other) or lacks_head(other, head) is not None:
        return dict(config)
    return {**config, **{key: other[key] for key in _OF_A_TASK if key in other}}
