"""Every class of checkpoint through taskmerge and mergekit 0.1.5, side by side: the table of docs/checkpoints.md.

    python benchmarks/checkpoint_matrix.py .bench/matrix --mergekit PEER_VENV/bin/python

Tiny random models (tests/zoo.py), a base and two specialists, `task_arithmetic` at weights 0.6 and 0.3. Three ways of
saving: all by the full class; specialists by AutoModel, as sentence-transformers saves; specialists under the names of
memory. An output counts as right when the class that saved the base loads it with nothing missing, unexpected or newly
made, and every floating tensor is the float64 formula on live modules within two float32 roundings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
WEIGHTS = (0.6, 0.3)
WAYS = {"full class": "full", "AutoModel": "auto", "names of memory": "memory"}
MARK = "<!-- checkpoint matrix -->"


def make(root: Path) -> list[dict[str, Any]]:
    """Saves every model; returns one row per class and way."""
    import transformers
    import zoo

    rows = []
    for kind in zoo.KINDS:
        home = root / kind.name.replace(" ", "_")
        full = [home / f"full{seed}" for seed in range(3)]
        for seed, folder in enumerate(full):
            model = kind.build()
            zoo.save(zoo.perturb(model, seed) if seed else model, folder)
        ways = {"full class": full}
        if kind.auto:
            ways["AutoModel"] = [full[0], home / "auto1", home / "auto2"]
        ways["names of memory"] = [full[0], home / "memory1", home / "memory2"]
        for seed in (1, 2):
            if kind.auto:
                zoo.save(transformers.AutoModel.from_pretrained(full[seed]), home / f"auto{seed}")
            loaded = getattr(transformers, kind.classes[0]).from_pretrained(full[seed])
            loaded.save_pretrained(home / f"memory{seed}", save_original_format=False)
        for way, folders in ways.items():
            rows.append({"kind": kind.name, "way": way, "folders": [str(folder) for folder in folders]})
    return rows


def by_taskmerge(row: dict[str, Any], out: Path) -> None:
    from taskmerge import merging as fusion
    from taskmerge import recipes

    base, *specialists = row["folders"]
    recipe = recipes.from_dict(
        {
            "base": base,
            "specialists": {
                f"s{number}": {"model": folder, "weight": weight}
                for number, (folder, weight) in enumerate(zip(specialists, WEIGHTS, strict=True))
            },
            "merge": {"method": "task_arithmetic"},
        }
    )
    fusion.execute(fusion.plan(recipe), recipe, out)


def by_mergekit(row: dict[str, Any], out: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    base, *specialists = row["folders"]
    models = [
        {"model": folder, "parameters": {"weight": weight}} for folder, weight in zip(specialists, WEIGHTS, strict=True)
    ]
    config = {"merge_method": "task_arithmetic", "base_model": base, "models": models, "dtype": "float32"}
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)


def run_all(root: Path, program: str) -> None:
    """Runs every row with one program, in this process; notes what it said."""
    rows = json.loads((root / "rows.json").read_text())
    said = {}
    for row in rows:
        name = f"{row['kind']}|{row['way']}"
        out = root / "out" / program / name.replace(" ", "_").replace("|", "-")
        try:
            {"taskmerge": by_taskmerge, "mergekit": by_mergekit}[program](row, out)
            said[name] = {"out": str(out)}
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            said[name] = {"error": type(error).__name__, "says": str(error)[:300], "place": place}
    (root / f"{program}.json").write_text(json.dumps(said, indent=1))


def judge(row: dict[str, Any], said: dict[str, Any]) -> str:
    """A cell: "right", or what is wrong."""
    import torch
    import transformers
    import zoo

    if "error" in said:
        refused = said["error"] in ("MergeError", "RecipeError", "CheckpointError")
        return "refuses" if refused else f"crashes ({said['error']})"
    kind = zoo.BY_NAME[row["kind"]]
    loader = getattr(transformers, kind.classes[0])
    live, missing, surplus = [], [], []
    for folder in (*row["folders"], said["out"]):
        torch.manual_seed(0)
        try:
            model, info = loader.from_pretrained(folder, output_loading_info=True)
        except Exception as error:
            return f"does not load ({type(error).__name__})"
        live.append(model.state_dict())
        missing.append(set(info["missing_keys"]))
        surplus.append(set(info["unexpected_keys"]))
    base, *specialists, found = live
    wrong = set(missing[-1])
    for name, start in base.items():
        if not start.dtype.is_floating_point or not torch.isfinite(start).all():
            wrong |= set() if torch.equal(start, found[name]) else {name}
            continue
        expected = start.double()
        for number, weight in enumerate(WEIGHTS):
            if name not in missing[number + 1]:
                expected = expected + weight * (specialists[number][name].double() - start)
        wrong |= set() if torch.allclose(found[name].double(), expected, rtol=3e-7, atol=1e-7) else {name}
    if missing[-1]:
        return f"loses {len(missing[-1])} of {len(base)} tensors"
    if wrong:
        return f"{len(wrong)} of {len(base)} tensors wrong"
    return f"{len(surplus[-1])} unexpected tensors" if surplus[-1] else "right"


def table(root: Path) -> str:
    rows = json.loads((root / "rows.json").read_text())
    said = {program: json.loads((root / f"{program}.json").read_text()) for program in ("taskmerge", "mergekit")}
    cells = {
        (row["kind"], row["way"], program): judge(row, said[program][f"{row['kind']}|{row['way']}"])
        for row in rows
        for program in said
    }
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = ["| class | " + " | ".join(f"{program}, {way}" for program in said for way in WAYS) + " |"]
    lines.append("|---" * (1 + 2 * len(WAYS)) + "|")
    for kind in kinds:
        own = [cells.get((kind, way, program), "—") for program in said for way in WAYS]
        lines.append(f"| {kind} | " + " | ".join(own) + " |")
    totals = []
    for program in said:
        for way in WAYS:
            column = [cells[key] for key in cells if key[1:] == (way, program)]
            totals.append(f"**{column.count('right')} of {len(column)}**")
    lines.append("| right | " + " | ".join(totals) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--mergekit", help="python of an environment with mergekit 0.1.5")
    parser.add_argument("--only", choices=["make", "taskmerge", "mergekit", "table"])
    parser.add_argument("--docs", type=Path, help="page whose table is replaced, between two marks")
    given = parser.parse_args()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    warnings.simplefilter("ignore")
    if given.only in (None, "make"):
        given.root.mkdir(parents=True, exist_ok=True)
        (given.root / "rows.json").write_text(json.dumps(make(given.root), indent=1))
    if given.only in (None, "taskmerge"):
        run_all(given.root, "taskmerge")
    if given.only == "mergekit":
        run_all(given.root, "mergekit")
    if given.only is None:
        subprocess.run([given.mergekit, __file__, str(given.root), "--only", "mergekit"], check=True)
    if given.only in (None, "table"):
        text = table(given.root)
        print(text)
        if given.docs:
            before, _, after = given.docs.read_text().split(MARK)
            given.docs.write_text(f"{before}{MARK}\n{text}{MARK}{after}")


if __name__ == "__main__":
    main()
