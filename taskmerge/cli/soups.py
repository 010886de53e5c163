"""soup."""

from __future__ import annotations

from pathlib import Path

import typer

from taskmerge.cli.options import FRESH, JSON, OUT_FOLDER
from taskmerge.cli.output import announce_preparing, next_move, note, print_json, say
from taskmerge.errors import UsageError


def soup(
    checkpoints: str = typer.Argument(help="A pattern that names the checkpoints of one run: 'run/checkpoint-*'."),
    out: Path = OUT_FOLDER,
    last: int = typer.Option(None, "--last", min=1, help="How many of them, the latest; all by default."),
    ema: float = typer.Option(None, "--ema", help="Decay of a moving average, oldest first; else all count the same."),
    greedy: str = typer.Option(None, "--greedy", help="Pairs: keep only checkpoints that do not lower R@1 on them."),
    base: str = typer.Option(None, "--base", help="Of checkpoints that are adapters: the model they are for."),
    dtype: str = typer.Option(None, "--dtype", help="Format of the output; the checkpoints' by default."),
    shard_size: str = typer.Option("5GB", "--shard-size", help="At most this many bytes per file."),
    fresh: bool = FRESH,
    as_json: bool = JSON,
) -> None:
    """Write the mean of a run's checkpoints as one model."""
    from taskmerge.checkpoints.output.saving import save_state_dict
    from taskmerge.checkpoints.soups import Averaged, shares
    from taskmerge.merging.inputs import open_soup
    from taskmerge.words.places import is_pattern

    if not is_pattern(checkpoints):
        raise UsageError(
            f"{checkpoints!r} names one place, not several", next_move="quote a pattern: 'run/checkpoint-*'"
        )
    if greedy is not None and (ema is not None or base is not None):
        other = "--ema" if ema is not None else "--base"
        raise UsageError(
            f"--greedy does not go with {other}", next_move="a greedy soup is a plain mean of whole models"
        )
    if ema is not None and not 0 < ema < 1:
        raise UsageError(f"--ema {ema:g} is not between 0 and 1", next_move="write such as --ema 0.9")
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
