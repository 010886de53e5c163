"""The README's recipe, commands and programs, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from taskmerge.cli.app import app
from taskmerge.methods import registry

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/base and two specialists: tiny BERTs whose specialists differ from the base everywhere."""
    from omni_models import tiny_backbone

    monkeypatch.chdir(tmp_path)
    tiny_backbone(tmp_path / "models" / "base")
    for seed, name in enumerate(("image", "audio")):
        tiny_backbone(tmp_path / "models" / name)
        path = tmp_path / "models" / name / "model.safetensors"
        rng = np.random.default_rng(seed)
        tensors = {
            key: value + rng.normal(0, 0.02, value.shape).astype(value.dtype) for key, value in load_file(path).items()
        }
        save_file(tensors, path, metadata={"format": "pt"})
    return tmp_path


def test_recipe_and_commands(models: Path) -> None:
    (recipe,) = blocks("yaml")
    Path("merge.yaml").write_text(recipe)
    (console,) = blocks("console")
    for line in console.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def test_the_first_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands there works as it stands, once it is installed: base and specialists are what the demo ships."""
    monkeypatch.chdir(tmp_path)
    (lines,) = [text for text in blocks("") if "taskmerge init" in text]
    install, *commands = lines.splitlines()
    assert install.startswith("pip install") and "[demo]" in install
    for line in commands:
        result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert "numbers: {model: first/numbers" in Path("merge.yaml").read_text()


def test_programs(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # what a program registers ends with it
    programs = blocks("python")
    assert len(programs) == 2
    for program in programs:
        scope: dict[str, Any] = {}
        exec(compile(program, str(README), "exec"), scope)
    made = {path.parent.name for path in Path("out").glob("*/model.safetensors")}
    assert made == {"sum", "ties", "median"}
    base, median = (load_file(path) for path in ("models/base/model.safetensors", "out/median/model.safetensors"))
    image, audio = (load_file(f"models/{name}/model.safetensors") for name in ("image", "audio"))
    name = next(iter(base))
    expected = base[name] + 0.8 * np.minimum(image[name] - base[name], audio[name] - base[name])
    np.testing.assert_allclose(median[name], expected, atol=1e-6)


def test_a_method_of_ones_own_is_under_ten_lines() -> None:
    own = blocks("python")[1]
    assert sum(bool(line.strip()) for line in own.splitlines()) < 10


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8")):
        assert target.startswith("http") or (README.parent / target).exists(), target
