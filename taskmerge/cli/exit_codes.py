"""The meaning of all exit codes: one table, for the pages and for tests."""

from __future__ import annotations

EXIT_CODES: dict[int, str] = {
    0: "done; nothing drifted beyond its limit",
    1: "failed: unreadable or incompatible inputs, a full disk; `diff`, `verify`, `check-model`, `doctor`: a "
    "difference or a fault was found",
    2: "an error in the command line or the recipe; nothing was done",
    3: "drifted beyond the limit: `diagnose-drift`, and `run` without a stage that repairs; `rehearse`, `run`: "
    "the model was left unchanged, because a modality would have scored lower",
    4: "cannot tell: nothing drifted beyond the limit, but the probes cannot decide for at least one "
    "modality (`diagnose-drift`, "
    "and `run` without a stage that repairs)",
    70: "a bug in taskmerge; the message names the file that contains the full traceback",
    130: "interrupted; the same command continues from the finished files",
}
