"""The reference pages, printed from the declarations: `python -m taskmerge.recipes.docs docs` writes them again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from taskmerge.declarations import Kind, Parameter, Section, fields_of
from taskmerge.methods import INPUTS, MergeMethod, all_methods
from taskmerge.recipes.merging import Merge, Rule
from taskmerge.recipes.recipe import Recipe

NOTICE = "<!-- Printed by `python -m taskmerge.recipes.docs docs`; change the declarations, not this page. -->"
HEAD = "| key | may be | default | meaning |\n|---|---|---|---|"

METHODS_INTRO = """\
# Merge methods

`b` is the base tensor, `x_i` specialist i, `d_i = x_i - b` its task vector, `w_i` its weight, λ the `scale`, T the
number of specialists, ρ `density`. The result is `b + λ · merged(d)`, computed in float64 and rounded once, to
nearest even, into the output's number format; into float64 itself, methods that stream compute without rounding in
between. Magnitudes are compared as float32, signs elected on float64 deltas; entries equal to a threshold are all
kept, so no result depends on a sort's tie order. Random drops depend on seed, specialist, tensor name and position
alone.

Start with `task_arithmetic`: on language models it is the safest method (arXiv 2511.21437), and none of the others is
guaranteed to beat it on your models. Measure.

Methods that *stream* merge a model of any size in bounded memory; the others hold one complete tensor at a time.
Methods of *matrices* merge 2-D tensors by their singular values and give all others (norms, biases, convolutions) the
mean `Σ w d / T`, including token tables (one row per token); a rule can change this: `{match: "*embed*", method:
task_arithmetic}`. T counts every specialist that has the tensor, including those of weight 0. Singular values below a
millionth of the largest count as rounding, and so do those that do not exceed the rounding of the storage format: a
model stored as bf16 has a rounding step of up to 1/256 in every entry, and a LoRA merged into it is found with its own
rank again. A change that cannot be distinguished from rounding is lost: about `σ√(r(rows + columns - r))` of a delta of
rank r, 3 % at 256 x 256, rank 4 and a hundredth of the base's length in bf16. Adapters that are given as adapters are
exact.

`weight: metagpt` next to a method weights specialists by `‖d_i‖² / Σ ‖d_j‖²` of each tensor (MetaGPT, arXiv 2406.11385;
the paper computes the lengths over the complete model, with one weight per specialist). `scale: [α, α+β]`, a gradient
over depth, is LiNeS (arXiv 2410.17146) within the layers, for any method. LiNeS scales all other tensors by α, which
`edges: first` does; without it, a tensor outside the layers gets the value of the nearer end, so the final norm and the
head get α+β. For several tasks the paper computes α from the lengths of the sum and of the task vectors; here you set
it.
"""

OWN_METHOD = """\
## A method of your own

A merge method is a function of tensors; its signature is its only declaration. Save this as `median.py` next to the
recipe and write `method: median.py:median`, or install it under the entry point group `taskmerge.methods`.

```python
from typing import Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.methods import merge_method


@merge_method
def median(deltas, weights, *, scale: Annotated[float, Between(0, 2), Doc("step along the median")] = 1.0):
    "Coordinate-wise median of the task vectors.  deltas: (specialists, *shape) -> (*shape)."
    return scale * deltas.median(dim=0).values
```

It may request these tensors by name:
"""

RECIPE_INTRO = """\
# The recipe

One YAML file describes the inputs, the method and the output. `taskmerge fuse merge.yaml` runs it; `--dry-run` shows
the plan.

```yaml
{example}```

All unknown keys, wrong types and impossible values are reported together, each with its line and the nearest valid
name, before any tensor is read. Numbers and words are those of YAML 1.2 (`1e-5` is a number, `no` is text); duplicate
keys and tags are refused; `<<` merges mappings. `taskmerge schema` prints the JSON Schema that editors check recipes
with.

**Gradients.** Where a weight or a method's parameter is a number, a list of numbers is allowed too: they are
interpolated over depth, from the first layer to the last. Tensors outside the layers get the value of the nearer end.

**Names.** Patterns match complete tensor names: `*` any number of characters, `?` any one character, `[a-f]` one of
these, `{{a,b}}` one of these alternatives, `{{0..7}}` one of these numbers. A component may come first:
`backbone.layers.{{0..7}}.*`.

**Methods.** A method's parameters are keys next to it; [methods](methods.md) lists them. `path/to/file.py:name` is a
method of your own, with a path relative to the recipe; only that file is executed.
"""


def table(rows: Sequence[Parameter]) -> str:
    """Return the table of parameters in Markdown."""
    return "\n".join([HEAD, *(_brief(row) for row in rows)])


def _brief(row: Parameter) -> str:
    """A table row, a section's own words in place of all its keys."""
    section = section_of(row.kind)
    return row.row().replace(row.kind.words, f"see `{row.name}` below") if section else row.row()


def section_of(kind: Kind) -> type | None:
    """Return the dataclass inside a kind: alone, optional, in a list or in a mapping."""
    inner = [kind, *getattr(kind, "alternatives", ()), getattr(kind, "entry", None)]
    inner += [getattr(part, "entry", None) for part in getattr(kind, "alternatives", ())]
    return next((part.cls for part in inner if isinstance(part, Section)), None)


def method_sections(methods: Sequence[MergeMethod]) -> Iterator[str]:
    """Yield the paragraphs about the merge methods, in Markdown."""
    for method in methods:
        yield f"### `{method.name}`"
        yield f"Also called {', '.join(f'`{alias}`' for alias in method.aliases)}." if method.aliases else ""
        yield f"Source: {method.source}." if method.source else ""
        yield method.doc
        yield table(method.recipe_parameters) if method.parameters else "No parameters."


def methods_page() -> str:
    """Return the text of docs/methods.md."""
    methods = [method for method in all_methods() if method.function.__module__.startswith("taskmerge.")]
    rows = ["| method | does | takes | source |", "|---|---|---|---|"]
    for method in methods:
        takes = "streams" if method.elementwise else "matrices" if method.whole_matrices else "complete tensors"
        summary = method.summary.replace("|", "\\|")
        rows.append(f"| [`{method.name}`](#{method.name}) | {summary} | {takes} | {method.source} |")
    inputs = "\n".join(f"- `{name}`: {meaning}" for name, meaning in INPUTS.items())
    parts = [NOTICE, METHODS_INTRO, "\n".join(rows), OWN_METHOD + "\n" + inputs, "## All methods"]
    return "\n\n".join(part.strip("\n") for part in [*parts, *method_sections(methods)] if part) + "\n"


def sections(cls: type, seen: set[type]) -> Iterator[tuple[str, type]]:
    """Yield every section under a dataclass, with its key, depth first."""
    for row in fields_of(cls):
        section = section_of(row.kind)
        if section and section not in seen:
            seen.add(section)
            yield row.name, section
            yield from sections(section, seen)


def recipe_page(example: str) -> str:
    """Return the text of docs/recipe.md. example: a recipe to show."""
    parts = [NOTICE, RECIPE_INTRO.format(example=example), "## All keys", table(fields_of(Recipe))]
    for name, cls in sections(Recipe, set()):
        extra = "In addition: the method's parameters." if cls in (Merge, Rule) else ""
        lone = getattr(cls, "shorthand", None)
        brief = f"A plain value is short for `{lone}`." if lone else ""
        parts += [
            f"### `{name}`",
            f"{(cls.__doc__ or '').split(chr(10))[0]} {extra}{brief}".strip(),
            table(fields_of(cls)),
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def pages(example: str) -> dict[str, str]:
    """Return the text of every generated page by file name."""
    return {"methods.md": methods_page(), "recipe.md": recipe_page(example)}


def main(folder: str) -> None:
    """Write the pages about recipes and methods into a folder."""
    example = (Path(folder).parent / "merge_configs" / "omni_audio_graft.yaml").read_text("utf-8")
    for name, text in pages(example).items():
        (Path(folder) / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
