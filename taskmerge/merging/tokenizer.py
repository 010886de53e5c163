"""The output's tokenizer as a recipe asks for it: its rows, and its files that are written again."""

from __future__ import annotations

from collections.abc import Mapping

from taskmerge.checkpoints.lineage.chat_templates import chosen_template, template_files
from taskmerge.checkpoints.lineage.token_sources import RowSource, Vocabularies
from taskmerge.checkpoints.lineage.tokenizers import Rows
from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.recipes import Output, Recipe


def vocabularies(output: Output) -> Vocabularies:
    """Return the settings of the output's token rows."""
    rows = {name: RowSource(one.source, one.token, one.row, one.force) for name, one in output.tokens.items()}
    return Vocabularies(output.tokenizer, rows, output.pad_rows, output.new_tokens == "own")


def tokenizer_texts(
    recipe: Recipe, inputs: Mapping[str, StateDict], rows: Rows | None, beside: Beside
) -> tuple[dict[str, str], list[str]]:
    """Return the tokenizer's files that are rewritten, and notes for the user. beside: of the output.

    Raises MergeError for a chat template that is none.
    """
    texts = dict(rows.texts) if rows is not None else {}
    output = recipe.output
    if output.chat_template is None:
        return texts, []
    folders = {label: state_dict.beside.tokenizer_folder for label, state_dict in inputs.items()}
    text, said = chosen_template(output.chat_template, folders, recipe.folder, output.place)
    return (texts if text is None else texts | template_files(text, beside.tokenizer_folder, texts)), [said]
