"""How much a command prints: `--quiet` and `--verbose`, which every command has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Verbosity:
    """quiet: print only results, warnings and errors. verbose: also print library logs and the traceback of a
    failure."""

    quiet: bool = False
    verbose: bool = False


verbosity = Verbosity()
"""Of this process."""


def begin() -> None:
    """Use the default verbosity."""
    verbosity.quiet = verbosity.verbose = False


def be_quiet() -> None:
    """Print only results, warnings and errors from now on."""
    verbosity.quiet = True


def be_verbose() -> None:
    """Also print library logs and the traceback of a failure from now on."""
    import logging

    verbosity.verbose = True
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
