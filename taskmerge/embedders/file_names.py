"""Names of live tensors in the file that their model was loaded from."""

from __future__ import annotations

from typing import Any

from taskmerge.checkpoints.lineage.names import match_names
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import MergeError
from taskmerge.words.numerals import is_whole


def names_in_file(network: Any, stored: StateDict | None) -> tuple[dict[str, str], dict[int, str]]:
    """Return the network's names -> the file's, and place of a sentence-transformers module -> its folder."""
    if stored is None:
        return {}, {}
    folders = {name.partition("/")[0] for name in stored.tensors if "/" in name}
    tails = {int(folder.partition("_")[0]): folder for folder in folders if is_whole(folder.partition("_")[0])}
    try:
        pairs = match_names(stored, MemoryStateDict.of_module(network)).pairs
    except MergeError:  # packed otherwise than in the file: its own names are all there is
        pairs = {}
    return {theirs: ours for ours, theirs in pairs.items()}, tails
