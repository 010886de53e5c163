"""A small recipe with room for a method, and what is wrong with a recipe's text."""

from __future__ import annotations

import pytest

from taskmerge import recipes
from taskmerge.errors import Problem, RecipeError

SMALL = """\
base: models/base
specialists:
  audio: models/audio
merge:
  method: {method}
"""


def problems_of(text: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        recipes.loads(text, "merge.yaml")
    return list(caught.value.problems)
