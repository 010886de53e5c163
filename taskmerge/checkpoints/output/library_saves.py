"""A model that another library saves, in a folder of ours: there whole, with card and record, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.cards.card import card, kept_card
from taskmerge.checkpoints.cards.kinds import reading
from taskmerge.checkpoints.output.record import CARD
from taskmerge.checkpoints.output.writing import OutputFolder, check_space
from taskmerge.words.system_errors import writing


def publish_saved(
    save: Callable[[Path], Any],
    out: str | Path,
    record: Mapping[str, Any],
    *,
    needed: int = 0,
    fresh: bool = False,
    inputs: Iterable[Path] = (),
    keep: bool = False,
    base: Path | None = None,
) -> list[str]:
    """Have `save` write a model, and move it to its place in one rename.

    save: is given a folder that does not exist yet. record: see `record.new_record`. needed: bytes of weights that it
    will write, for which there must be room. base: folder of the model whose card is kept. The rest as for
    `OutputFolder`.
    Returns what turned up in a folder that was replaced, and stays. Raises OutputError, and what `save` raises.
    """
    output = OutputFolder(out, "", fresh, inputs, keep=keep)
    check_space(output.final, needed)
    with output:
        try:
            with writing(output.final):
                save(output.saved())
            output.take_over()
            made = card(output.final.name, record, reading(output.small), kept=kept_card(base))
            output.add_text(CARD, made.text)
            return output.publish(record)
        except BaseException:
            output.abandon()
            raise
