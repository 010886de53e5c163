"""`fuse --sweep`: the table against merges made one by one, and the best point kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_model, read_model, same_bits, write_model
from search_projects import RECIPE, new_project

import taskmerge

Command = Callable[..., Any]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    base = random_model(0)
    write_model(tmp_path / "base", base)
    for seed, name in ((1, "a"), (2, "b")):
        write_model(tmp_path / name, random_model(seed, near=base))
    text = "base: base\nspecialists: {a: a, b: {model: b, weight: 0.5}}\nmerge: {method: ties}\noutput: {path: out}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path


def test_every_point_of_the_grid_against_merges_by_hand(models: Path, command: Command) -> None:
    ran = command("fuse", models / "recipe.yaml", "--sweep", "scale=0.5:1.0:0.25", "--sweep", "density=0.2,0.4,0.9",
                  "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    points = json.loads(ran.out)["points"]
    assert [(p["values"]["merge.scale"], p["values"]["merge.density"]) for p in points] == [
        (scale, density) for scale in (0.5, 0.75, 1.0) for density in (0.2, 0.4, 0.9)
    ]
    base = read_model(models / "base")
    for point in (points[0], points[5]):
        values = {key.removeprefix("merge."): value for key, value in point["values"].items()}
        fused = taskmerge.fuse(str(models / "base"), {"a": str(models / "a"), "b": str(models / "b")}, "ties",
                               weights={"a": 1.0, "b": 0.5}, **values)  # fmt: skip
        fused.save(models / "by hand")
        moved = {k: v.double() - base[k].double() for k, v in read_model(models / "by hand").items()}
        floats = [key for key in base if base[key].is_floating_point()]
        length = torch.cat([moved[key].flatten() for key in floats]).norm()
        whole = torch.cat([base[key].double().flatten() for key in floats]).norm()
        assert point["length"] == pytest.approx(float(length / whole), rel=1e-9)
        import shutil

        shutil.rmtree(models / "by hand")
    assert not (models / "out").exists()


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (("scale",), "cannot be read"),
        (("scale=1:0:0.1",), "has no steps"),
        (("scale=0.5",), "has only one value"),
        (("dnsity=0.1,0.2",), "did you mean 'merge.density'?"),
        (("scale=0:1:0.0001",), "points are too many"),
        (("density=0.5,1.5",), "not 1.5"),
    ],
)
def test_mistakes_are_told(models: Path, command: Command, said: tuple[str, ...], what: str) -> None:
    ran = command("fuse", models / "recipe.yaml", *(word for text in said for word in ("--sweep", text)))
    assert ran.code == 2 and what in ran.err, ran.err
    kept = command("fuse", models / "recipe.yaml", "--sweep", "scale=0.5,1.0,2.0", "--keep", "best")
    assert kept.code == 2 and "lists none" in kept.err


def test_the_best_is_kept_bit_for_bit(tmp_path: Path, command: Command) -> None:
    text = RECIPE.replace("  vary: {specialists.*.weight: [0.1, 1.0]}", "  vary: {merge.scale: [0.1, 1.0]}")
    recipe = new_project(tmp_path, text)
    ran = command("fuse", recipe, "--sweep", "scale=0.2:1.0:0.4", "--keep", "best")
    assert ran.code == 0, ran.err
    rows = [line.split("\t") for line in ran.out.splitlines() if line[:1] in "01"]
    best = max(rows, key=lambda row: float(row[1]))[0]
    assert f"kept: merge.scale {best}" in ran.err
    alone = text.replace("output:", f"merge: {{scale: {best}}}\noutput:")
    (tmp_path / "alone.yaml").write_text(alone)
    assert command("fuse", tmp_path / "alone.yaml", "--out", tmp_path / "alone").code == 0
    one, two = read_model(tmp_path / "out" / "fused"), read_model(tmp_path / "alone")
    assert one.keys() == two.keys() and all(same_bits(one[name], two[name]) for name in one)
