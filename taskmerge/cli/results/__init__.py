"""The output of each command with --json: the only declaration of its keys. `python -m taskmerge.cli.json_docs` makes
docs/json.md of it, and every test that runs a command with --json holds the output against it.

No command imports this: it is for the page and for tests.
"""

from __future__ import annotations

from typing import Any

from taskmerge.cli.results.errors import Failed
from taskmerge.cli.results.looking import Compared, Diff, Inspected, Judged, VerifiedRecord
from taskmerge.cli.results.merging import (
    Extracted,
    Fused,
    Made,
    PartMeasured,
    Planned,
    Proposed,
    SeveralFused,
    Souped,
    Swept,
)
from taskmerge.cli.results.program import Doctored, LaidOut, Methods, Pushed, Told, WrittenSchema
from taskmerge.cli.results.shapes import And
from taskmerge.cli.results.stages import (
    CheckedModel,
    Drifted,
    EvaluatedResult,
    Grafted,
    RunPlan,
    RunTable,
    Searched,
    Stats,
)

__all__ = ["RESULTS", "And", "Compared", "Failed", "Fused"]

RESULTS: dict[str, tuple[Any, ...]] = {
    "apply": (Made,),
    "check-model": (CheckedModel,),
    "compare": (Compared,),
    "demo": (Told, LaidOut),
    "diagnose-drift": (Drifted,),
    "diff": (Diff,),
    "doctor": (Doctored,),
    "evaluate": (EvaluatedResult,),
    "extract": (Extracted,),
    "fuse": (Planned, Fused, SeveralFused, PartMeasured, Swept),
    "graft": (Grafted,),
    "init": (Proposed,),
    "inspect": (Inspected,),
    "methods": (Methods,),
    "push": (Pushed,),
    "recover": (RunTable,),
    "rehearse": (RunTable,),
    "run": (RunTable, RunPlan),
    "schema": (WrittenSchema,),
    "search": (Searched,),
    "soup": (Souped,),
    "specialize": (RunTable,),
    "stats": (Stats,),
    "verify": (VerifiedRecord, Judged),
}
"""Command -> what it may print."""
