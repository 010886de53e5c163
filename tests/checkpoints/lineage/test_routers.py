"""Routers of sentence-transformers: all modules in them merged, named and run as that library does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_models import TEXTS, moved, opened, save
from omni_models import tiny_backbone
from tokenizers import Tokenizer

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.embedders import open_embedder
from taskmerge.errors import TaskmergeError

WEIGHTS = {"a": 0.6, "b": 0.3}


def _modules(folder: Path) -> tuple[Any, Any]:
    from sentence_transformers.sentence_transformer import modules

    return modules, modules.Transformer(str(tiny_backbone(folder / "backbone")), max_seq_length=32)


def first(folder: Path) -> Any:
    """Queries through a transformer, documents through a table of words."""
    modules, body = _modules(folder)
    words = modules.StaticEmbedding(Tokenizer.from_file(str(folder / "backbone/tokenizer.json")), embedding_dim=12)
    return [modules.Router.for_query_document([body, modules.Pooling(32, "mean"), modules.Dense(32, 12)], [words])]


def second(folder: Path) -> Any:
    """One transformer, other modules after it."""
    modules, body = _modules(folder)
    routes = [modules.Dense(32, 12)], [modules.Dense(32, 12), modules.LayerNorm(12)]
    return [body, modules.Pooling(32, "mean"), modules.Router.for_query_document(*routes), modules.Normalize()]


def shared(folder: Path) -> Any:
    """One module on both routes, and a router in a router."""
    modules, body = _modules(folder)
    dense = modules.Dense(32, 12)
    inner = modules.Router.for_query_document([modules.LayerNorm(12)], [modules.Dense(12, 12)])
    return [body, modules.Pooling(32, "mean"), modules.Router.for_query_document([dense], [dense, inner])]


def twice(folder: Path) -> Any:
    """Two transformers, each with a tokenizer of its own."""
    modules, body = _modules(folder)
    other = modules.Transformer(str(folder / "backbone"), max_seq_length=32)
    routes = [body, modules.Pooling(32, "mean")], [other, modules.Pooling(32, "cls")]
    return [modules.Router.for_query_document(*routes)]


def models(folder: Path, make: Callable[[Path], Any]) -> dict[str, Path]:
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    model = SentenceTransformer(modules=make(folder), device="cpu")
    made = {"base": model, "a": moved(model, 1), "b": moved(model, 2)}
    return {name: save(one, folder / name) for name, one in made.items()}


def fuse(folder: Path, paths: dict[str, Path]) -> Path:
    rows = {label: {"model": str(paths[label]), "weight": weight} for label, weight in WEIGHTS.items()}
    recipe = recipes.from_dict({"base": str(paths["base"]), "specialists": rows})
    fusion.execute(fusion.plan(recipe), recipe, folder / "out")
    return folder / "out"


def live(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return opened(SentenceTransformer, folder)


@pytest.mark.parametrize("make", [first, second, shared, twice])
def test_every_module_is_merged(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    paths = models(tmp_path, make)
    out = live(fuse(tmp_path, paths))
    reference, own = live(paths["base"]), {label: live(paths[label]).state_dict() for label in WEIGHTS}
    exact = {
        name: value.double() + sum(weight * (own[label][name].double() - value) for label, weight in WEIGHTS.items())
        for name, value in reference.state_dict().items()
    }
    assert any(".sub_modules." in name or name.startswith("0.sub_modules") for name in exact)
    for name, value in out.state_dict().items():
        torch.testing.assert_close(value.double(), exact[name], rtol=2e-7, atol=1e-9, msg=name)
    reference.load_state_dict({name: value.float() for name, value in exact.items()})
    for way in ("encode", "encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(out, way)(TEXTS), getattr(reference, way)(TEXTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [first, second, shared, twice])
def test_items_take_the_route_of_their_role_and_tensors_the_names_of_the_file(
    tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    folder = models(tmp_path, make)["a"]
    embedder, model, stored = open_embedder(folder), live(folder), open_stored(folder)
    for role, way in (("query", model.encode_query), ("document", model.encode_document), (None, model.encode)):
        found: Any = embedder.embed(embedder.prepare(TEXTS, "text", role)).detach()  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.numpy(), way(TEXTS))
    held = embedder.state_dict
    assert set(held.tensors) == set(stored.tensors)
    for name in stored.tensors:
        np.testing.assert_array_equal(held.read(name), stored.read(name))
    assert set(embedder.copied().state_dict.tensors) == set(stored.tensors)


def _other_route(folder: Path) -> None:
    path = folder / "2_Router/router_config.json"
    table = json.loads(path.read_text())
    table["parameters"]["default_route"] = "query"
    path.write_text(json.dumps(table))


def _other_class(folder: Path) -> None:
    path = folder / "2_Router/router_config.json"
    path.write_text(path.read_text().replace("layer_norm.LayerNorm", "normalize.Normalize"))


def _other_function(folder: Path) -> None:
    path = folder / "2_Router/query_0_Dense/config.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"activation_function": "torch.nn.modules.linear.Identity"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [(_other_route, "default_route"), (_other_class, "Normalize"), (_other_function, "activation_function")],
)
def test_other_routes_are_refused(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    paths = models(tmp_path, second)
    change(paths["a"])
    with pytest.raises(TaskmergeError, match=words):
        fuse(tmp_path, paths)


def test_another_vocabulary_of_a_second_transformer_is_refused(tmp_path: Path) -> None:
    paths = models(tmp_path, twice)
    path = paths["a"] / "document_0_Transformer/tokenizer.json"
    table = json.loads(path.read_text())
    ids = table["model"]["vocab"]
    ids["dog"], ids["cat"] = ids["cat"], ids["dog"]
    path.write_text(json.dumps(table))
    with pytest.raises(TaskmergeError, match="its tokens have other numbers in a"):
        fuse(tmp_path, paths)


@pytest.mark.parametrize("name", ["../a", ".", "/tmp", "x" * 300])
def test_a_router_names_no_folder_outside(tmp_path: Path, name: str) -> None:
    paths = models(tmp_path, second)
    path = paths["a"] / "2_Router/router_config.json"
    path.write_text(path.read_text().replace("query_0_Dense", name))
    with pytest.raises(TaskmergeError, match=r"folder"):
        open_stored(paths["a"])


def test_routers_inside_themselves_are_refused(tmp_path: Path) -> None:
    paths = models(tmp_path, second)
    path = paths["a"] / "2_Router/router_config.json"
    own = dict.fromkeys(("one", "two"), "sentence_transformers.base.modules.router.Router")
    path.write_text(json.dumps({"types": own, "structure": {"query": list(own)}}))
    for name in own:
        (path.parent / name).symlink_to(".")
    with pytest.raises(TaskmergeError, match="inside itself"):
        open_stored(paths["a"])


def test_the_router_of_older_versions(tmp_path: Path) -> None:
    paths = models(tmp_path, second)
    for folder in paths.values():
        listing = folder / "modules.json"
        listing.write_text(listing.read_text().replace("base.modules.router.Router", "models.Asym"))
        (folder / "2_Router/router_config.json").rename(folder / "2_Router/config.json")
    names = set(open_stored(fuse(tmp_path, paths)).tensors)
    assert "2_Router/document_1_LayerNorm/norm.weight" in names


def test_how_a_transformer_reads_its_items_is_compared(tmp_path: Path) -> None:
    paths = models(tmp_path, second)
    place = paths["a"] / "sentence_bert_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"do_lower_case": True}))
    base = paths["base"] / "sentence_bert_config.json"
    base.write_text(json.dumps(json.loads(base.read_text()) | {"do_lower_case": False}))
    recipe = recipes.from_dict({"base": str(paths["base"]), "specialists": {"a": str(paths["a"])}})
    assert any("do_lower_case is True in a, False in the base" in note for note in fusion.plan(recipe).warnings)
