"""Recipes: what is read, and that every mistake in every key is told with its line and a next move."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest
import yaml
from recipe_problems import SMALL, problems_of

from taskmerge import recipes
from taskmerge.declarations import Parameter, fields_of
from taskmerge.declarations.containers import Either, Graded, Listed, Mapped
from taskmerge.declarations.kinds import EntryOf, Flag, Number, OneOf, Size
from taskmerge.declarations.parameters import Section
from taskmerge.errors import Problem, RecipeError
from taskmerge.methods import all_methods, find_method
from taskmerge.recipes import Recipe, Rule
from taskmerge.recipes.searching import Range

FULL = """\
# yaml-language-server: $schema=./taskmerge.schema.json
base: Qwen/Qwen3-VL-8B-Instruct
specialists:
  image: {model: models/image, weight: 0.3}
  video: models/video
  audio: {model: base, adapter: models/audio-lora, weight: [0.2, 0.5]}
merge:
  method: ties
  weight: {audio: 0.4}
  protect: [audio_projector]
  protect_energy: 0.8
  density: 0.3
  scale: [1.0, 0.5]
  rules:
    - {match: "*.embed_tokens.weight", keep: base}
    - {match: ["backbone.layers.{0..7}.*", "head.*"], weight: {audio: 0.7}, density: 0.5}
    - {match: "*.bias", also: ["backbone.*"], drop: true, optional: true}
    - {match: "*.norm.*", method: linear, normalize: false}
components:
  audio_projector: ["multi_modal_projector.*"]
copy: {audio: [audio_encoder, audio_projector, new_tokens]}
output: {path: out/fused, dtype: bfloat16, shard_size: 5GB, tokenizer: audio, new_tokens: own, pad_rows: 64,
         chat_template: chatml, tokens: {"<sound>": {source: audio, token: "<audio>", row: 5, force: true}}}
seed: 7
base_adapter: models/base-lora
stack:
  - {base: 0..15, image: 0..15, video: 0..15, audio: 0..15}
  - {base: 8..23, image: 8..23, video: 8..23, audio: 8..23}
drift:
  specialist: audio
  probes: data/audio_pairs.jsonl
  fail_above: {recall_drop: 0.05}
recover: {train: [audio_projector], data: data/audio_pairs.jsonl, method: auto, steps: 200, lr: 1e-3,
          batch_size: 32, temperature: 0.02, held_out: data/audio_held.jsonl, bf16: false, report_to: none}
rehearse: {train: [backbone, vision_encoder], lora: {rank: 16, alpha: 32}, steps: 2000, lr: 1.0e-5,
           data: {image: a.jsonl, audio: b.jsonl}, balance: {follows: size, temperature: 1.0, shares: {audio: 2}},
           may_fall: [image],
           batch_size: 16, temperature: 0.02,
           held_out: {image: c.jsonl, audio: d.jsonl}, gradient_cache: 8}
specialize:
  audio: {data: data/audio.jsonl, modality: audio, train: [backbone], lora: {rank: 4}, steps: 10, lr: 2e-5,
          batch_size: 8, temperature: 0.05, graft: {encoder: log_mel, projector: linear}, projector_lr: 1e-3,
          warmup: 40}
evaluate: {retrieval: {audio: data/audio_test.jsonl}, mteb: ["MAEB(v1)"]}
search:
  vary:
    specialists.image.weight: {low: 0.1, high: 1.0, step: 0.1, log: false, depth: 2}
    merge.density: {values: [0.1, 0.9]}
  maximize: mean(retrieval.*.mrr)
  floor: {audio: {change: -0.02, metric: mrr}}
  "on": {audio: data/audio_dev.jsonl}
  confirm: {audio: data/audio_dev2.jsonl}
  trials: 60
"""


def test_the_whole_grammar_is_read() -> None:
    recipe = recipes.loads(FULL, "merge.yaml")
    assert recipe.base == "Qwen/Qwen3-VL-8B-Instruct"
    assert list(recipe.specialists) == ["image", "video", "audio"]
    audio = recipe.specialists["audio"]
    assert (audio.name, audio.model, audio.adapter, audio.weight) == ("audio", "base", "models/audio-lora", (0.2, 0.5))
    assert audio.place == "merge.yaml:6"
    assert recipe.specialists["video"].weight == 1.0
    assert recipe.merge.options == {"density": 0.3, "scale": (1.0, 0.5)}
    assert [rule.place for rule in recipe.merge.rules] == [f"merge.yaml:{line}" for line in (15, 16, 17, 18)]
    assert recipe.output.shard_size == 5_000_000_000
    assert recipe.recover is not None and recipe.recover.lr == 1e-3
    assert recipe.drift is not None and recipe.drift.specialist == ("audio",)
    assert recipe.copy == {"audio": ("audio_encoder", "audio_projector", "new_tokens")}
    assert recipe.text == FULL


def test_a_share_is_of_a_modality_that_is_rehearsed() -> None:
    (problem,) = problems_of(FULL.replace("shares: {audio: 2}", "shares: {audoi: 2}"))
    assert problem.what == "balance: shares: 'audoi' is not a set of `data`"
    assert problem.place is not None and problem.place.startswith("merge.yaml:")
    assert problem.next_move is not None and "audio" in problem.next_move


def test_what_may_fall_is_a_modality_that_is_rehearsed() -> None:
    (problem,) = problems_of(FULL.replace("may_fall: [image]", "may_fall: [imige]"))
    assert problem.what == "may_fall: 'imige' is not a modality of `data`"
    assert problem.next_move is not None and "image" in problem.next_move


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("recover: {train: [audio_projector], data: a.jsonl, method: closed_form, steps: 5, bf16: true}",
         "recover: steps, bf16: the method closed_form takes no gradient steps"),
        ("evaluate: {results: kept, model_meta: meta.yaml, retrieval: {a: a.jsonl}}",
         "evaluate: results, model_meta: for mteb, but there are no mteb tasks"),
        ("evaluate: {batch_size: 8}", "evaluate: there is nothing to score"),
        ("specialize: {a: {data: a.jsonl, balance: {temperature: 2}}}",
         "balance: temperature: 2 applies to several sets, and `data` is one"),
    ],
)  # fmt: skip
def test_keys_without_effect_are_refused(section: str, said: str) -> None:
    (problem,) = problems_of(f"base: b\nspecialists: {{a: {{model: a}}}}\noutput: {{path: out}}\n{section}\n")
    assert problem.what == said


def test_balance_may_follow_what_is_missing_but_not_sizes_too() -> None:
    lone = "balance: {follows: size, temperature: 1.0, shares: {audio: 2}}"
    recipe = recipes.loads(FULL.replace(lone, "balance: adaptive"))
    assert recipe.rehearse is not None and recipe.rehearse.balance.follows == "adaptive"
    (problem,) = problems_of(FULL.replace("follows: size, temperature: 1.0", "follows: adaptive, temperature: 5"))
    assert problem.what == "balance: temperature: 5 applies to sizes, and adaptive shares do not use them"


def test_settings_say_what_holds_under_a_rule() -> None:
    merge = recipes.loads(FULL).merge
    assert merge.merge_method is find_method("ties")
    plain = merge.settings()
    assert plain.method.name == "ties" and plain.weight == {"audio": 0.4}
    assert plain.options == {**find_method("ties").defaults, "density": 0.3, "scale": (1.0, 0.5)}
    weighted = merge.settings(merge.rules[1])
    assert weighted.weight == {"audio": 0.7} and weighted.options["density"] == 0.5
    assert weighted.options["scale"] == (1.0, 0.5)
    other = merge.settings(merge.rules[3])
    assert other.method.name == "linear" and other.options == {"normalize": False, "scale": 1.0}
    assert other.weight == {"audio": 0.4}


def test_a_recipe_survives_being_written() -> None:
    recipe = recipes.loads(FULL)
    assert recipes.from_dict(recipe.to_dict()) == recipe
    assert recipes.loads(recipe.to_yaml()) == recipe


def test_what_is_left_out_has_defaults() -> None:
    recipe = recipes.loads("base: b\nspecialists: {a: m}\n")
    assert recipe.merge.settings().method.name == "task_arithmetic"
    assert recipe.copy is None and recipe.seed == 0 and recipe.output.tokenizer == "union"
    assert recipe.drift is recipe.recover is recipe.rehearse is recipe.evaluate is None


# --- every key of the grammar -------------------------------------------------------------------------------------


def keys_in(
    cls: type, value: Mapping[str, Any], path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Parameter]]:
    """Every declared key that stands in a document, with its path."""
    for row in fields_of(cls):
        if row.name in value:
            here = (*path, row.name)
            yield here, row
            yield from keys_below(row.kind, value[row.name], here)


def keys_below(kind: Any, value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Parameter]]:
    if isinstance(kind, Either):
        for alternative in kind.alternatives:
            yield from keys_below(alternative, value, path)
    elif isinstance(kind, Section) and isinstance(value, Mapping):
        yield from keys_in(kind.cls, value, path)
    elif isinstance(kind, Mapped) and isinstance(value, Mapping):
        for name, entry in value.items():
            yield from keys_below(kind.entry, entry, (*path, name))
    elif isinstance(kind, Listed) and isinstance(value, list):
        for index, entry in enumerate(value):
            yield from keys_below(kind.entry, entry, (*path, index))


def whole() -> dict[str, Any]:
    """FULL as plain values, with every key that it leaves out filled in."""
    loaded: dict[str, Any] = yaml.safe_load(FULL.replace("1e-3", "0.001").replace("2e-5", "0.00002"))
    fill(Section(Recipe), loaded)
    for specialist in filter(lambda row: isinstance(row, dict), loaded["specialists"].values()):
        specialist["model"] = "run/checkpoint-*"  # `last` and `ema` are for checkpoints of one run
    for section in loaded["specialize"].values():
        section["data"] = {"audio": "data/audio.jsonl"}  # `balance: shares` is for several sets
    return loaded


def fill(kind: Any, value: Any) -> None:
    """Give a section, and those below it, the keys they lack, each with a value that its kind takes."""
    for alternative in getattr(kind, "alternatives", ()):
        fill(alternative, value)
    if isinstance(kind, Section) and isinstance(value, dict):
        for row in fields_of(kind.cls):
            if row.name not in value and kind.cls not in (Rule, Range):
                value[row.name] = some_value(row.kind)
            fill(row.kind, value.get(row.name))
    elif isinstance(kind, (Mapped, Listed)):
        for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            fill(kind.entry, entry)


def some_value(kind: Any) -> Any:
    if isinstance(kind, Either):
        return some_value(kind.alternatives[0])
    if isinstance(kind, Section):
        return {row.name: some_value(row.kind) for row in fields_of(kind.cls) if row.required}
    if isinstance(kind, Number):
        middle = (kind.low + kind.high) / 2 if kind.low is not None and kind.high is not None else (kind.low or 0) + 1
        return int(middle) if kind.integer else middle
    if isinstance(kind, Graded):
        return some_value(kind.number)
    if isinstance(kind, Listed):
        return [some_value(kind.entry)]
    if isinstance(kind, Mapped):
        return {"audio": some_value(kind.entry)}
    if isinstance(kind, OneOf):
        return kind.choices[0]
    simple: dict[Any, Any] = {Flag: False, EntryOf: "audio", Size: "1GB"}
    return simple.get(type(kind), "text")


def declared_classes(cls: type) -> set[type]:
    found = {cls}
    for row in fields_of(cls):
        stack = [row.kind]
        while stack:
            kind = stack.pop()
            if isinstance(kind, Section):
                found |= declared_classes(kind.cls)
            stack += [*getattr(kind, "alternatives", ())] + ([kind.entry] if hasattr(kind, "entry") else [])
    return found


KEYS = list(keys_in(Recipe, whole()))
EVERY_KEY = pytest.mark.parametrize(("path", "row"), KEYS, ids=[".".join(map(str, path)) for path, _ in KEYS])


def test_the_example_holds_every_key_of_the_grammar() -> None:
    present = {row.name for _, row in KEYS}
    assert len(declared_classes(Recipe)) >= 13
    for cls in declared_classes(Recipe):
        assert {row.name for row in fields_of(cls)} <= present


def parent_of(values: Any, path: tuple[Any, ...]) -> Any:
    for step in path[:-1]:
        values = values[step]
    return values


def line_with(text: str, mark: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if mark in line)


@EVERY_KEY
def test_a_typo_in_a_key_is_told_with_line_and_nearest_name(path: tuple[Any, ...], row: Parameter) -> None:
    values = whole()
    parent = parent_of(values, path)
    typo = f"{row.name[:-1]}q{row.name[-1]}"
    renamed = {typo if key == row.name else key: value for key, value in parent.items()}
    parent.clear()
    parent.update(renamed)
    text = yaml.safe_dump(values, sort_keys=False)
    found = [problem for problem in problems_of(text) if repr(typo) in problem.what]
    assert len(found) == 1
    assert found[0].what.startswith(f"unknown key '{typo}'")
    assert found[0].place == f"merge.yaml:{line_with(text, typo + ':')}"
    assert found[0].next_move == f"did you mean {row.name!r}?"


@EVERY_KEY
def test_a_wrong_type_is_told_with_line_and_what_is_wanted(path: tuple[Any, ...], row: Parameter) -> None:
    wrong: Any = 987654 if not takes_numbers(row.kind) else "987654x"
    if takes_words(row.kind):
        wrong = {"987654": 1}
    values = whole()
    parent_of(values, path)[row.name] = wrong
    text = yaml.safe_dump(values, sort_keys=False)
    place = f"merge.yaml:{line_with(text, '987654') - isinstance(wrong, dict)}"  # the line of the key
    found = [problem for problem in problems_of(text) if "987654" in problem.what]
    assert found and all(problem.place == place for problem in found)
    assert any(row.name in problem.what or "rules must be a list" in problem.what for problem in found)


def takes_words(kind: Any) -> bool:
    """Whether a number and a word are both right, alone too: only a table is wrong."""
    return isinstance(kind, Listed) and isinstance(kind.entry, Either) and takes_numbers(kind.entry)


def takes_numbers(kind: Any) -> bool:
    if isinstance(kind, Either):
        return any(takes_numbers(alternative) for alternative in kind.alternatives)
    return isinstance(kind, (Number, Graded)) or "size" in kind.words


BOUNDED = [
    (path, row, value)
    for path, row in KEYS
    for kind in getattr(row.kind, "alternatives", [row.kind])
    if isinstance(kind, Number)
    for value in (
        *([kind.low - 1] if kind.low is not None else []),
        *([kind.low] if kind.low_open else []),
        *([kind.high + 1] if kind.high is not None else []),
    )
]


@pytest.mark.parametrize(
    ("path", "row", "value"), BOUNDED, ids=[f"{'.'.join(map(str, path))}={value}" for path, _, value in BOUNDED]
)
def test_an_impossible_value_is_told_with_line_and_bounds(path: tuple[Any, ...], row: Parameter, value: float) -> None:
    values = whole()
    parent_of(values, path)[row.name] = value
    text = yaml.safe_dump(values, sort_keys=False)
    (problem,) = problems_of(text)
    assert problem.what.startswith(f"{row.name} must be a ") and problem.what.endswith(f"not {value}")
    assert text.splitlines()[int(str(problem.place).split(":")[1]) - 1].strip(" -") == f"{row.name}: {value}"


def test_bounds_are_tested() -> None:
    assert len(BOUNDED) >= 20


METHOD_KEYS = [(method.name, row) for method in all_methods() for row in method.recipe_parameters]
METHOD_PARAMETERS = pytest.mark.parametrize(
    ("method", "row"), METHOD_KEYS, ids=[f"{method}.{row.name}" for method, row in METHOD_KEYS]
)


@METHOD_PARAMETERS
def test_a_typo_in_a_methods_parameter(method: str, row: Parameter) -> None:
    typo = f"{row.name[:-1]}q{row.name[-1]}"
    (problem,) = problems_of(SMALL.format(method=method) + f"  {typo}: 1\n")
    assert problem == Problem(f"unknown key {typo!r} in merge", "merge.yaml:6", f"did you mean {row.name!r}?")


@METHOD_PARAMETERS
def test_a_wrong_type_in_a_methods_parameter(method: str, row: Parameter) -> None:
    (problem,) = problems_of(SMALL.format(method=method) + f"  {row.name}:\n")
    assert problem.place == "merge.yaml:6"
    assert problem.what.startswith(f"{row.name} must be ") and problem.what.endswith(", not nothing")


@pytest.mark.parametrize(
    ("text", "line", "what", "move"),
    [
        (SMALL.format(method="tise"), 5, "unknown merge method 'tise'", "did you mean 'ties'?"),
        (SMALL.format(method="zzzzzz"), 5, "unknown merge method 'zzzzzz'", "known: "),
        (SMALL.format(method="ties\n  density: 2"), 6, "density must be a number from 0 to 1", None),
        (SMALL.format(method="ties\n  density: '0.2'"), 6, "not the text '0.2'", "write 0.2 without quotes"),
        (SMALL.format(method="ties\n  density: [0.1, 3]"), 6, "density[1] must be a number from 0 to 1", None),
        (SMALL.format(method="linear\n  density: 0.2"), 6, "unknown key 'density' in merge", "known: "),
        (SMALL.format(method="ties\n  weight: {audoi: 1}"), 6, "'audoi' is not one of the specialists", "did you mean"),
        (SMALL.format(method="ties\n  weight: metagtp"), 6, "weight must be", None),
        (SMALL.format(method="ties\n  rules: {match: x}"), 6, "rules must be a list, not a mapping", "begin each rule"),
        (SMALL.format(method="ties\n  rules:\n  - x"), 7, "rules[0] must be a mapping with `match`", None),
        (SMALL.format(method="ties\n  rules:\n  - keep: base"), 7, "merge.rules[0] lacks 'match'", "add match:"),
        (SMALL.format(method="ties\n  rules:\n  - match: '*'"), 7, "the rule for '*' has no effect", "add keep, drop"),
        (
            SMALL.format(method="ties\n  rules:\n  - {match: '*', keep: base, drop: true}"),
            7,
            "a rule has both keep: base and drop: true",
            "split it into two",
        ),
        (
            SMALL.format(method="ties\n  rules:\n  - {match: '*', keep: base, density: 0.1}"),
            7,
            "a rule has both keep: base and density",
            "split it into two",
        ),
        (SMALL.format(method="ties\n  rules:\n  - {match: 'a{b', keep: base}"), 7, "'{' is never closed", None),
        (
            SMALL.format(method="ties\n  rules:\n  - {match: a, keep: bas}"),
            7,
            "'bas' is not one of",
            "did you mean 'base'?",
        ),
        (
            SMALL.format(method="ties\n  rules:\n  - {match: a, method: tis}"),
            7,
            "unknown merge method 'tis'",
            "did you",
        ),
        (SMALL.format(method="ties") + "copy: {vision: x}\n", 6, "'vision' is not one of the specialists", None),
        (
            SMALL.format(method="ties") + "output: {tokenizer: onion}\n",
            6,
            "'onion' is not one of",
            "did you mean 'union'?",
        ),
        (SMALL.format(method="ties") + "components: {a: ['x[']}\n", 6, "'[' is never closed", None),
        ("base: b\nspecialists: {}\n", 1, "specialists is empty", "give at least one"),
        ("base: b\nspecialists:\n  union: m\n", 3, "the text 'union' cannot be a name", "choose a name"),
        ("specialists: {a: m}\n", 1, "the recipe lacks 'base'", "add base:"),
        ("base: b\n", 1, "the recipe lacks 'specialists'", "add specialists:"),
        ("- base\n", 1, "a recipe is a mapping", "begin with"),
        ("just words\n", 1, "a recipe is a mapping", "begin with"),
    ],
)
def test_other_mistakes(text: str, line: int, what: str, move: str | None) -> None:
    (problem,) = problems_of(text)
    assert what in problem.what
    assert problem.place == f"merge.yaml:{line}"
    assert move is None or move in (problem.next_move or "")


def test_an_unknown_method_does_not_accuse_its_parameters() -> None:
    (problem,) = problems_of(SMALL.format(method="tise\n  density: 0.3\n  rules:\n  - {match: x, density: 0.1}"))
    assert "tise" in problem.what


def test_all_problems_come_at_once_in_the_order_of_lines() -> None:
    text = FULL.replace("weight: 0.3", "wieght: 0.3").replace("audio: 0.7", "audoi: 0.7").replace("seed: 7", "seed: x")
    text = text.replace("bfloat16", "bf16").replace("rank: 16", "rank: 0").replace("mteb:", "metb:")
    marks = ["wieght", "audoi", "bf16,", "seed: x", "rank: 0", "metb"]
    assert [problem.place for problem in problems_of(text)] == [f"merge.yaml:{line_with(text, mark)}" for mark in marks]


def test_from_dict_names_keys_instead_of_lines() -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.from_dict({"base": "b", "specialists": {"a": {"model": "m", "weight": "x"}}, "merg": {}})
    assert [problem.place for problem in caught.value.problems] == ["recipe.specialists.a.weight", "recipe.merg"]


# --- schema -------------------------------------------------------------------------------------------------------


def test_the_schema_accepts_the_example_and_is_one() -> None:
    schema = recipes.schema()
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(whole(), schema)


@EVERY_KEY
def test_the_schema_refuses_a_typo_too(path: tuple[Any, ...], row: Parameter) -> None:
    values = whole()
    parent = parent_of(values, path)
    parent[f"{row.name}q"] = parent.pop(row.name)
    assert not jsonschema.Draft7Validator(recipes.schema()).is_valid(values)


def test_the_schema_knows_each_methods_parameters() -> None:
    validator = jsonschema.Draft7Validator(recipes.schema())

    def valid(**merge: Any) -> bool:
        return validator.is_valid({"base": "b", "specialists": {"a": "m"}, "merge": merge})

    assert valid(method="ties", density=0.2) and valid(method="sum") and valid(scale=0.5)
    assert valid(method="ties", density=[0.1, 0.2]) and valid(method="mine/median.py:median", strength=3)
    assert not valid(method="linear", density=0.2) and not valid(density=0.2)
    assert not valid(method="tise") and not valid(method="ties", density=2)
    assert valid(rules=[{"match": "x", "density": 0.3}]) and not valid(rules=[{"match": "x", "densty": 0.3}])
    assert valid(rules=[{"match": "x", "method": "ties", "density": 0.3}])
    assert not valid(rules=[{"match": "x", "method": "linear", "density": 0.3}])
    assert not valid(rules=[{"keep": "base"}])


def test_gradients_over_depth() -> None:
    assert recipes.at_depth((0.0, 1.0, 0.5), 0.75) == 0.75
    assert recipes.at_depth((0.2,), 0.5) == 0.2
    assert recipes.at_depth((0.0, 1.0), -1) == 0.0 and recipes.at_depth((0.0, 1.0), 2) == 1.0
    assert [recipes.at_depth((0.0, 1.0), recipes.layer_depth(layer, 5)) for layer in range(5)] == [
        0,
        0.25,
        0.5,
        0.75,
        1,
    ]
    assert recipes.layer_depth(0, 1) == 0.0


def test_the_example_is_untouched_by_reading() -> None:
    values = whole()
    before = copy.deepcopy(values)
    recipes.from_dict(values)
    assert values == before


def test_a_mixture_of_experts_is_refused_by_name() -> None:
    text = "base_model: a/b\ngate_mode: hidden\nexperts:\n  - {source_model: c/d, positive_prompts: [x]}\n"
    with pytest.raises(RecipeError, match="a mergekit-moe configuration") as told:
        recipes.loads(text)
    assert "make it with mergekit-moe" in str(told.value)
