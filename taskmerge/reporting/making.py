"""Origin of a page's numbers: recipe, versions, machine."""

from __future__ import annotations

import datetime
import os
import platform
import sys

from taskmerge import __version__
from taskmerge.reporting.content import Block, Cell, Section, Table, Texts
from taskmerge.words.sizes import show_bytes

_MORE = ("transformers", "tokenizers", "sentence-transformers", "datasets", "peft", "optuna", "mteb")
"""Libraries in addition to those in a merge's record; those that this process has not loaded are left out."""


def making_section(recipe: str = "") -> Section:
    """Return the last section of every page. recipe: its text, if there is one."""
    versions: list[list[Cell | str]] = [[name, version] for name, version in _versions().items()]
    blocks: list[Block] = [Texts("Recipe", [("the recipe as it was read", recipe)])] if recipe else []
    blocks.append(Table("Versions and machine", ["", ""], [*versions, *_machine()], words=True))
    return Section("How this was made", tuple(blocks))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from taskmerge.merging.provenance import versions

    found = {"taskmerge": __version__, **{name: text for name, text in versions().items() if text is not None}}
    for name in _MORE:
        if name.replace("-", "_") in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found


def _machine() -> list[list[Cell | str]]:
    from taskmerge.kernels.threads import available_cores

    rows: list[list[Cell | str]] = [
        ["system", f"{platform.system()} {platform.release()}, {platform.machine()}"],
        ["cores", str(available_cores())],
    ]
    if hasattr(os, "sysconf"):
        rows.append(["memory", show_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))])
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        rows.append(["GPUs", ", ".join(names)])
    now = datetime.datetime.now(datetime.timezone.utc)
    return [*rows, ["written", f"{now:%Y-%m-%d %H:%M} UTC"]]
