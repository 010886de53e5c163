"""Options that several commands share, declared once."""

from __future__ import annotations

from typing import Any

import typer

from taskmerge.errors import UsageError
from taskmerge.words.numerals import is_whole
from taskmerge.words.places import output_path, output_place

_WRITTEN: dict[str, Any] = {"parser": output_path, "metavar": "<path>"}

OUT = typer.Option(None, "-o", "--out", help="Output folder; overrides the recipe's output.path.", **_WRITTEN)
OUT_PLACE = typer.Option(
    None,
    "-o",
    "--out",
    help="Output folder or URI of a store (s3://…); overrides the recipe's output.path.",
    parser=output_place,
    metavar="<path>",
)
OUT_NEW = typer.Option(
    ..., "-o", "--out", help="Folder to write, or URI of a store.", parser=output_place, metavar="<path>"
)
OUT_FOLDER = typer.Option(..., "-o", "--out", help="Folder to write.", **_WRITTEN)
OUT_FILE = typer.Option(None, "-o", "--out", help="File to write; stdout by default.", **_WRITTEN)
OUT_RECIPE = typer.Option("merge.yaml", "-o", "--out", help="The recipe to write.", **_WRITTEN)
OUT_DEMO = typer.Option("taskmerge-demo", "-o", "--out", help="Folder for the data, models and report.", **_WRITTEN)
HTML = typer.Option(
    None, "--html", help="Also write a page (.html) here, and its numbers next to it (.json).", **_WRITTEN
)
PLOT = typer.Option(None, "--plot", help="Also draw heat maps: .png, .svg or .pdf (extra [plots]).", **_WRITTEN)
DEVICE = typer.Option("cpu", "--device", help="Where the arithmetic runs: cpu, cuda, cuda:1, mps.")
MODEL_DEVICE = typer.Option(None, "--device", help="Where models run: cpu (the default), cuda, cuda:1, mps.")
PRECISION = typer.Option(
    None,
    "--precision",
    help="Precision that models run in: bfloat16, float16, float32, float64; by default each model's own.",
)
BATCH_SIZE = typer.Option(None, "--batch-size", min=1, help="Number of items that run at once; 32 by default.")
QUERY_PROMPT = typer.Option(None, "--query-prompt", help="Prompt before queries; replaces the model's own.")
DOCUMENT_PROMPT = typer.Option(None, "--document-prompt", help="Prompt before documents; replaces the model's own.")
EMBEDDER = typer.Option(
    None,
    "--embedder",
    help="Function that opens your own model class: my_model.py:load, package.module:name, or an entry point.",
)
TRAINING_DEVICE = typer.Option(
    None, "--device", help="Where models train: cpu, cuda, mps; by default the first GPU if there is one."
)
PROCESSES = typer.Option(1, "--processes", min=1, help="Processes that train together, on this machine.")
KEEP_CHECKPOINTS = typer.Option(False, "--keep-checkpoints", help="Keep the checkpoints of finished training.")
ENCODINGS = typer.Option(
    None, "--encodings", help="Folder for cached outputs of frozen encoders; by default in the user's cache folder."
)
ENCODINGS_LIMIT = typer.Option("50GiB", "--encodings-limit", help="Maximum size of this cache; 0 disables it.")
ON = typer.Option(None, "--on", help="Run on a Ray cluster: ray or ray:ADDRESS (extra [ray]).")
CACHE_SIZE = typer.Option(
    None,
    "--cache-size",
    help="Keep ranges of models in s3://, gs:// and az:// in the user's cache folder, at most this size (50GB), and "
    "read models of the hub in the same way instead of downloading them; by default nothing is kept.",
)
FRESH = typer.Option(False, "--fresh", help="Replace an existing folder that taskmerge made.")
JSON = typer.Option(False, "--json", help="Print one JSON object and nothing else (docs/json.md), also for errors.")


def prompts_of(query: str | None, document: str | None) -> dict[str, str] | None:
    """Return the values of --query-prompt and --document-prompt; None if neither was given."""
    said = {"query": query, "document": document}
    return {role: text for role, text in said.items() if text is not None} or None


def dimensions_of(text: str | None) -> list[int]:
    """Return the numbers of `--dimensions 64,128`."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if strange := [part for part in parts if not is_whole(part) or not int(part)]:
        raise UsageError(
            f"--dimensions: {strange[0]!r} is not a valid length", next_move="write for example --dimensions 64,128"
        )
    return [int(part) for part in parts]
