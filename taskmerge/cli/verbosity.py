"""How much a command prints: `--quiet` and `--verbose`, which every command has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Verbosity:
    """quiet: results, warnings and errors only. verbose: also what libraries log, and the trace of a failure."""

    quiet: bool = False
    verbose: bool = False


verbosity = Verbosity()
"""Of this process."""


def begin() -> None:
    """Print as a command prints that asks for nothing else."""
    verbosity.quiet = verbosity.verbose = False


def be_quiet() -> None:
    """Print results, warnings and errors from now on, and nothing else."""
    verbosity.quiet = True


def be_verbose() -> None:
    """Also print what libraries log from now on, and the trace of a failure."""
    import logging

    verbosity.verbose = True
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
