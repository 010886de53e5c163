"""One alignment of all inputs: which tensor, and which token row, of whom is which.

The plan of a fuse, the algebra, `compare`, `diff`, `extract` and `apply` all begin here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.lineage.grafts import naming
from taskmerge.checkpoints.lineage.heads import Heads, match_heads
from taskmerge.checkpoints.lineage.modules import check_modules
from taskmerge.checkpoints.lineage.names import align
from taskmerge.checkpoints.lineage.stacking import Run, stacked
from taskmerge.checkpoints.lineage.token_sources import Vocabularies
from taskmerge.checkpoints.lineage.tokenizers import Rows
from taskmerge.checkpoints.lineage.twins import Twins, match_twins
from taskmerge.checkpoints.lineage.vocabulary import match_tokens, unmatched_tokens
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import MergeError, Problem


@dataclass(frozen=True)
class Alignment:
    """All inputs under one naming, their token tables with the same rows.

    census: the base and the specialists. rows: what the rows of the token tables are; None where all had the same.
    own_bases: of the specialists that were not fine-tuned from the base, label -> what they were fine-tuned from.
    heads: what became of output heads that are token tables. twins: what became of tensors that some store twice.
    notes: what to tell the user.
    """

    census: Census
    rows: Rows | None = None
    own_bases: Mapping[str, StateDict] = field(default_factory=dict)
    heads: Heads = field(default_factory=lambda: Heads({}))
    twins: Twins = field(default_factory=lambda: Twins({}))
    notes: tuple[str, ...] = ()


def align_all(
    inputs: Mapping[str, StateDict],
    overrides: Mapping[str, Sequence[str]] | None = None,
    vocabulary: Vocabularies | None = None,
    own_bases: Mapping[str, StateDict] | None = None,
    stack: Sequence[Run] = (),
) -> Alignment:
    """Align all inputs from their headers and configs; no tensor is read.

    Args:
        inputs: the base, under "base", and the specialists by label.
        overrides: the recipe's `components`: component -> name patterns.
        vocabulary: whose token rows the output has; left out: the base's and those that specialists add.
        own_bases: label -> the base of a specialist that has one of its own.
        stack: the layers of the output, one run of an input after the other; default: unchanged.

    Raises: MergeError or CheckpointError with every input that does not fit.
    """
    own_bases = own_bases or {}
    empty = [
        Problem("contains no tensors", state_dict.label, "give a model with weights")
        for state_dict in inputs.values()
        if not state_dict.tensors
    ]
    if empty:
        raise MergeError(empty)
    modules = check_modules(inputs, BASE)
    names_of = naming(inputs, overrides)
    everything = {**inputs, **{own_base_label(label): state_dict for label, state_dict in own_bases.items()}}
    named = {
        label: state_dict
        if label == names_of.label
        else align(inputs[names_of.label], state_dict, overrides).state_dict
        for label, state_dict in everything.items()
    }
    twins = match_twins(named)
    heads = match_heads(twins.inputs, names_of.label)
    matched, rows = match_tokens(heads.inputs, vocabulary or Vocabularies())
    tokens = unmatched_tokens(heads.inputs)
    matched_inputs = {label: matched[label] for label in inputs}
    matched_bases = {label: matched[own_base_label(label)] for label in own_bases}
    stack_notes: list[str] = []
    if stack:
        matched_inputs, matched_bases, stack_notes = stacked(matched_inputs, stack, matched_bases, overrides)
    census = Census.of(matched_inputs, overrides or {}, names_of, stack)
    return Alignment(census, rows, matched_bases, heads, twins, (*modules, *tokens, *stack_notes))


def own_base_label(label: str) -> str:
    """Return the name in messages for the base of a specialist that has its own."""
    return f"{label}'s base"
