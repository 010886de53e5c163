"""Chat templates: those of the inputs, a few that go by a name, and the one that the output is to have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.errors import MergeError, clipped, did_you_mean

FILE, CONFIG, OF_PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
AUTO = "auto"

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('after a system message, user and assistant must take turns') }}{% endif %}"
)
_OPENING = (
    "{% if messages and messages[0]['role'] == 'system' %}{% set opening = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set opening = '' %}{% set turns = messages %}{% endif %}"
)
NAMED: dict[str, str] = {
    "alpaca": _OPENING + "{{ opening | trim }}{% for message in turns %}"
    "{% if message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' + message['content'] | trim }}"
    "{% else %}{{ '\\n\\n### Instruction:\\n' + message['content'] | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}",
    "chatml": "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "exaone": _OPENING + "{{ '[|system|]' + opening + '[|endofturn|]\\n' }}{% for message in turns %}"
    "{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "mistral": _OPENING
    + "{{ bos_token }}{% for message in turns %}"
    + _ALTERNATE
    + "{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + (opening + '\\n\\n' if loop.first and opening else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
}
"""Formats as their makers document them, by the name that mergekit gives them."""


class _Config(TypedDict, total=False):
    chat_template: Any


def template_of(folder: Path | None) -> str | None:
    """Return the chat template of the tokenizer in a folder; of several that are named, the default."""
    if folder is None:
        return None
    if (folder / FILE).is_file():
        check_link(folder / FILE, folder)
        return _text(folder / FILE)
    if not (folder / CONFIG).is_file():
        return None
    config: _Config = read_json(folder / CONFIG, _Config)
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def chosen_template(said: str, folders: Mapping[str, Path | None], beside: Path, place: str) -> tuple[str | None, str]:
    """Return the template that `said` means, and a sentence about its origin.

    said: a name of `NAMED`, "auto", the path of a file, or the template itself.  folders: of the inputs' tokenizers, by
    label.  beside: the folder of relative paths.  place: of the setting.

    Raises MergeError when it is none of these.
    """
    if said == AUTO:
        return _most_common(folders)
    if said in NAMED:
        return _checked(NAMED[said], place), f"the chat template is that of {said}"
    if "{{" in said or "{%" in said:
        return _checked(said, place), "the chat template is the one in the recipe"
    path = beside / Path(said).expanduser()
    if path.is_file():
        return _checked(_text(path), str(path)), f"the chat template is that of {said}"
    raise MergeError(
        f"chat_template {clipped(repr(said), 100)} is not a template, a file or a known name",
        place,
        did_you_mean(said, [AUTO, *NAMED]),
    )


def _most_common(folders: Mapping[str, Path | None]) -> tuple[str | None, str]:
    first_of: dict[Path | None, str] = {}
    for label, folder in folders.items():  # one model may have several labels
        first_of.setdefault(folder, label)
    labels = {label: folder for folder, label in first_of.items()}
    found = {label: text for label, folder in labels.items() if (text := template_of(folder)) is not None}
    if not found:
        return None, "no input has a chat template, so the output has none"
    (text, count), *_ = Counter(found.values()).most_common(1)  # of equally many, the one met first
    first = next(label for label, template in found.items() if template == text)
    return text, f"the chat template is that of {first}; {count} of {len(labels)} inputs have the same one"


def _checked(text: str, place: str) -> str:
    """The text, if it can be read as a template. Raises MergeError."""
    try:
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:  # the renderer has it
        return text
    reader = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        # What transformers adds to Jinja: it marks what the assistant says.
        reader.parse(text.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    except TemplateSyntaxError as error:
        raise MergeError(
            f"the chat template cannot be read: {error} (its line {error.lineno})",
            place,
            "correct the template, or choose another one: output: {chat_template: …}",
        ) from error
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(
            f"the chat template cannot be read: {error}",
            str(path),
            "check that the file exists and that you may read it",
        ) from error


def template_files(text: str, folder: Path | None, written: Mapping[str, str]) -> dict[str, str]:
    """Return the tokenizer's files with the template: one of its own, and the one that older libraries read.

    folder: of the output's tokenizer.  written: files that are already rewritten.
    """
    config: Any = {}
    if CONFIG in written:
        config = json.loads(written[CONFIG])
    elif folder is not None and (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG, _Config)
    files = {FILE: text}
    if config:
        files[CONFIG] = json.dumps({**config, "chat_template": text}, ensure_ascii=False, indent=2) + "\n"
    if folder is not None and (folder / OF_PROCESSOR).is_file():
        files[OF_PROCESSOR] = json.dumps({"chat_template": text}, ensure_ascii=False, indent=2) + "\n"
    return files
