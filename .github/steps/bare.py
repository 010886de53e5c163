"""Fuse, verify and inspect with the wheel alone; a command that needs an extra names it."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PROGRAM = str(Path(sys.executable).with_name("taskmerge"))


def command(*words: str, code: int = 0) -> str:
    """Run a command; its output."""
    ended = subprocess.run([PROGRAM, *words], capture_output=True, text=True)
    said = ended.stdout + ended.stderr
    assert ended.returncode == code and "Traceback" not in said, said
    return said


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    models = {name: torch.randn(64, 32, generator=generator) for name in ("base", "a", "b")}
    for name, tensor in models.items():
        Path(name).mkdir()
        save_file({"layer.weight": tensor}, f"{name}/model.safetensors")
    specialists = {"a": {"model": "a", "weight": 0.3}, "b": {"model": "b", "weight": 0.5}}
    recipe = {
        "base": "base",
        "specialists": specialists,
        "merge": {"method": "task_arithmetic"},
        "output": {"path": "out"},
    }
    Path("merge.yaml").write_text(json.dumps(recipe))
    command("fuse", "merge.yaml")
    base, a, b = (tensor.double() for tensor in models.values())
    expected = (base + 0.3 * (a - base) + 0.5 * (b - base)).float()
    assert torch.equal(load_file("out/model.safetensors")["layer.weight"], expected)
    command("verify", "out")
    command("inspect", "out")
    command("compare", "base", "a", "b")
    Path("pairs.jsonl").write_text('{"query": "one", "text": "two"}\n{"query": "three", "text": "four"}\n')
    said = command("evaluate", "base", "--retrieval", "text=pairs.jsonl", code=2)
    assert "sentence" in said and "pip install" in said, said
    print("the wheel works without extras")


if __name__ == "__main__":
    main()
