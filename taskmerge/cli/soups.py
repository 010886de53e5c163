"""soup."""

from __future__ import annotations

from pathlib import Path

import typer

from taskmerge.cli.options import FRESH, JSON, OUT_FOLDER
from taskmerge.cli.output import announce_preparing, next_move, note, print_json, say
from taskmerge.errors import UsageError


def soup(
    checkpoints: str = typer.Argument(help="A pattern that matches the checkpoints of one run: 'run/checkpoint-*'."),
    out: Path = OUT_FOLDER,
    last: int = typer.Option(None, "--last", min=1, help="Use only the latest N of them; all by default."),
    ema: float = typer.Option(
        None, "--ema", help="Decay of a moving average, oldest first; by default all have equal weight."
    ),
    greedy: str = typer.Option(
        None, "--greedy", help="Pairs; only checkpoints that do not lower R@1 on them are included."
    ),
    base: str = typer.Option(None, "--base", help="For checkpoints that are adapters: the base model."),
    dtype: str = typer.Option(None, "--dtype", help="Number format of the output; that of the checkpoints by default."),
    shard_size: str = typer.Option("5GB", "--shard-size", help="Maximum number of bytes per file."),
    fresh: bool = FRESH,
    as_json: bool = JSON,
) -> None:
    """Average the checkpoints of a training run into one model."""
    from taskmerge.checkpoints.output.saving import save_state_dict
    from taskmerge.checkpoints.soups import Averaged, shares
    from taskmerge.merging.inputs import open_soup
    from taskmerge.words.places import is_pattern

    if not is_pattern(checkpoints):
        raise UsageError(
            f"{checkpoints!r} matches one path, not several", next_move="quote a pattern: 'run/checkpoint-*'"
        )
    if greedy is not None and (ema is not None or base is not None):
        other = "--ema" if ema is not None else "--base"
        raise UsageError(
            f"--greedy cannot be combined with {other}",
            next_move="leave out one of them: a greedy soup is a plain mean of complete models",
        )
    if ema is not None and not 0 < ema < 1:
        raise UsageError(f"--ema {ema:g} is not between 0 and 1", next_move="write for example --ema 0.9")
    announce_preparing()
    found, paths = open_soup(checkpoints, last=last, ema=ema, base=base)
    if greedy is not None:
        from taskmerge.pipeline.soup import greedy_soup

        chosen = sorted(greedy_soup(found.members, paths, greedy, note).chosen)
        paths = [paths[place] for place in chosen]
        found = Averaged([found.members[place] for place in chosen], shares(len(chosen)), checkpoints)
    for told in found.beside.notes:
        note(told)
    made = save_state_dict(found, out, dtype=dtype, shard_size=shard_size, fresh=fresh, made=("model", "soup"))
    next_move(f"taskmerge inspect {made}, or name it as a specialist in a recipe")
    if as_json:
        print_json({"path": str(made), "checkpoints": [str(path) for path in paths], "notes": list(found.beside.notes)})
        return
    say(made)


COMMANDS = (soup,)
