"""Sizes as people write them: one parser for the command line, recipes and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from taskmerge.cli.app import app
from taskmerge.declarations import BAD, At, Size
from taskmerge.errors import Problem, UsageError
from taskmerge.merging.algebra import Checkpoint
from taskmerge.words.sizes import UNITS, parse_size, show_bytes

GOOD = [
    ("5GB", 5 * 10**9), ("500MiB", 500 << 20), (7, 7), ("12", 12), ("1.5 kb", 1500), ("2TB", 2 * 10**12), ("9B", 9),
    ("1TiB", 1 << 40), ("2 PiB", 2 << 50), ("0.5tib", 1 << 39), (" 3 MB ", 3 * 10**6), (5e9, 5 * 10**9),
    ("2.5 GB", 2_500_000_000), ("0.1 KB", 100), ("1.0000000001GB", 10**9),
]  # fmt: skip
BAD_ONES = [
    "", "5XB", "-1", 0, -3, True, "0", "0.0GB", "five", "1e9", None, "²", "²GB", "5²", "٣", "٣GB", "1_000", "1,5GB",
    "5iB", "iB", "GB", "5GBGB", "nan", "inf", float("nan"), float("inf"), 0.5, "0.5B", "9" * 40, 10**30, "1" * 5000,
    "999999PB" * 9, "99999999PiB", [1], {"a": 1}, b"5GB", "5\nGB", "+5GB", "0x10",
]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), GOOD)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size
    assert Size().read(text, At.fixed("here", "shard_size"), []) == size


@pytest.mark.parametrize("text", BAD_ONES)
def test_sizes_that_are_none(text: Any) -> None:
    with pytest.raises(UsageError, match="is not a valid size") as told:
        parse_size(text)
    assert "5GB" in str(told.value) and len(str(told.value)) < 400
    problems: list[Problem] = []
    assert Size().read(text, At.fixed("here", "shard_size"), problems) is BAD
    assert len(problems) == 1 and len(str(problems[0])) < 800


def test_every_unit_is_a_power() -> None:
    for unit, size in UNITS.items():
        step = 1024 if unit.endswith("iB") else 1000
        assert parse_size(f"3{unit}") == 3 * size == 3 * step ** ("BKMGTP".index(unit[0]))


def test_the_schema_takes_what_the_parser_takes() -> None:
    validator = pytest.importorskip("jsonschema").Draft7Validator(Size().schema())
    for text, _ in GOOD:
        assert validator.is_valid(text), text
    for text in ("²", "٣GB", "5XB", "-1", "", 0, True):
        assert not validator.is_valid(text), text


@pytest.mark.parametrize("text", ["1TiB", "2GiB", "64MB"])
def test_every_entrance_takes_a_size(text: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    model = Checkpoint.open({"w": torch.ones(4)})
    model.save(tmp_path / "base")
    model.save(tmp_path / "saved", shard_size=text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: base\nspecialists: {{a: base}}\noutput: {{path: out, shard_size: {text}}}\n")
    done = CliRunner().invoke(app, ["fuse", str(recipe), "--memory", text])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("text", ["²", "1e9", "0", "5XB"])
def test_every_entrance_refuses_the_same(text: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    model = Checkpoint.open({"w": torch.ones(4)})
    with pytest.raises(UsageError, match="must be a size such as"):
        model.save(tmp_path / "saved", shard_size=text)
    model.save(tmp_path / "base")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: base\nspecialists: {a: base}\noutput: {path: out}\n")
    refused = CliRunner().invoke(app, ["fuse", str(recipe), "--memory", text])
    assert isinstance(refused.exception, UsageError) and not (tmp_path / "out").exists()
    recipe.write_text(f"base: base\nspecialists: {{a: base}}\noutput: {{path: out, shard_size: '{text}'}}\n")
    refused = CliRunner().invoke(app, ["fuse", str(recipe)])
    assert isinstance(refused.exception, UsageError) and "shard_size" in str(refused.exception)


def test_sizes_shown() -> None:
    assert [show_bytes(count) for count in (0, 999, 1000, 90_900_000, 5e9, 2e12)] == [
        "0 B", "999 B", "1.0 kB", "90.9 MB", "5.0 GB", "2.0 TB",
    ]  # fmt: skip
