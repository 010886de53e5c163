"""The output's tokenizer as a recipe asks for it: its rows, and its files that are written again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from taskmerge.checkpoints.lineage.chat_templates import chosen_template, template_files
from taskmerge.checkpoints.lineage.token_ids import renewed_files
from taskmerge.checkpoints.lineage.token_sources import RowSource, Vocabularies
from taskmerge.checkpoints.lineage.tokenizers import Rows, has_tokenizer
from taskmerge.checkpoints.state_dict import BASE, Beside, StateDict
from taskmerge.errors import MergeError
from taskmerge.recipes import Output, Recipe


def vocabularies(output: Output) -> Vocabularies:
    """Return the settings of the output's token rows."""
    rows = {name: RowSource(one.source, one.token, one.row, one.force) for name, one in output.tokens.items()}
    return Vocabularies(output.tokenizer, rows, output.pad_rows, output.new_tokens == "own")


def without_tokenizer(output: Output, inputs: Mapping[str, StateDict], folder: Path | None) -> list[str]:
    """Return a note if the output gets no tokenizer though an input has one. folder: of its tokenizer.

    Raises MergeError when the recipe names an input that has none.
    """
    having = [label for label, state_dict in inputs.items() if has_tokenizer(state_dict.beside.tokenizer_folder)]
    if not having or has_tokenizer(folder):
        return []
    named = f"output: {{tokenizer: {having[0]}}}"
    if output.tokenizer in inputs and output.tokenizer != BASE:
        what = f"output: tokenizer: {output.tokenizer} has no tokenizer"
        raise MergeError(what, output.place, f"choose an input that has one: {named}")
    return [f"the result has no tokenizer, because the base has none; {', '.join(having)} has one: {named}"]


def tokenizer_texts(
    recipe: Recipe, inputs: Mapping[str, StateDict], rows: Rows | None, beside: Beside, order: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the tokenizer's files that are rewritten, and notes for the user. beside: of the output.
    order: the inputs whose side files it gets, the first that has a file first.

    Raises MergeError for a chat template that is none.
    """
    texts = dict(rows.texts) if rows is not None else {}
    if rows is not None:
        texts |= renewed_files({label: inputs[label].beside for label in order}, rows)
    output = recipe.output
    if output.chat_template is None:
        return texts, []
    folders = {label: state_dict.beside.tokenizer_folder for label, state_dict in inputs.items()}
    text, said = chosen_template(output.chat_template, folders, recipe.folder, output.place)
    return (texts if text is None else texts | template_files(text, beside.tokenizer_folder, texts)), [said]
