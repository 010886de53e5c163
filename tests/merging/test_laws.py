"""Laws of a merge over the crossings of all that can vary: a covering array, against one oracle of the whole model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whole_model
from checkpoint_files import TORCH
from covering import Row, complete, pairwise
from safetensors.torch import load_file, save_file

from taskmerge import fuse, recipes
from taskmerge.checkpoints.covariances import InputCovariances
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.storage_noise import noise_of
from taskmerge.merging import execute, plan
from taskmerge.methods import all_methods

LAYERS = 3
QUERY = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(LAYERS)]
UP = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(LAYERS)]
NORMS = [f"model.layers.{layer}.input_layernorm.weight" for layer in range(LAYERS)]
EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
SHAPES = {
    EMBED: (12, 6),
    **dict.fromkeys(QUERY, (6, 6)),
    **dict.fromkeys(UP, (8, 6)),
    **dict.fromkeys(NORMS, (6,)),
    NORM: (6,),
    HEAD: (12, 6),
}
LABELS = ("a", "b", "c")
DIGITS = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126), torch.float64: (53, -1022)}
DENSE_METHODS = {
    "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "knots", "core",
}  # fmt: skip
OF_TWO = {"slerp", "nuslerp"}
FINDS_WEIGHTS = {"model_stock", "slerp", "nuslerp", "karcher", "multislerp"}
METHODS = sorted({method.name for method in all_methods() if method.name != "regmean"} | {"linear (sum)"})

FACTORS: dict[str, list[Any]] = {
    "method": METHODS,
    "inputs": ["BF16", "F16", "F32", "F64", "mixed"],
    "output": [None, "bfloat16", "float16", "float32", "float64"],
    "weights": ["number", "gradient", "mapping", "rule", "metagpt", "zero", "negative"],
    "scale": ["default", "number", "gradient"],
    "density": ["default", "number", "gradient", "each"],
    "trim": ["tensor", "model"],
    "protect": [False, True],
    "specialist": ["dense", "adapter"],
    "head": ["tied", "untied", "one ties"],
    "files": ["one", "many"],
    "run": ["streamed", "memory"],
}


def possible(row: Row) -> bool:
    method = row.get("method")
    if method is None:
        return True
    return not (
        (method in FINDS_WEIGHTS and row.get("weights") == "metagpt")
        or (method not in DENSE_METHODS and row.get("density", "default") != "default")
        or (method in ("knots", "core") and row.get("density") == "each")
        or (method != "ties" and row.get("trim") == "model")
        or (method == "karcher" and row.get("weights") == "negative")  # refused, as are the first
    )


def rows(least: int = 640) -> list[Row]:
    """The covering array, and more rows by chance up to the number asked for."""
    found = pairwise(FACTORS, possible)
    draw = random.Random(1)
    while len(found) < least:
        row = complete({"method": draw.choice(METHODS)}, FACTORS, possible, draw)
        if row and row not in found:
            found.append(row)
    return found


ROWS = rows()


def test_the_array_is_large_and_covers_every_possible_pair() -> None:
    assert len(ROWS) >= 600
    names = list(FACTORS)
    for place, one in enumerate(names):
        for two in names[place + 1 :]:
            for a in FACTORS[one]:
                for b in FACTORS[two]:
                    assert not possible({one: a, two: b}) or any(r[one] == a and r[two] == b for r in ROWS), (a, b)


# --- one row ------------------------------------------------------------------------------------------------------


class Merge:
    """The files and the recipe of one row, and what the oracle is told of them."""

    def __init__(self, row: Row, number: int, folder: Path) -> None:
        self.row, self.folder = row, folder
        self.draw = np.random.default_rng(number)
        self.labels = LABELS[:2] if row["method"] in OF_TWO else LABELS
        formats = {"base": "BF16", "a": "F16", "b": "F32", "c": "BF16"}
        self.formats = {k: v if row["inputs"] == "mixed" else row["inputs"] for k, v in formats.items()}
        self.base = self._model("base", None)
        self.specialists = {label: self._model(label, self.base) for label in self.labels}
        self._write()
        self.case = self._case()

    def _model(self, label: str, near: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        found = {}
        for name, shape in SHAPES.items():
            if name == HEAD and (self.row["head"] == "tied" or (self.row["head"] == "one ties" and label == "b")):
                continue
            values = 0.5 * self.draw.standard_normal(shape)
            if near is not None:
                step = 0.3 * self.draw.standard_normal(shape) * (self.draw.random(shape) < 0.9)
                values = near[name].double().numpy() + step
            found[name] = torch.from_numpy(np.asarray(values)).to(TORCH[self.formats[label]])
        return found

    def _write(self) -> None:
        ties = {"tied": True, "untied": False}
        for label, tensors in {"base": self.base, **self.specialists}.items():
            tied = ties.get(self.row["head"], label == "b")
            config = {"model_type": "llama", "tie_word_embeddings": tied}
            where = self.folder / label
            where.mkdir(parents=True)
            (where / "config.json").write_text(json.dumps(config))
            if self.row["files"] == "one":
                save_file(tensors, where / "model.safetensors")
                continue
            names = list(tensors)
            weight_map: dict[str, str] = {}
            for part, own in enumerate((names[::2], names[1::2]), 1):
                file = f"model-{part:05d}-of-00002.safetensors"
                save_file({name: tensors[name] for name in own}, where / file)
                weight_map |= dict.fromkeys(own, file)
            index = {"metadata": {}, "weight_map": weight_map}
            (where / "model.safetensors.index.json").write_text(json.dumps(index))
        if self.row["specialist"] == "adapter":
            self._write_adapter()
        if self.row["protect"]:
            spread = self.draw.standard_normal((20, 6)) * [3, 2, 1, 0.3, 0.2, 0.1]
            self.covariance = spread.T @ spread / 20
            held = dict.fromkeys((*QUERY, *UP), self.covariance)
            InputCovariances(held, {name: name for name in held}, {"text": 20}).save(self.folder / "b")
            self.covariance = np.asarray(InputCovariances.open(self.folder / "b")[QUERY[0]])  # stored as float32

    def _write_adapter(self) -> None:
        where = self.folder / "adapter"
        where.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        (where / "adapter_config.json").write_text(json.dumps(config))
        self.factors: dict[str, np.ndarray] = {}
        stored: dict[str, torch.Tensor] = {}
        for name in QUERY:
            module = "base_model.model." + name.removesuffix(".weight")
            down, up = (torch.from_numpy(self.draw.standard_normal(shape)).float() for shape in ((2, 6), (6, 2)))
            stored |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
            self.factors[name] = 1.5 * up.double().numpy() @ down.double().numpy()
        save_file(stored, where / "adapter_model.safetensors")

    # --- the recipe

    def said(self) -> dict[str, Any]:
        row = self.row
        own: dict[str, Any] = dict(zip(self.labels, (0.3, 0.5, 0.8), strict=False))
        merge: dict[str, Any] = {"method": row["method"]}
        if row["method"] == "linear (sum)":
            merge = {"method": "linear", "normalize": False}
        if row["weights"] == "gradient":
            own["a"] = [0.2, 0.9]
        elif row["weights"] == "mapping":
            merge["weight"] = {"a": 0.6, "b": 0.3}
        elif row["weights"] == "rule":
            merge["rules"] = [{"match": "backbone.layers.0.*", "weight": {"b": 0.9}}]
        elif row["weights"] == "metagpt":
            merge["weight"] = "metagpt"
        elif row["weights"] in ("zero", "negative"):
            own["b"] = 0.0 if row["weights"] == "zero" else -0.1
        if row["scale"] != "default":
            merge["scale"] = 0.7 if row["scale"] == "number" else [0.5, 1.5]
        if row["density"] != "default":
            each = dict(zip(self.labels, (0.3, 0.6, 0.9), strict=False))
            merge["density"] = {"number": 0.6, "gradient": [0.3, 0.9], "each": each}[row["density"]]
        if row["trim"] == "model":
            merge["trim"] = "model"
        if row["protect"]:
            merge["protect"] = ["b"]
        places = {label: str(self.folder / label) for label in self.labels}
        if row["specialist"] == "adapter":
            places["a"] = str(self.folder / "adapter")
        return {
            "base": str(self.folder / "base"),
            "specialists": {label: {"model": places[label], "weight": own[label]} for label in self.labels},
            "merge": merge,
            "output": {"dtype": row["output"]} if row["output"] else {},
            "seed": 7,
        }

    # --- the oracle

    def _case(self) -> whole_model.Case:
        said = self.said()
        merge = said["merge"]
        base = {name: tensor.double().numpy() for name, tensor in self.base.items()}
        deltas = {label: {name: self._delta(label, name, base) for name in base} for label in self.labels}
        weights = {label: {name: self._weight(said, label, name) for name in base} for label in self.labels}
        options = {name: self._options(merge, name) for name in base}
        protect = {"b": dict.fromkeys((*QUERY, *UP), self.covariance)} if self.row["protect"] else {}
        return whole_model.Case(
            method=merge["method"],
            base=base,
            deltas=deltas,
            weights=weights,
            options=options,
            scale={name: at(merge.get("scale", 1.0), name) for name in base},
            metagpt=merge.get("weight") == "metagpt",
            protect=protect,
            noise={label: {name: self._noise(label, name) for name in base} for label in self.labels},
            seed=7,
        )

    def _stored(self, label: str, name: str) -> torch.Tensor:
        held = self.specialists[label]
        return held[name] if name in held else held[EMBED]  # a tied head is the token table

    def _delta(self, label: str, name: str, base: dict[str, np.ndarray]) -> np.ndarray:
        if label == "a" and self.row["specialist"] == "adapter":
            return self.factors.get(name, np.zeros(SHAPES[name]))
        return self._stored(label, name).double().numpy() - base[name]

    def _noise(self, label: str, name: str) -> float:
        """By its definition, which tests/checkpoints/test_storage_noise.py holds against what rounding does."""
        if label == "a" and self.row["specialist"] == "adapter":
            return 0.0 if name in self.factors else noise_of(MemoryStateDict(self.base), name)
        return noise_of(MemoryStateDict({name: self._stored(label, name)}), name)

    def _weight(self, said: dict[str, Any], label: str, name: str) -> float:
        merge = said["merge"]
        weight = said["specialists"][label]["weight"]
        if isinstance(merge.get("weight"), dict):
            weight = merge["weight"].get(label, weight)
        if "rules" in merge and ".layers.0." in name:
            weight = {"b": 0.9}.get(label, weight)
        return at(weight, name)

    def _options(self, merge: dict[str, Any], name: str) -> dict[str, Any]:
        options = {key: value for key, value in merge.items() if key in ("normalize", "trim")}
        if self.row["method"] in DENSE_METHODS:
            defaults = {"ties": 0.2, "knots": 0.2, "core": 0.2, "breadcrumbs": 0.9, "breadcrumbs_ties": 0.9}
            density = merge.get("density", defaults.get(self.row["method"], 0.5))
            each = tuple(density.values()) if isinstance(density, dict) else None
            options["density"] = each if each else at(density, name)
        return options

    # --- the run

    def run(self) -> dict[str, torch.Tensor]:
        said = self.said()
        if self.row["run"] == "streamed":
            recipe = recipes.from_dict(said, folder=self.folder)
            execute(plan(recipe), recipe, self.folder / "out")
            files = sorted((self.folder / "out").glob("*.safetensors"))
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        merge = said["merge"]
        weights = {label: one["weight"] for label, one in said["specialists"].items()}
        rules = merge.pop("rules", ())
        if isinstance(given := merge.pop("weight", None), dict):
            weights |= given
        return fuse(
            said["base"],
            {label: one["model"] for label, one in said["specialists"].items()},
            merge.pop("method"),
            weights=given if isinstance(given, str) else weights,  # type: ignore[arg-type]
            rules=rules,
            dtype=self.row["output"],
            seed=7,
            **merge,
        ).state_dict()


def at(value: Any, name: str) -> float:
    """The number that holds for a tensor, of a gradient over three layers: embeddings first, what is outside last."""
    if not isinstance(value, (list, tuple)):
        return float(value)
    low, high = value
    if name == EMBED:
        return low
    if ".layers." not in name:
        return high
    return low + (high - low) * int(name.split(".layers.")[1][0]) / (LAYERS - 1)


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_crossing_equals_the_formula_over_the_whole_model(number: int, tmp_path: Path) -> None:
    check(ROWS[number], number, tmp_path)


VARIED: dict[str, Row] = {
    "scale gradient": {"scale": "gradient"},
    "weight gradient": {"weights": "gradient"},
    "rule weights": {"weights": "rule"},
    "density per specialist": {"density": "each"},
    "density gradient": {"density": "gradient"},
    "metagpt": {"weights": "metagpt"},
    "protect": {"protect": True},
    "all but metagpt": {"scale": "gradient", "weights": "rule", "density": "each", "protect": True},
}


@pytest.mark.parametrize("run", ["streamed", "memory"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("varied", VARIED)
def test_trimming_over_the_model_means_the_whole_model(varied: str, dtype: str, run: str, tmp_path: Path) -> None:
    plain = {name: values[0] for name, values in FACTORS.items()}
    row = {**plain, "method": "ties", "trim": "model", "inputs": dtype, "head": "untied", "run": run, **VARIED[varied]}
    check(row, 3, tmp_path)


def check(row: Row, number: int, folder: Path) -> None:
    """Run one row: every entry is the oracle's, up to half a unit of the output and what float64 itself loses."""
    merge = Merge(row, number, folder)
    wanted = whole_model.merged(merge.case)
    found = merge.run()
    assert set(found) == set(wanted)
    inexact = {"karcher": 1e-9} | dict.fromkeys(whole_model.MATRICES, 1e-8)  # an iteration, singular vectors
    for name, exact in wanted.items():
        dtype = getattr(torch, row["output"]) if row["output"] else TORCH[merge.formats["base"]]
        assert found[name].dtype == dtype, name
        got = found[name].double().numpy()
        size = np.abs(merge.case.base[name]).max() + max(np.abs(d[name]).max() for d in merge.case.deltas.values())
        slack = size * inexact.get(row["method"], 1e-13)
        off = np.abs(got - exact) - half_unit(exact, dtype)
        assert (off <= slack).all(), f"{row}: {name} off by {off.max():g}"


def half_unit(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Half the distance between neighbours of the format around each value."""
    digits, least = DIGITS[dtype]
    exponent = np.floor(np.log2(np.maximum(np.abs(values), 2.0**least)))
    return 2.0 ** (exponent - digits)
