"""The `stack` section: the layers of the output, one run of a model after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from taskmerge.errors import Problem, clipped

_LAYERS = re.compile(r"\s*([0-9]{1,6})\s*\.\.\s*([0-9]{1,6})\s*\Z")

Entry = Mapping[str, str]


def layers_of(text: str) -> range | None:
    """Parse "8..15" as the layers 8 to 15, both included; return None for any other text."""
    found = _LAYERS.match(text)
    layers = range(int(found[1]), int(found[2]) + 1) if found else None
    return layers or None


def runs_of(stack: Sequence[Entry] | None) -> tuple[dict[str, range], ...]:
    """Return a checked stack as ranges of layers, by label."""
    return tuple({label: layers_of(text) or range(0) for label, text in entry.items()} for entry in stack or ())


def stack_problems(stack: Sequence[Entry], specialists: Mapping[str, object], place: str) -> Iterator[Problem]:
    """Yield the problems of a stack that are independent of the models."""
    for number, entry in enumerate(stack):
        what = f"stack[{number}]"
        if not entry:
            yield Problem(f"{what} lists no layers", place, "write `{base: 0..15}`")
        wrong = {label: text for label, text in entry.items() if layers_of(text) is None}
        for label, text in wrong.items():
            told = f"{what}: {label} must be layers such as 0..15, not {clipped(repr(text), 100)}"
            yield Problem(told, place, "write first..last, both included, counted from 0")
        counts = {label: len(layers) for label, layers in runs_of([entry])[0].items()}
        if not wrong and len(set(counts.values())) > 1:
            shown = ", ".join(f"{label} {count}" for label, count in counts.items())
            yield Problem(f"{what} has different numbers of layers ({shown})", place, "use the same number of each")
    named = {label for entry in stack for label in entry}
    for label in specialists:
        if label not in named:
            yield Problem(f"stack uses no layers of {label}", place, "add it to an entry, or remove the specialist")
