"""Numbers by which the Python side tells a compiled kernel what to do."""

from __future__ import annotations

BF16, F16, F32, F64 = 0, 1, 2, 3
FORMAT, DELTA = 3, 4  # of a format code: the bits that say the format, and the one of entries that are a task vector's
FORMATS = {"BF16": BF16, "F16": F16, "F32": F32, "F64": F64}

KEEP_ALL, KEEP_BETWEEN, DROP_RANDOM, DROP_BY_RANK, DROP_BY_RANK_RESCALED = 0, 1, 2, 3, 4

SUM, ELECT, LARGEST, ACTIVE = 0, 1, 2, 3
WEIGHTED_MASS, MASS, COUNT = 0, 1, 2
VOTES = {"weighted_mass": WEIGHTED_MASS, "mass": MASS, "count": COUNT}
BY_WEIGHT, BY_COUNT, BY_NOTHING = 0, 1, 2
AVERAGES = {"weight": BY_WEIGHT, "count": BY_COUNT, "none": BY_NOTHING}
