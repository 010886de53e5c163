"""Prompts and truncate_dim: carried when one side says them, named when two differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoint_files import random_model, write_model

from taskmerge.checkpoints.formats.reading import PROMPTS
from taskmerge.checkpoints.lineage.prompts import joined_prompts
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.merging.execute import execute
from taskmerge.merging.plan import plan
from taskmerge.recipes import from_dict


def saying(**tables: Any) -> dict[str, StateDict]:
    inputs: dict[str, StateDict] = {}
    for label, table in tables.items():
        weights = MemoryStateDict({}, label)
        weights.beside = Beside(prompts=table)
        inputs[label] = weights
    return inputs


def test_what_only_a_specialist_says_is_carried() -> None:
    base = {"__version__": {"transformers": "5"}, "prompts": {"query": "", "document": ""}, "truncate_dim": None}
    audio = {"__version__": {"transformers": "4"}, "prompts": {"query": "find: "}, "truncate_dim": 256}
    joined, said = joined_prompts(saying(base=base, audio=audio))
    assert said == []
    assert joined == {
        "__version__": {"transformers": "5"},
        "prompts": {"query": "find: ", "document": ""},
        "truncate_dim": 256,
    }


def test_the_bases_word_stands_and_the_other_is_named() -> None:
    joined, said = joined_prompts(saying(base={"prompts": {"query": "a"}}, audio={"prompts": {"query": "b"}}))
    assert joined == {"prompts": {"query": "a"}}
    assert said == [f"{PROMPTS}: prompts: query differs: base 'a', audio 'b'; the one of base is used"]


def test_specialists_that_disagree_are_both_named() -> None:
    joined, said = joined_prompts(saying(base={}, a={"truncate_dim": 1}, b={"truncate_dim": 2}))
    assert joined == {}
    assert said == [f"{PROMPTS}: truncate_dim differs: a 1, b 2; none is used, because base has none"]


def test_nothing_said_is_nothing_written() -> None:
    assert joined_prompts(saying(base={}, audio={})) == ({}, [])


def test_a_fused_folder_has_the_specialists_prompts(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_model(0))
    other = write_model(tmp_path / "other", random_model(1, near=random_model(0)))
    (other / PROMPTS).write_text('{"prompts": {"query": "find: "}, "default_prompt_name": "query"}')
    recipe = from_dict({"base": str(base), "specialists": {"other": str(other)}, "merge": {"method": "linear"}})
    execute(plan(recipe), recipe, tmp_path / "out")
    written = json.loads((tmp_path / "out" / PROMPTS).read_text())
    assert written == {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
