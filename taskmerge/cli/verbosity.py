"""Amount of output of a command: `--quiet` and `--verbose`, which every command has."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass
class Verbosity:
    """quiet: results, warnings and errors only. verbose: also what libraries log, and the trace of a failure. json: one
    JSON object on stdout, a result or an error, and nothing else."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False


verbosity = Verbosity()
"""Of this process."""


def begin() -> None:
    """Print as the words of the command line ask for; of --json that is known before they are understood, or not."""
    words = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    verbosity.quiet = verbosity.verbose = False
    verbosity.json = "--json" in words and not {"-h", "--help", "--version"} & set(words)


def be_quiet() -> None:
    """Print only results, warnings and errors from now on."""
    verbosity.quiet = True


def be_verbose() -> None:
    """Also print library logs and the traceback of a failure from now on."""
    import logging

    verbosity.verbose = True
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
