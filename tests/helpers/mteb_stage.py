"""Two local tasks through mteb in a process of its own: `python mteb_stage.py MODEL FOLDER LOG [TASK]`.

Every text that is embedded is counted in LOG by task. With TASK the process kills itself when that task begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from omni_models import WORDS

from taskmerge.measuring.evaluation import mteb_adapter, mteb_model
from taskmerge.measuring.evaluation.mteb_adapter import local_task, run_mteb

PAIRS = [{"query": f"{first} {second}", "text": f"{second} {third}"} for first, second, third in
         zip(WORDS[:8], WORDS[1:9], WORDS[2:10], strict=True)]  # fmt: skip


def tasks() -> list[Any]:
    return [local_task("LocalFirst", PAIRS), local_task("LocalSecond", PAIRS[::-1], "from_text")]


def main(model: str, folder: str, log: str, fatal: str = "") -> None:
    counts: Counter[str] = Counter()
    own = mteb_model.as_mteb_model

    def counting(source: Any, name: str, **options: Any) -> Any:
        adapter = own(source, name, **options)
        encode = adapter.encode

        def counted(inputs: Any, *, task_metadata: Any, **keywords: Any) -> Any:
            if task_metadata.name == fatal:
                Path(log).write_text(json.dumps(counts))
                os.kill(os.getpid(), signal.SIGKILL)
            counts[task_metadata.name] += len(inputs.dataset)
            return encode(inputs, task_metadata=task_metadata, **keywords)

        adapter.encode = counted
        return adapter

    home: Any = mteb_adapter
    home.as_mteb_model = counting
    said: list[str] = []
    try:
        found = run_mteb({"tiny": model}, tasks(), results=folder, say=said.append)
    finally:
        mteb_adapter.as_mteb_model = own
    Path(log).write_text(json.dumps({**counts, "scores": found.scores, "said": said, "revisions": found.revisions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
