"""One pattern language: the same pattern names the same tensors wherever it stands."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo

from taskmerge import Checkpoint
from taskmerge.checkpoints.components import BUFFERS, Components, component_map
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.selector import Selector, may_name, nearest_names
from taskmerge.checkpoints.state_dict import BASE
from taskmerge.errors import MergeError, Problem, UsageError
from taskmerge.merging.covariances import protected_specialists
from taskmerge.training.components import select
from taskmerge.words.patterns import Pattern, PatternError

KINDS = [kind.name for kind in zoo.KINDS]
GLOBS = ("*.{0..0}.*", "*.weight", "*_projector", "{vision,audio}_encoder.*", "backbone.*", "[!x]*bias")


@cache
def model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return zoo.BY_NAME[kind].build()


@cache
def weights(kind: str) -> MemoryStateDict:
    return MemoryStateDict.of_module(model(kind))


@cache
def components(kind: str) -> Components:
    return component_map(weights(kind).tensors, weights(kind).config)


def patterns(kind: str) -> list[str]:
    """Globs that name something, and every component with and without a glob inside."""
    known = sorted(set(components(kind).values()))
    globs = [glob for glob in GLOBS if Selector(components(kind)).names([glob])]
    return [*known, *(f"{component}.*" for component in known), *globs]


# --- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_is_its_tensors_and_the_buffers_in_its_modules(kind: str) -> None:
    found, selector = components(kind), Selector(components(kind))
    for component in {*found.values()}:
        members = [name for name in found if component in (found[name], found.home(name))]
        assert selector.names([component]) == members
        assert selector.names([f"{component}.*"]) == members  # the union of what globs inside it name
        one_by_one = [f"{component}.{found.inner_name(name, component)}" for name in members]
        assert set(selector.names(one_by_one)) >= set(members)
        first, *_ = members
        assert first in selector.names([f"{component}.{found.inner_name(first, component)}"])


@pytest.mark.parametrize("kind", KINDS)
def test_components_cover_everything(kind: str) -> None:
    found = components(kind)
    assert Selector(found).names(set(found.values())) == list(found)
    homes = {found.home(name) for name in found} | {BUFFERS}
    assert Selector(found).names(homes) == list(found)


@pytest.mark.parametrize("kind", KINDS)
def test_only_and_without_share_everything_between_them(kind: str) -> None:
    base = Checkpoint.open(weights(kind))
    vector = base - base
    for pattern in patterns(kind):
        if not Selector(components(kind)).names([pattern], vector.shapes):
            continue  # buffers of integers have no delta
        taken, left = vector.only(pattern), vector.without(pattern)
        assert {*taken.shapes, *left.shapes} == set(vector.shapes)
        assert not {*taken.shapes} & {*left.shapes}


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_reads_a_pattern_alike(kind: str) -> None:
    """Rules, copy, protect, only, train and components, against the definition in words."""
    held, found = weights(kind), components(kind)
    empty = MemoryStateDict({}, config=dict(held.config))
    census = Census({BASE: empty, "other": held}, {name: ["other"] for name in found}, found)
    base = Checkpoint.open(held)
    vector = base - base
    network: Any = model(kind)
    trained = {name for name, _ in network.named_parameters() if name in found}
    for pattern in patterns(kind):
        glob = Pattern.parse(pattern)

        def said(name: str, glob: Pattern = glob) -> bool:
            own, home = found[name], found.home(name)
            inside = f"{own}.{found.inner_name(name, own)}", f"{home}.{found.inner_name(name, home)}"
            return any(map(glob.matches, (own, home, name, *inside)))

        expected = {name for name in found if said(name)}
        assert {name for name in found if pattern in census.selector.naming(patterns(kind), name)} == expected  # a rule
        problems: list[Any] = []
        assert set(census.copied({"other": [pattern]}, "here", problems)) == expected
        assert protected_specialists(census, [pattern], "here", problems) == ["other"]
        assert problems == []
        overridden = component_map(held.tensors, held.config, {"mine": [pattern]})
        assert {name for name in overridden if overridden[name] == "mine"} == expected
        if expected & set(vector.shapes):
            assert set(vector.only(pattern).shapes) == expected & set(vector.shapes)
        if expected & trained:
            embedder: Any = SimpleNamespace(state_dict=held, components={}, parameter_names=lambda: [*trained])
            assert set(select(embedder, [pattern])) == expected & trained


def embedder(held: MemoryStateDict, trained: set[str]) -> Any:
    """What training asks of an embedder here."""
    names = [name for name in held.tensors if name in trained]
    return SimpleNamespace(state_dict=held, components={}, parameter_names=lambda: names)


def test_names_of_a_tower_do_not_reach_another() -> None:
    found = components("Qwen3-VL")
    selector = Selector(found)
    assert {found[name] for name in selector.names(["backbone.layers.*"])} <= {"backbone", BUFFERS}


# --- buffers -------------------------------------------------------------------------------------------------------


def test_a_components_buffers_go_with_it() -> None:
    kind = "EmbeddingGemma 2"
    found = components(kind)
    bounds = {name for name in found if name.endswith("input_max") and found.home(name) == "audio_encoder"}
    selector = Selector(found)
    assert bounds <= set(selector.names(["audio_encoder"]))
    assert bounds <= set(selector.names(["audio_encoder.*"]))
    assert bounds <= set(selector.names(["buffers"]))
    base = Checkpoint.open(weights(kind))
    left = (base - base).without("audio_encoder")
    assert not bounds & set(left.shapes)


def test_copy_names_the_audio_tower_that_a_specialist_brings_to_a_qwen3_vl() -> None:
    held = weights("Qwen3-VL")
    brought = {"audio_encoder.layers.0.weight": torch.ones(2, 2), "audio_encoder.norm.running_mean": torch.ones(2),
               "audio_projector.0.weight": torch.ones(2, 2)}  # fmt: skip
    audio = MemoryStateDict({**model("Qwen3-VL").state_dict(), **brought}, "audio", held.config)
    census = Census.of({BASE: held, "audio": audio}, {})
    problems: list[Problem] = []
    assert set(census.copied({"audio": ["audio_encoder", "audio_projector"]}, "here", problems)) == set(brought)
    assert problems == []


def test_training_takes_the_globs_of_a_rule() -> None:
    """`train: ["*.layer.{0..1}.*"]` was refused: only the shell's globs were known there."""
    held = weights("BERT")
    module = embedder(held, {name for name, _ in model("BERT").named_parameters()})
    chosen = select(module, ["*.layer.{0..1}.*"])
    assert chosen
    assert all(".layer." in name for name in chosen)
    for same in ("backbone.*.layer.{0..1}.*", "bert.encoder.layer.{0..1}.*"):  # inside the component; in the file
        assert chosen == select(module, [same])


# --- messages ------------------------------------------------------------------------------------------------------


def problem(pattern: str, **more: Any) -> str:
    (found,) = Selector(components("Qwen3-VL")).check([pattern], "merge.yaml:7", "copy: audio", **more)
    return str(found)


def test_the_message_has_the_users_text_the_place_and_what_is_near() -> None:
    said = problem("vision_encodr", of="audio")
    assert said.startswith("merge.yaml:7: copy: audio: 'vision_encodr' matches no tensor of audio\n")
    assert "did you mean 'vision_encoder'?" in said


def test_at_most_ten_names_are_shown_and_layers_count_once() -> None:
    names = [f"model.layers.{layer}.{part}{one}.weight" for layer in range(40) for part in "abcd" for one in "xyz"]
    one = Components(dict.fromkeys(names, "backbone"), dict.fromkeys(names, "backbone"))
    (found,) = Selector(one).check(["model.layers.0.ee.weight"], None, "rule")
    assert found.next_move is not None
    assert found.next_move.count("model.layers") <= 10
    assert len(str(found)) < 600


def test_nothing_near_lists_the_components() -> None:
    assert "components here: " in problem("§§§")
    assert nearest_names("§", [f"c{number:02}" for number in range(30)]).count("c") < 15


def test_what_else_is_allowed_is_no_problem() -> None:
    assert Selector(components("BERT")).check(["image"], None, "protect", also=["image"]) == []


def test_places_that_have_no_recipe_raise_the_same_words() -> None:
    base = Checkpoint.open(weights("BERT"))
    vector = base - base
    with pytest.raises(UsageError, match="only: 'bakbone' matches no tensor of"):
        vector.only("bakbone")
    with pytest.raises(UsageError, match="train: 'bakbone' matches no tensor of"):
        select(embedder(weights("BERT"), set(weights("BERT").tensors)), ["bakbone"])
    with pytest.raises(MergeError, match="components: mine: 'bakbone' matches no tensor"):
        component_map(base.tensors, base.config, {"mine": ["bakbone"]})


def test_a_pattern_that_cannot_be_read_says_where() -> None:
    with pytest.raises(PatternError, match="never closed"):
        Selector(components("BERT")).names(["backbone.{a"])


@pytest.mark.parametrize(
    ("pattern", "component", "answer"),
    [
        ("backbone", "backbone", True),
        ("backbone.layers.{0..7}.*", "backbone", True),
        ("backbone.layers.*", "audio_projector", False),
        ("*_projector", "audio_projector", True),
        ("*.layer.{0..1}.*", "backbone", True),
        ("{backbone.layers.0,audio_projector}.*", "audio_projector", True),
    ],
)
def test_what_may_be_named_in_a_model_not_made_yet(pattern: str, component: str, answer: bool) -> None:
    assert may_name(pattern, component) is answer
