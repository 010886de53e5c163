"""`SentenceTransformer.merge` as a whole process: METHOD OUT BASE SPECIALIST SPECIALIST."""

from __future__ import annotations

import sys

from sentence_transformers import SentenceTransformer

method, out, base, *specialists = sys.argv[1:]
merged = SentenceTransformer.merge(
    specialists,
    method,
    base_model=None if method == "linear" else base,
    parameters={"weight": [0.3, 0.4], **({"density": 0.2} if method == "ties" else {})},
    out_dtype="bfloat16",
)
merged.save_pretrained(out)
