"""Tokenizers and chat templates of mergekit configurations: token by token what mergekit 0.1.5 made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mergekit_tokens import CASES, SUM, TABLES, TEMPLATES, TWO, rows_of, save
from places import TESTS
from safetensors.numpy import load_file

from taskmerge import recipes
from taskmerge.checkpoints.lineage.chat_templates import NAMED
from taskmerge.errors import MergeError
from taskmerge.merging import execute, plan

WANTED: dict[str, Any] = json.loads((TESTS / "oracles" / "mergekit_tokens.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("models")
    save(path)
    yield path


def fused(text: str, folder: Path, out: Path) -> Path:
    recipe = recipes.loads(text, "merge.yml", folder)
    execute(plan(recipe), recipe, out)
    return out


@pytest.mark.parametrize("name", CASES)
def test_every_token_has_mergekits_rows(name: str, folder: Path, tmp_path: Path) -> None:
    found = rows_of(fused(CASES[name], folder, tmp_path / "out"))
    assert set(found) == set(WANTED[name])
    for token, values in found.items():
        np.testing.assert_allclose(values, WANTED[name][token], atol=1e-6, err_msg=token)


def test_the_cases_were_made_with_mergekit() -> None:
    assert set(WANTED) == set(CASES)
    assert WANTED["union"]["both"] != WANTED["tokens from models"]["new"]


def test_padded_rows_are_zeros_and_the_config_counts_them(folder: Path, tmp_path: Path) -> None:
    """mergekit fills them with the mean row; nothing reads them."""
    text = SUM + "tokenizer: {source: base, pad_to_multiple_of: 10}\n" + TWO
    out = fused(text, folder, tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    assert all(tensors[name].shape[0] == 20 and not tensors[name][16:].any() for name in TABLES)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 20


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{kind: model_token, model: m1, token: sole}", "m1 has no token 'sole'"),
        ("{kind: model_token, model: m1, token_id: 99}", "m1 has 16 rows, not 100"),
    ],
)
def test_a_row_that_is_not_there_is_refused(source: str, what: str, folder: Path) -> None:
    text = SUM + f"tokenizer: {{source: base, tokens: {{new: {{source: {source}}}}}}}\n" + TWO
    with pytest.raises(MergeError, match=what):
        plan(recipes.loads(text, "merge.yml", folder))


def template(out: Path) -> str:
    text = (out / "chat_template.jinja").read_text()
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == text
    return text


def test_auto_takes_the_template_that_most_models_have(folder: Path, tmp_path: Path) -> None:
    three = "models: [{model: m0}, {model: m1}, {model: m2}]\nparameters: {weight: 1}\n"
    text = "merge_method: linear\nchat_template: auto\n" + three
    assert template(fused(text, folder, tmp_path / "out")) == TEMPLATES["m1"]
    warnings = plan(recipes.loads(text, "merge.yml", folder)).warnings
    assert any("that of m1; 2 of 3 inputs" in warning for warning in warnings)


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_are_written(name: str, folder: Path, tmp_path: Path) -> None:
    assert template(fused(SUM + f"chat_template: {name}\n" + TWO, folder, tmp_path / "out")) == NAMED[name]


def test_a_template_is_text_or_a_file(folder: Path, tmp_path: Path) -> None:
    said = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    text = SUM + f'chat_template: "{said}"\n' + TWO
    assert template(fused(text, folder, tmp_path / "text")) == said
    (folder / "mine.jinja").write_text(said)
    assert template(fused(SUM + "chat_template: mine.jinja\n" + TWO, folder, tmp_path / "file")) == said


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("chatlm", "chat_template 'chatlm' is not a template"),
        ("'{% for message %}'", "the chat template cannot be read"),
        ("mine.jinjo", "not a template, a file"),
    ],
)
def test_what_is_no_template_is_refused(said: str, what: str, folder: Path) -> None:
    with pytest.raises(MergeError, match=what):
        plan(recipes.loads(SUM + f"chat_template: {said}\n" + TWO, "merge.yml", folder))


TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "bye"},
]
# Written out by hand from what the makers of each format publish.
SPOKEN = {
    "alpaca": "be brief\n\n### Instruction:\nhello\n\n### Response:\nhi\n\n### Instruction:\nbye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi"
    "<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]be brief[|endofturn|]\n[|user|]hello\n[|assistant|]hi[|endofturn|]\n"
    "[|user|]bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nhello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nbye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] be brief\n\nhello [/INST] hi</s> [INST] bye [/INST]",
}


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_speak_their_format(name: str) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    reader = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers renders them
    said = reader.from_string(NAMED[name])
    assert said.render(messages=TALK, add_generation_prompt=True, bos_token="<s>", eos_token="</s>") == SPOKEN[name]
