"""What mergekit's own program writes of three tiny models: whole tensors, in bfloat16 and float32.

`python tests/helpers/mergekit_merges.py tests/oracles/mergekit_merges.safetensors MERGEKIT-YAML` makes the models, runs
the program (mergekit 0.1.5) and keeps its outputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from mergekit_cases import CONFIG, model
from safetensors.torch import load_file, save_file

WEIGHTS = {"a": 0.3, "b": 0.5}
CASES = [("bfloat16", "task_arithmetic"), ("bfloat16", "ties"), ("float32", "task_arithmetic")]


def save_models(folder: Path, dtype: str) -> None:
    for label in ("base", *WEIGHTS):
        (folder / label).mkdir(parents=True)
        tensors = {name: torch.from_numpy(values).to(getattr(torch, dtype)) for name, values in model(label).items()}
        save_file(tensors, folder / label / "model.safetensors", {"format": "pt"})
        (folder / label / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": dtype}))


def configuration(dtype: str, method: str) -> str:
    """As mergekit reads it; JSON is YAML."""
    density = {"density": 0.5} if method == "ties" else {}
    rows = [{"model": label, "parameters": {"weight": weight, **density}} for label, weight in WEIGHTS.items()]
    said = {"merge_method": method, "base_model": "base", "models": rows, "dtype": dtype}
    return json.dumps(said | {"parameters": {"normalize": False}})


def main() -> None:
    found: dict[str, Any] = {}
    for dtype, method in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            here = Path(scratch)
            save_models(here, dtype)
            (here / "merge.yaml").write_text(configuration(dtype, method))
            apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            subprocess.run(
                [str(Path(sys.argv[2]).absolute()), "merge.yaml", "out", "--no-write-model-card"],
                cwd=here,
                check=True,
                env=apart,
            )
            for path in (here / "out").glob("*.safetensors"):
                found |= {f"{dtype} {method} {name}": tensor for name, tensor in load_file(path).items()}
    save_file(found, sys.argv[1])


if __name__ == "__main__":
    main()
