"""Vocabularies of different sizes and orders: rows follow their tokens, in the tables, the heads and the config."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import WORDS, tokenizer

from taskmerge import Checkpoint, TaskVector, recipes
from taskmerge import merging as fusion
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.lineage.token_sources import Vocabularies
from taskmerge.checkpoints.lineage.tokenizers import Vocabulary, join, read_vocabulary
from taskmerge.errors import CheckpointError, MergeError, TaskmergeError


def save(
    folder: Path,
    words: list[str],
    added: tuple[str, ...] = (),
    *,
    seed: int,
    tied: bool,
    rows: int | None = None,
    **more: Any,
) -> Path:
    made = tokenizer(words, added, more.pop("template", None))
    kind = zoo.BY_NAME["Qwen3"]
    config = {**kind.config, "vocab_size": rows or len(made), "tie_word_embeddings": tied, **more}
    zoo.save(dataclasses.replace(kind, config=config).build(seed=seed), folder)
    made.save_pretrained(folder)
    return folder


def fuse(out: Path, base: Path, specialists: dict[str, tuple[Path, float]], mode: str) -> fusion.Plan:
    recipe = recipes.from_dict(
        {
            "base": str(base),
            "specialists": {
                label: {"model": str(path), "weight": weight} for label, (path, weight) in specialists.items()
            },
            "merge": {"method": "task_arithmetic"},
            "output": {"tokenizer": mode},
        }
    )
    plan = fusion.plan(recipe)
    fusion.execute(plan, recipe, out)
    return plan


def tables(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Tensor with one row per token -> token -> row, float64, by the folder's own tokenizer."""
    stored, ids = open_stored(folder), transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in stored.tensors:
            matrix = stored.read(name).reshape(stored.tensors[name].shape).astype("f8")
            found[name] = {token: matrix[row] for token, row in ids.items()}
    return found


def load(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = opened
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def expected_row(
    token: str, base: dict[str, np.ndarray], specialists: list[tuple[dict[str, np.ndarray], float]]
) -> Any:
    having = [(own[token], weight) for own, weight in specialists if token in own]
    if token in base:
        return base[token] + sum(weight * (row - base[token]) for row, weight in having)
    return np.mean([row for row, _ in having], axis=0)


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "untied head"])
@pytest.mark.parametrize("mode", ["base", "union", "audio"])
def test_rows_follow_their_tokens(tmp_path: Path, mode: str, tied: bool) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=tied)
    audio = save(
        tmp_path / "audio",
        WORDS[::-1],
        (
            "<|audio|>",
            "<|end|>",
        ),
        seed=1,
        tied=tied,
    )
    image = save(
        tmp_path / "image",
        WORDS[:7],
        (
            "<|image|>",
            "<|end|>",
        ),
        seed=2,
        tied=tied,
    )
    out = tmp_path / "out"
    plan = fuse(out, base, {"audio": (audio, 0.5), "image": (image, 0.25)}, mode)
    assert ("tokens of image without a row in the output: 1 ('<|image|>')" in plan.warnings) is (mode == "audio")
    assert any("tokens of audio without a row in the output: 2" in warning for warning in plan.warnings) is (
        mode == "base"
    )
    found, parts = tables(out), {folder: tables(folder) for folder in (base, audio, image)}
    assert ("lm_head.weight" in found) is not tied
    for name, rows in found.items():
        own = [(parts[audio][name], 0.5), (parts[image][name], 0.25)]
        for token, row in rows.items():
            np.testing.assert_allclose(
                row, expected_row(token, parts[base][name], own), rtol=3e-7, atol=1e-8, err_msg=token
            )
    kept = {
        "base": set(parts[base]["model.embed_tokens.weight"]),
        "audio": set(parts[audio]["model.embed_tokens.weight"]),
    }
    everything = kept["base"] | kept["audio"] | {"<|image|>"}
    assert set(found["model.embed_tokens.weight"]) == kept.get(mode, everything)
    model, made = load(out), transformers.AutoTokenizer.from_pretrained(out)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size >= len(made)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    if mode == "union":
        ids = made("red <|audio|> dog <|end|>", add_special_tokens=False)["input_ids"]
        assert made.convert_ids_to_tokens(ids) == ["red", "<|audio|>", "dog", "<|end|>"]
        assert {"<|audio|>", "<|image|>", "<|end|>"} <= set(made.all_special_tokens)


def test_special_token_ids_of_the_config_follow_a_chosen_tokenizer(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=False, eos_token_id=5)  # "dog" ends a sentence
    other = save(tmp_path / "other", WORDS[::-1], seed=1, tied=False)
    fuse(tmp_path / "out", base, {"other": (other, 0.5)}, "other")
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ids["dog"] != 5 and config["eos_token_id"] == ids["dog"]


def test_padded_tables_stay_padded_to_the_same_multiple(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=False, rows=32)
    more = tuple(f"<extra{number}>" for number in range(20))
    other = save(tmp_path / "other", WORDS, more, seed=1, tied=False, rows=40)
    fuse(tmp_path / "out", base, {"other": (other, 1.0)}, "union")
    assert load(tmp_path / "out").config.vocab_size == 64
    name = "model.embed_tokens.weight"
    found, theirs = tables(tmp_path / "out")[name], tables(other)[name]
    for token in more:
        np.testing.assert_array_equal(found[token], theirs[token])


def test_room_in_a_padded_table_is_used_before_it_grows(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=False, rows=32)
    other = save(tmp_path / "other", WORDS, ("<|new|>",), seed=1, tied=False, rows=32)
    fuse(tmp_path / "out", base, {"other": (other, 0.3)}, "union")
    assert load(tmp_path / "out").config.vocab_size == 32
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(tables(tmp_path / "out")[name]["<|new|>"], tables(other)[name]["<|new|>"])


def test_the_chat_template_goes_with_the_tokenizer(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=False, template="base {{ messages }}")
    other = save(tmp_path / "other", WORDS, ("<|new|>",), seed=1, tied=False, template="other {{ messages }}")
    for mode, words in (("base", "base"), ("union", "base"), ("other", "other")):
        fuse(tmp_path / f"out_{mode}", base, {"other": (other, 0.3)}, mode)
        made = transformers.AutoTokenizer.from_pretrained(tmp_path / f"out_{mode}")
        assert made.chat_template.startswith(words)


def test_different_sizes_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=False)
    other = save(tmp_path / "other", WORDS, ("<|new|>",), seed=1, tied=False)
    (other / "tokenizer.json").unlink()
    with pytest.raises(TaskmergeError, match="no tokenizer of other is available to match them"):
        fuse(tmp_path / "out", base, {"other": (other, 0.5)}, "union")


def test_another_tokenizer_is_not_taken_for_an_extended_one() -> None:
    base = Vocabulary({"a": 0}, {}, Path("base"))
    other = Vocabulary({f"t{row}": row for row in range(2000)}, {}, Path("other"))
    with pytest.raises(MergeError, match="2000 ordinary tokens that the base lacks: it is a different tokenizer"):
        join({"base": base, "other": other}, {"base": 1, "other": 2000}, Vocabularies("union"), "base")


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "tokenizer.json": '{"model": {"vocab": {"a": -1}}}',
        "tokenizer.json ": '{"model": {"vocab": {"a": 1e9}}}',
        "tokenizer.json  ": '{"model": {"vocab": {"a": true}}}',
        "tokenizer.json   ": '{"model": []}',
        "tokenizer.json    ": "[1]",
        "tokenizer.json     ": '{"model": {"vocab": [["a"], 3]}}',
        "tokenizer.json      ": '{"model": {"vocab": {}}, "added_tokens": [{"id": 3}]}',
        "tokenizer.json       ": '{"model": {"vocab": {}}, "added_tokens": {"a": 3}}',
        "vocab.json": '{"a": "0"}',
        "vocab.json ": "[]",
    }.items(),
)
def test_broken_tokenizers_are_errors_with_their_place(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name.strip()).write_text(text)
    with pytest.raises(CheckpointError, match=name.strip()):
        read_vocabulary(tmp_path)


def test_an_adapter_with_tokens_of_its_own(tmp_path: Path) -> None:
    import peft

    base = save(tmp_path / "base", WORDS, seed=0, tied=False)
    extended = tokenizer(WORDS, ("<|new|>", "<|end|>"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(len(extended), mean_resizing=False)
        chosen = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        adapter = peft.get_peft_model(model, chosen)
        zoo.perturb(adapter, 3)
        adapter.save_pretrained(str(tmp_path / "adapter"))
    extended.save_pretrained(tmp_path / "adapter")
    fuse(tmp_path / "out", base, {"one": (tmp_path / "adapter", 1.0)}, "union")
    assert load(tmp_path / "out").config.vocab_size == len(extended)
    made = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    stored = open_stored(tmp_path / "out")
    for name, module in (("model.embed_tokens.weight", "embed_tokens"), ("lm_head.weight", "lm_head")):
        trained = next(
            v for n, v in adapter.state_dict().items() if n.endswith(f"{module}.modules_to_save.default.weight")
        )
        found = stored.read(name).reshape(len(extended), -1)
        for token, row in extended.get_vocab().items():
            np.testing.assert_allclose(found[made.get_vocab()[token]], trained[row].numpy(), rtol=1e-6, err_msg=token)


@settings(max_examples=100, deadline=None)
@given(
    orders=st.lists(st.permutations(range(6)), min_size=2, max_size=3),
    extra=st.lists(st.integers(0, 3), min_size=2, max_size=3),
    mode=st.sampled_from(["base", "union", "one"]),
)
def test_every_row_is_the_row_of_its_token(orders: list[list[int]], extra: list[int], mode: str) -> None:
    labels = ["base", "one", "two"][: min(len(orders), len(extra))]
    vocabularies = {}
    for label, order, more in zip(labels, orders, extra, strict=False):
        tokens = [f"t{number}" for number in order] + [f"new{number}" for number in range(more)]
        vocabularies[label] = Vocabulary({token: row for row, token in enumerate(tokens)}, {}, Path(label))
    rows = join(vocabularies, {label: own.size for label, own in vocabularies.items()}, Vocabularies(mode), "base")
    if rows is None:
        assert len({frozenset(own.ids.items()) for own in vocabularies.values()}) == 1
        return
    assert sorted(rows.ids.values()) == list(range(len(rows.ids)))
    for token, row in rows.ids.items():
        for label, own in vocabularies.items():
            assert rows.of[label][row] == own.ids.get(token, -1)
    wanted = {"base": vocabularies["base"].ids, "one": vocabularies["one"].ids}.get(mode)
    assert set(rows.ids) == (set(wanted) if wanted else set().union(*(own.ids for own in vocabularies.values())))
    assert rows.count == len(rows.ids)


def test_a_task_vector_carries_added_tokens(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=False)
    tuned = save(tmp_path / "tuned", WORDS, ("<|new|>",), seed=1, tied=False)
    start = Checkpoint.open(base)
    vector = Checkpoint.open(tuned) - start
    stored = TaskVector.load(vector.save(tmp_path / "vector"), start)
    direct, indirect = (start + vector).save(tmp_path / "direct"), (start + stored).save(tmp_path / "indirect")
    for name, rows in tables(direct).items():
        again = tables(indirect)[name]
        assert set(rows) == set(again) == set(tables(tuned)[name])
        for token, row in rows.items():
            np.testing.assert_allclose(again[token], row, rtol=1e-6)
            np.testing.assert_allclose(row, tables(tuned)[name][token], rtol=1e-6)
    with pytest.raises(MergeError, match="adds tokens to"):
        vector.save_lora(tmp_path / "lora", 2)
    other = Checkpoint.open(save(tmp_path / "other", WORDS, ("<|else|>",), seed=2, tied=False)) - start
    assert -1 <= vector.cosine(other) <= 1  # by token, whatever row each has


@pytest.mark.parametrize("tied", [True, False])
def test_ids_beyond_the_table_have_no_rows(tmp_path: Path, tied: bool) -> None:
    """The base's tokenizer has two ids more than its table has rows. One specialist has trained a row for the first."""
    size = 4 + len(WORDS)
    base = save(tmp_path / "base", WORDS, ("<s1>", "<s2>"), seed=0, tied=tied, rows=size)
    one = save(tmp_path / "one", WORDS, ("<s1>",), seed=1, tied=tied, rows=size + 1)
    two = save(tmp_path / "two", WORDS, ("<s1>", "<s2>"), seed=2, tied=tied, rows=size)
    decided = fuse(tmp_path / "out", base, {"one": (one, 0.5), "two": (two, 0.25)}, "union")
    merged, bases, ones, twos = (open_stored(folder) for folder in (tmp_path / "out", base, one, two))
    name = "model.embed_tokens.weight"
    rows = {"out": size + 1, "base": size, "one": size + 1, "two": size}
    got, b, x, y = (
        weights.read(name).reshape(rows[label], -1).astype(np.float64)
        for label, weights in zip(rows, (merged, bases, ones, twos), strict=True)
    )
    np.testing.assert_allclose(got[:size], b + 0.5 * (x[:size] - b) + 0.25 * (y - b), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(got[size], x[size])
    assert merged.config["vocab_size"] == size + 1
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()["<s1>"] == size
    said = " ".join(decided.warnings)
    assert "base: the ids of 2 tokens are beyond its token table" in said and "two: the ids of 2 tokens" in said
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == size + 1


@pytest.mark.parametrize("mode", ["base", "union", "one"])
def test_one_id_far_beyond_the_table_makes_no_table_of_a_million_rows(tmp_path: Path, mode: str) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=True)
    one = save(tmp_path / "one", WORDS, ("<s1>",), seed=1, tied=True)
    written = json.loads((base / "tokenizer.json").read_text())
    written["model"]["vocab"][WORDS[0]] = 1_000_000
    (base / "tokenizer.json").write_text(json.dumps(written))
    if mode == "one":
        assert fuse(tmp_path / "out", base, {"one": (one, 0.5)}, mode)
        return
    with pytest.raises(MergeError, match=r"the output would have 9\d\d,\d\d\d rows that no input has") as raised:
        fuse(tmp_path / "out", base, {"one": (one, 0.5)}, mode)
    assert str(base) in str(raised.value) and repr(WORDS[0]) in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_token_ids_beside_the_config_follow_a_chosen_tokenizer(tmp_path: Path) -> None:
    """generation_config.json, which transformers reads before the config, and the settings of modules."""
    base = save(tmp_path / "base", WORDS, seed=0, tied=True)
    audio = save(tmp_path / "audio", WORDS[::-1], seed=1, tied=True)
    ids = {word: row for row, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    settings_of = {
        "eos_token_id": [2, ids["dog"]], "pad_token_id": 0, "suppress_tokens": [ids["cat"]], "max_length": ids["cat"],
        "forced_decoder_ids": [[1, ids["red"]]], "bad_words_ids": [[ids["low"], ids["high"]]],
        "lang_to_id": {"<|en|>": ids["blue"]},
    }  # fmt: skip
    (base / "generation_config.json").write_text(json.dumps(settings_of))
    fuse(tmp_path / "out", base, {"audio": (audio, 0.5)}, "audio")
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert new["dog"] != ids["dog"]
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "eos_token_id": [new["<eos>"], new["dog"]], "pad_token_id": 0, "suppress_tokens": [new["cat"]],
        "max_length": ids["cat"], "forced_decoder_ids": [[1, new["red"]]],
        "bad_words_ids": [[new["low"], new["high"]]], "lang_to_id": {"<|en|>": new["blue"]},
    }  # fmt: skip
    fuse(tmp_path / "same", base, {"audio": (audio, 0.5)}, "base")
    assert json.loads((tmp_path / "same" / "generation_config.json").read_text()) == settings_of


def test_tokenizers_that_differ_beside_one_that_is_missing_are_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=True)
    audio = save(tmp_path / "audio", WORDS[::-1], seed=1, tied=True)
    image = save(tmp_path / "image", WORDS, seed=2, tied=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (image / name).unlink()
    with pytest.raises(MergeError, match="no tokenizer of image"):
        fuse(tmp_path / "out", base, {"audio": (audio, 0.5), "image": (image, 0.5)}, "union")
    fuse(tmp_path / "out", base, {"image": (image, 0.5)}, "union")  # nothing says that its rows are others


def test_an_output_without_a_tokenizer_is_told_or_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", WORDS, seed=0, tied=True)
    bare = save(tmp_path / "bare", WORDS, seed=1, tied=True)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(MergeError, match="tokenizer: bare has no tokenizer"):
        fuse(tmp_path / "out", base, {"bare": (bare, 0.5)}, "bare")
    plan = fuse(tmp_path / "out", bare, {"one": (base, 0.5)}, "union")
    assert any("the result has no tokenizer" in line and "{tokenizer: one}" in line for line in plan.warnings)
    plan = fuse(tmp_path / "with", bare, {"one": (base, 0.5)}, "one")
    assert not any("no tokenizer" in line for line in plan.warnings)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "with")) == len(WORDS) + 4


def test_tokenizers_that_only_their_library_reads_are_compared(tmp_path: Path) -> None:
    paths = [save(tmp_path / name, WORDS, seed=seed, tied=True) for seed, name in enumerate(("base", "other"))]
    for folder, model in zip(paths, (b"one", b"two"), strict=True):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(model)
    plan = fuse(tmp_path / "out", paths[0], {"other": (paths[1], 0.5)}, "base")
    assert any("tokenizer.model of other is not the base's" in line for line in plan.warnings)
