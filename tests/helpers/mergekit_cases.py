"""mergekit configurations over four tiny models, and fingerprints of what they merge to.

`python tests/helpers/mergekit_cases.py tests/oracles/mergekit.json`, run by a Python that has mergekit 0.1.5 (and this
repository on its path, for the random numbers), makes the models, merges them and writes the fingerprints.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.numbers.randomness import stream_key, uniform_bits

LAYERS = 4
SHAPES: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (16, 8)}
for _layer in range(LAYERS):
    _at = f"model.layers.{_layer}."
    SHAPES |= {f"{_at}self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
    SHAPES |= {f"{_at}mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
    SHAPES |= {f"{_at}mlp.down_proj.weight": (8, 12)}
    SHAPES |= {f"{_at}{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
SHAPES |= {"model.norm.weight": (8,), "lm_head.weight": (16, 8)}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def draw(label: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the names alone: float64."""
    bits = uniform_bits(stream_key(0, label, name), 0, int(np.prod(shape)))
    return (bits / 2.0**31 - 1.0).reshape(shape)


def model(label: str) -> dict[str, np.ndarray]:
    """The base, or the base moved a little: float32."""
    tensors = {}
    for name, shape in SHAPES.items():
        values = draw("base", name, shape) * 0.3 + (1.0 if "norm" in name else 0.0)
        if label != "base":
            values = values + 0.05 * draw(label, name, shape)
        tensors[name] = values.astype(np.float32)
    return tensors


def save_models(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_adapter(folder)
    for label in ("base", "m0", "m1", "m2"):
        (folder / label).mkdir()
        save_file(model(label), folder / label / "model.safetensors", metadata={"format": "pt"})
        (folder / label / "config.json").write_text(json.dumps(CONFIG))


def save_adapter(folder: Path) -> None:
    """A LoRA adapter of rank 2 over every q_proj and down_proj."""
    from safetensors.numpy import save_file

    (folder / "lora").mkdir()
    tensors = {}
    for name, (rows, columns) in (
        (name, shape) for name, shape in SHAPES.items() if "q_proj" in name or "down" in name
    ):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for side, shape in (("A", (2, columns)), ("B", (rows, 2))):
            tensors[f"{module}.lora_{side}.weight"] = (0.2 * draw("lora", f"{name} {side}", shape)).astype(np.float32)
    save_file(tensors, folder / "lora" / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": "m0"}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(config))


def fingerprint(tensors: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Two projections of each tensor: any entry that differs shows in them."""
    found = {}
    for name, values in tensors.items():
        wide = np.asarray(values, dtype=np.float64)
        found[name] = [float((wide * draw(probe, name, wide.shape)).sum()) for probe in ("probe 1", "probe 2")]
    return found


TWO = "models: [{model: m0, parameters: {weight: 0.3}}, {model: m1, parameters: {weight: 0.9}}]\n"
THREE = "models: [{model: m0}, {model: m1}, {model: m2}]\n"
DENSE = (
    "models: [{model: m0, parameters: {weight: 0.3, density: %s}},"
    " {model: m1, parameters: {weight: 0.9, density: %s}}]\n"
)
PAIR = "models: [{model: m0}, {model: m1}]\n"
WEIGHED = (
    "models: ["
    + ", ".join(
        f"{{model: m{number}, parameters: {{weight: {weight}}}}}" for number, weight in enumerate((0.5, 0.3, 1.0))
    )
    + "]\n"
)
STACKED = (
    "  - sources: [{model: m0, layer_range: [0, 3]%s}]\n  - sources: [{model: m1, layer_range: [1, 4]%s}]\n"
    "  - sources: [{model: m2, layer_range: [0, 1]}]\n"
)
BASE = "base_model: base\n"
GATED = "{weight: [{filter: self_attn, value: [0.0, 1.0]}, {filter: mlp, value: 0.25}, {value: 0.5}]}"

CASES: dict[str, str] = {
    "linear": "merge_method: linear\n" + TWO,
    "linear unnormalized": "merge_method: linear\n" + TWO + "parameters: {normalize: false}\n",
    "linear to bfloat16": "merge_method: linear\n" + TWO + "out_dtype: bfloat16\n",
    "sum": "merge_method: task_arithmetic\n" + BASE + TWO,
    "sum normalized": "merge_method: task_arithmetic\n" + BASE + TWO + "parameters: {normalize: true, lambda: 0.7}\n",
    "sum, base listed": "merge_method: task_arithmetic\n" + BASE + TWO.replace("[{", "[{model: base}, {", 1),
    "sum, gradient": "merge_method: task_arithmetic\n" + BASE + TWO.replace("0.3", "[0.0, 0.5, 1.0]"),
    "sum, filters": "merge_method: task_arithmetic\n" + BASE + TWO.replace("{weight: 0.3}", GATED),
    "sum, filter without default": "merge_method: task_arithmetic\n"
    + BASE
    + TWO.replace("0.3", "[{filter: self_attn, value: 0.3}]")
    + "parameters: {weight: 0.1}\n",
    "sum, overlapping filters": "merge_method: task_arithmetic\n"
    + BASE
    + TWO.replace("0.3", '[{filter: "1.self", value: 0.2}, {filter: "layers.1.", value: 0.6}, {value: 0.1}]'),
    "sum, filtered flag": "merge_method: task_arithmetic\n"
    + BASE
    + TWO
    + "parameters: {normalize: [{filter: mlp, value: true}, {value: false}]}\n",
    "sum, models as mappings": "merge_method: task_arithmetic\nbase_model: {model: {path: base}}\n"
    + "models: [{model: {model: {path: m0}}, parameters: {weight: '0.5'}}]\n",
    "ties": "merge_method: ties\n" + BASE + DENSE % (0.5, 0.5),
    "ties of all": "merge_method: ties\n" + BASE + TWO,
    "ties unnormalized": "merge_method: ties\n"
    + BASE
    + DENSE % (0.5, 0.5)
    + "parameters: {normalize: false, int8_mask: true, lambda: 0.5}\n",
    "ties, densities differ": "merge_method: ties\n" + BASE + DENSE % (0.2, 0.7),
    "ties, densities by filter": "merge_method: ties\n"
    + BASE
    + TWO.replace("0.9", "[{filter: self_attn, value: 0.5}, {value: 0.9}]")
    + "parameters: {density: [{filter: mlp, value: 0.3}, {filter: layers.1, value: 0.4}, {value: 0.6}]}\n",
    "dare_linear of all": "merge_method: dare_linear\n" + BASE + DENSE % (1.0, 1.0),
    "dare_ties of all": "merge_method: dare_ties\n" + BASE + TWO,
    "della of all": "merge_method: della\n" + BASE + TWO,
    "della_linear of all": "merge_method: della_linear\n" + BASE + TWO,
    "breadcrumbs": "merge_method: breadcrumbs\n" + BASE + DENSE % (0.5, 0.5) + "parameters: {gamma: 0.05}\n",
    "breadcrumbs of all": "merge_method: breadcrumbs\n" + BASE + TWO,
    "breadcrumbs_ties": "merge_method: breadcrumbs_ties\n" + BASE + DENSE % (0.5, 0.5) + "parameters: {gamma: 0.05}\n",
    "slerp": "merge_method: slerp\nbase_model: m0\nparameters: {t: 0.3}\n" + PAIR,
    "slerp, base unlisted": "merge_method: slerp\nbase_model: m0\nparameters: {t: 0.3}\nmodels: [{model: m1}]\n",
    "slerp, base second": "merge_method: slerp\nbase_model: m1\nparameters: {t: 0.3}\n" + PAIR,
    "slerp, one slice": "merge_method: slerp\nbase_model: m0\n"
    "slices: [{sources: [{model: m0, layer_range: [0, 4]}, {model: m1, layer_range: [0, 4]}]}]\n"
    "parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}]}\n",
    "nuslerp": "merge_method: nuslerp\n" + TWO,
    "nuslerp of task vectors": "merge_method: nuslerp\n" + BASE + TWO,
    "karcher": "merge_method: karcher\n" + THREE,
    "karcher, base besides": "merge_method: karcher\n" + BASE + PAIR,
    "model_stock": "merge_method: model_stock\n" + BASE + THREE,
    "sce": "merge_method: sce\n" + BASE + THREE + "parameters: {select_topk: 0.4}\n",
    "sce of all": "merge_method: sce\n" + BASE + THREE,
    "passthrough": "merge_method: passthrough\nslices: [{sources: [{model: m0, layer_range: [0, 4]}]}]\n",
    "passthrough, two models": "merge_method: passthrough\nslices:\n"
    "  - sources: [{model: m0, layer_range: [0, 2]}]\n  - sources: [{model: m1, layer_range: [2, 4]}]\n",
    "passthrough, scaled": "merge_method: passthrough\nmodels: [{model: m0, parameters: {scale: [{filter: o_proj, "
    "value: 0.0}, {filter: mlp, value: [0.5, 2.0]}, {value: 1.0}]}}]\n",
    "passthrough, stacked": "merge_method: passthrough\nslices:\n" + STACKED % ("", ""),
    "passthrough, stacked and scaled": "merge_method: passthrough\nslices:\n"
    + STACKED % ("", ", parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down, value: 0.0}, {value: 1.0}]}"),
    "passthrough, one model stacked": "merge_method: passthrough\ndtype: float32\nslices:\n"
    "  - sources: [{layer_range: [0, 3], model: m0}]\n  - sources: [{layer_range: [2, 3], model: m0}]\n"
    "  - sources: [{layer_range: [1, 4], model: m0, parameters: {scale: [1.0, 3.0]}}]\n",
    "passthrough, cut short": "merge_method: passthrough\nslices: [{sources: [{model: m0, layer_range: [1, 3]}]}]\n",
    "linear, stacked": "merge_method: linear\nslices:\n"
    "  - sources: [{model: m0, layer_range: [0, 3], parameters: {weight: [0.0, 1.0]}},\n"
    "              {model: m1, layer_range: [1, 4], parameters: {weight: 0.5}}]\n"
    "  - sources: [{model: m2, layer_range: [1, 4], parameters: {weight: 1}}]\n",
    "slerp, stacked": "merge_method: slerp\nbase_model: m0\nslices:\n"
    "  - sources: [{model: m0, layer_range: [0, 3]}, {model: m1, layer_range: [0, 3]}]\n"
    "  - sources: [{model: m1, layer_range: [2, 4]}, {model: m0, layer_range: [1, 3]}]\n"
    "parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: [1, 0.5, 0]}, {value: 0.3}]}\n",
    "ties, stacked": "merge_method: ties\nbase_model: base\nslices:\n"
    "  - sources: [{model: base, layer_range: [0, 3]},\n"
    "              {model: m0, layer_range: [1, 4], parameters: {weight: 0.4, density: [0.2, 0.8]}},\n"
    "              {model: m1, layer_range: [0, 3], parameters: {weight: 0.7, density: 0.5}}]\n"
    "  - sources: [{model: base, layer_range: [1, 4]}, {model: m2, layer_range: [1, 4]}]\n"
    "    parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1.0}], density: 0.6}\n",
    "linear of nothing": "merge_method: linear\nmodels: [{model: m0}, {model: m1}]\n"
    "parameters: {weight: 0.0, normalize: false}\n",
    "linear, base has the common weight": "merge_method: linear\n" + BASE + PAIR + "parameters: {weight: 0.5}\n",
    "base alone": "merge_method: ties\n" + BASE + "models: [{model: base}]\n",
    "ties, no density": "merge_method: ties\n" + BASE + DENSE % (0, 0.5),
    "ties, density from 0": "merge_method: ties\n" + BASE + DENSE % ("[0, 0.5, 1]", 0.5),
    "dare_ties, no density": "merge_method: dare_ties\n" + BASE + DENSE % (0, 1.0),
    "dare_linear, no density, normalized": "merge_method: dare_linear\n"
    + BASE
    + DENSE % (0, 1.0)
    + "parameters: {normalize: true}\n",
    "della, no density": "merge_method: della\n" + BASE + DENSE % (0, 1.0),
    "breadcrumbs, gamma shrunk": "merge_method: breadcrumbs\n"
    + BASE
    + DENSE % (0.9, 0.75)
    + "parameters: {gamma: 0.25}\n",
    "ties, a negative weight": "merge_method: ties\n"
    + BASE
    + WEIGHED.replace("0.3", "-0.3")
    + "parameters: {density: 0.6}\n",
    "dare_ties, a negative weight": "merge_method: dare_ties\n" + BASE + WEIGHED.replace("0.3", "-0.3"),
    "sum, an adapter": "merge_method: task_arithmetic\n" + BASE + TWO.replace("model: m0", "model: m0+lora"),
    "sum, base with an adapter": "merge_method: task_arithmetic\nbase_model: m0+lora\n" + TWO,
    "sum, base and model with an adapter": "merge_method: task_arithmetic\nbase_model: m2\n"
    "models: [{model: {model: m2, lora: lora}, parameters: {weight: 0.4}}, {model: m1, parameters: {weight: 0.2}}]\n",
    "linear, first with an adapter": "merge_method: linear\n" + TWO.replace("model: m0", "model: m0+lora"),
    "ties, flags as numbers": "merge_method: ties\n" + BASE + DENSE % (0.5, 0.5) + "parameters: {normalize: 1.0}\n",
    "ties, flags as text": "merge_method: ties\n" + BASE + DENSE % (0.5, 0.5) + "parameters: {normalize: 'no'}\n",
    "ties, stray keys": "merge_method: ties\nstray: 1\nnormalize: false\n"
    + BASE
    + "models: [{model: m0, density: 0.1, parameters: {weight: 0.3, densty: 0.1}}, {model: m1, layer_range: [0, 2]}]\n"
    + "parameters: {weight: 0.9, density: 0.5, unknown: 3, int8_mask: 1}\n",
    "sum, keys twice": "merge_method: ties\n" + BASE + TWO + "merge_method: task_arithmetic\n",
    "sum, anchors": "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
    "  - &first {model: m0, parameters: &own {weight: 0.3}}\n  - {<<: *first, model: m1}\n"
    "  - {model: m2, parameters: {<<: *own, density: 0.2}}\n",
    "slerp, many filters": "merge_method: slerp\nbase_model: m0\nparameters:\n  t:\n"
    "    - {filter: lm_head, value: 0.55}\n    - {filter: embed_tokens, value: 0.7}\n"
    "    - {filter: self_attn, value: [0.65, 0.35]}\n    - {filter: mlp, value: [0.35, 0.65]}\n"
    "    - {filter: layernorm, value: [0.4, 0.6]}\n    - {filter: modelnorm, value: 0.6}\n    - {value: 0.5}\n" + PAIR,
    "sum, filters differ": "merge_method: task_arithmetic\n"
    + BASE
    + "models: [{model: m0, parameters: {weight: [{filter: q_proj, value: 0.1}, {filter: proj, value: 0.2}, "
    "{filter: layernorm, value: 0.3}, {value: 0.4}]}}, {model: m1, parameters: {weight: ["
    "{filter: layers.2, value: 0.5}, {filter: v_proj, value: 0.6}, {filter: mlp, value: 0.7}, {value: 0.8}]}}]\n",
    "nearswap": "merge_method: nearswap\nbase_model: base\nmodels: [{model: m0}]\nparameters: {t: 0.02}\n",
    "nearswap, base listed": "merge_method: nearswap\nbase_model: m1\n" + PAIR + "parameters: {t: [0.0, 0.05]}\n",
    "arcee_fusion": "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: m0}]\n",
    "multislerp": "merge_method: multislerp\n" + WEIGHED,
    "multislerp of task vectors": "merge_method: multislerp\n" + BASE + WEIGHED,
    "multislerp, weights as they are": "merge_method: multislerp\n"
    + WEIGHED
    + "parameters: {normalize_weights: false}\n",
    "ram": "merge_method: ram\n" + BASE + THREE + "parameters: {epsilon: 0.03}\n",
    "ramplus_tl": "merge_method: ramplus_tl\n" + BASE + THREE + "parameters: {epsilon: 0.03, r: 0.3, alpha: 1.5}\n",
    "modules": "merge_method: linear\nmodules: {default: {parameters: {weight: [0.2, 0.8]}, " + PAIR.strip() + "}}\n"
    "parameters: {weight: 5}\n",
    "two slices": "merge_method: task_arithmetic\nbase_model: base\nslices:\n"
    "  - sources: [{model: base, layer_range: [0, 2]},\n"
    "              {model: m0, layer_range: [0, 2], parameters: {weight: [0.0, 1.0]}}]\n"
    "  - sources: [{model: base, layer_range: [2, 4]}, {model: m0, layer_range: [2, 4]}]\n"
    "    parameters: {weight: 0.25}\n",
}


def merged_by_mergekit(text: str, folder: Path, out: Path) -> dict[str, np.ndarray]:
    import os

    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file

    os.chdir(folder)
    config = MergeConfiguration.model_validate({"dtype": "float32", **yaml.safe_load(text)})
    options = MergeOptions(
        copy_tokenizer=False, random_seed=0, quiet=True, write_model_card=False, lora_merge_cache=str(out / "merged")
    )
    run_merge(config, out_path=str(out), options=options)
    return {
        name: value.double().numpy() for file in out.glob("*.safetensors") for name, value in load_file(file).items()
    }


def main(target: str, merge: Callable[[str, Path, Path], Any] = merged_by_mergekit) -> None:
    path, found = Path(target).resolve(), {}
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder))
        for number, (name, text) in enumerate(CASES.items()):
            prints = fingerprint(merge(text, Path(folder), Path(folder) / f"out{number}"))
            found[name] = {tensor: [round(value, 8) for value in values] for tensor, values in prints.items()}
    path.write_text(json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
