"""`tell`: unpacks the shipped models and runs the recipe's stages, saying in plain words what each does and found."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.output.record import FILE
from taskmerge.demo.findings import FINDINGS
from taskmerge.demo.folder import begin, check_folder
from taskmerge.demo.speech import check_speaker
from taskmerge.demo.unpacking import SHIPPED, base_model, check_libraries, specialist_model
from taskmerge.errors import OutputError
from taskmerge.pipeline import BY_NAME, Places, Run, check
from taskmerge.pipeline.stages import report
from taskmerge.pipeline.state import Say
from taskmerge.recipes import Recipe, load

RECIPE, REMADE = "recipe.yaml", "shipped"
SPECIALISTS = ("image", "audio")
_WIDTH = 110

OPENING = (
    "The base is all-MiniLM-L6-v2, a text embedder, with a small picture tower. Two specialists were trained "
    "from it independently: one matches pictures to captions, the other matches spoken words to their spelling, "
    "through an audio projector of its own. They come as task vectors (specialist - base) of one bit per "
    "weight, {size:.1f} MB, and are unpacked now."
)
CHAPTERS = {
    "fuse": "Fuse: base + 0.3 image + 0.5 audio, tensor by tensor. The audio projector, which only one specialist has, "
    "is copied unchanged.",
    "diagnose": "Diagnose: the copied projector now feeds a backbone it was not trained with. Does retrieval still "
    "work? The probes are words spoken by voices that were not used in training.",
    "recover": "Recover: train only the projector on the fused backbone; all else is frozen (a minute or two).",
    "rehearse": "Rehearse: train backbone, picture tower and audio projector on pictures and sounds in turn, to repair "
    "the changes that fusing made in the backbone itself (two minutes).",
    "evaluate": "Evaluate: all models, on pictures and voices that were not used in training.",
}


def tell(out: Path, say: Say = print, *, from_scratch: bool = False) -> tuple[dict[str, Any], Places]:
    """Run the demo into `out`; a second call resumes an interrupted one.

    Returns the report's table, and the places of the results.
    """
    check_libraries(from_scratch)
    if from_scratch:
        check_speaker()
    _check_folder(out, from_scratch)
    began = time.monotonic()
    begin(out, "demo")
    shipped = remade(out / REMADE, say) if from_scratch else SHIPPED
    recipe = set_stage(out, shipped, say)
    current = Run(recipe, Places.of(recipe), lambda line: _paragraph(say, line.strip()))
    check(current)
    for number, (stage, words) in enumerate(CHAPTERS.items(), 2):
        _chapter(say, number, words)
        BY_NAME[stage](current)
        for line in FINDINGS[stage](current):
            _paragraph(say, line)
    say(f"\nTotal time: {time.monotonic() - began:.0f} s.")
    return report(current), current.places


def _check_folder(out: Path, from_scratch: bool) -> None:
    """Refuses a folder that no such demo has made."""
    holds = check_folder(out, "demo", (RECIPE, "data", "models", REMADE))
    if holds - {FILE} and (REMADE in holds) != from_scratch:
        made = "made from scratch" if REMADE in holds else "of the shipped models"
        raise OutputError(f"the folder contains a demo {made}", str(out), "choose another --out, or remove it")


def set_stage(out: Path, shipped: Path, say: Say) -> Recipe:
    """Write recipe, data, base and specialists into `out`; existing files are kept."""
    size = sum(path.stat().st_size for name in SPECIALISTS for path in (shipped / name).glob("*.safetensors"))
    _chapter(say, 1, OPENING.format(size=size / 1e6))
    out.mkdir(parents=True, exist_ok=True)
    if not (out / RECIPE).is_file():
        shutil.copyfile(shipped / RECIPE, out / RECIPE)
    shutil.copytree(shipped / "data", out / "data", dirs_exist_ok=True)
    base = _once(out / "models" / "base", partial(base_model, shipped), say)
    for name in SPECIALISTS:
        _once(out / "models" / name, partial(specialist_model, base, shipped / name), say)
    return load(out / RECIPE)


def remade(folder: Path, say: Say) -> Path:
    """Return a folder like the shipped one, with all files made from scratch; see `making.make`."""
    from taskmerge.demo.making import make

    _chapter(
        say, 0, "From scratch: synthesise the words, draw the pictures, train the picture tower and both specialists."
    )
    if not (folder / RECIPE).is_file():
        make(folder, lambda line: say(f"   {line}"))
        shutil.copyfile(SHIPPED / RECIPE, folder / RECIPE)
    return folder


def _once(folder: Path, make: Callable[[Path], Any], say: Say) -> Path:
    """Makes the folder, in one rename, unless it is there."""
    if not folder.exists():
        make(folder)
    say(f"   {folder}")
    return folder


def _chapter(say: Say, number: int, words: str) -> None:
    say("\n" + textwrap.fill(words, _WIDTH, initial_indent=f"{number}. ", subsequent_indent="   "))


def _paragraph(say: Say, words: str) -> None:
    wrapper = textwrap.TextWrapper(
        _WIDTH, initial_indent="   ", subsequent_indent="   ", break_long_words=False, break_on_hyphens=False
    )
    say(wrapper.fill(words))
