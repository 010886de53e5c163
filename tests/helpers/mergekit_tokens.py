"""mergekit configurations over models whose tokenizers differ, and fingerprints of each token's rows in the result.

`python tests/helpers/mergekit_tokens.py tests/oracles/mergekit_tokens.json`, run by a Python that has mergekit 0.1.5.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from mergekit_cases import draw, save_models
from safetensors.numpy import load_file

ALL = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(9))]
VOCABULARIES = {
    "base": [*ALL, "old"],
    "m0": [*ALL, "old", "sole", "both"],
    "m1": [*ALL, "old", "both"],
    "m2": ALL,
}
TEMPLATES = {"m0": "A {{ messages }}", "m1": "B {{ messages }}", "m2": "B {{ messages }}"}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def _models(*weights: tuple[str, float]) -> str:
    rows = ", ".join(f"{{model: {name}, parameters: {{weight: {weight}}}}}" for name, weight in weights)
    return f"models: [{rows}]\n"


SUM = "merge_method: task_arithmetic\nbase_model: base\n"
TWO = _models(("m0", 0.9), ("m1", 0.2))
CASES = {
    "union of one": SUM + "tokenizer_source: union\n" + _models(("m0", 0.5)),
    "union": SUM + "tokenizer_source: union\n" + TWO,
    "union, linear": "merge_method: linear\ntokenizer_source: union\n" + _models(("m2", 0.3), ("m0", 0.7), ("m1", 0.5)),
    "base": SUM + "tokenizer_source: base\n" + TWO,
    "of a model": SUM + "tokenizer_source: m0\n" + TWO,
    "of a model, in brackets": SUM + "tokenizer: {source: m1}\n" + TWO,
    "tokens from models": SUM
    + "tokenizer: {source: union, tokens: {w0: {source: m1, force: true}, both: {source: m1}, w1: {source: m0},\n"
    + "  new: {source: {kind: model_token, model: m0, token: w3}}}}\n"
    + TWO,
    "tokens of zeros and by number": SUM
    + "tokenizer: {source: base, tokens: {new: {source: {kind: zero}, force: true},\n"
    + "  w0: {source: {kind: zero}, force: true},\n"
    + "  old: {source: {kind: model_token, model: m0, token_id: 5}, force: true}}}\n"
    + TWO,
}


def save(folder: Path) -> None:
    """The models of `mergekit_cases` with tokenizers of their own, some with chat templates."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    save_models(folder)
    for name, words in VOCABULARIES.items():
        tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / name / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
        if name in TEMPLATES:
            config["chat_template"] = TEMPLATES[name]
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))


def rows_of(out: Path) -> dict[str, list[float]]:
    """Token -> projections of its row in each table, as an output folder holds them."""
    tensors = {name: value for file in out.glob("*.safetensors") for name, value in load_file(file).items()}
    table = json.loads((out / "tokenizer.json").read_text())
    ids = table["model"]["vocab"] | {entry["content"]: entry["id"] for entry in table["added_tokens"]}
    probes = [draw(probe, "row", (tensors[TABLES[0]].shape[1],)) for probe in ("probe 1", "probe 2")]
    return {
        token: [float(tensors[name][row].astype(np.float64) @ probe) for name in TABLES for probe in probes]
        for token, row in ids.items()
    }


def merged_by_mergekit(text: str, folder: Path, out: Path) -> None:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    os.chdir(folder)
    config = MergeConfiguration.model_validate({"dtype": "float32", **yaml.safe_load(text)})
    run_merge(config, out_path=str(out), options=MergeOptions(copy_tokenizer=True, quiet=True, write_model_card=False))


def main(target: str) -> None:
    path, found = Path(target).resolve(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        for number, (case, text) in enumerate(CASES.items()):
            merged_by_mergekit(text, folder, folder / f"out{number}")
            rows = rows_of(folder / f"out{number}")
            found[case] = {token: [round(value, 8) for value in values] for token, values in sorted(rows.items())}
    path.write_text(json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
