"""What the exit codes of all commands mean: one table, for the pages and for tests."""

from __future__ import annotations

EXIT_CODES: dict[int, str] = {
    0: "done; nothing drifted beyond its limit",
    1: "failed: unreadable or unfitting inputs, a full disk; `diff`, `verify`, `check-model`, `doctor`: a difference "
    "or a fault was found",
    2: "a mistake in the command line or the recipe; nothing was done",
    3: "drifted beyond the limit: `diagnose-drift`, and `run` where no stage of it repairs; `rehearse`, `run`: left "
    "as it came, as a modality would have ended below what it had",
    4: "cannot tell: nothing drifted beyond the limit, but of a modality it cannot be told (`diagnose-drift`, and "
    "`run` where no stage of it repairs)",
    70: "a fault of taskmerge itself; the message names the file that holds the whole trace",
    130: "interrupted; the same command goes on from the finished files",
}
