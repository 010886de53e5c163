"""What stands beside the fused weights: config, tokenizer and processor of what the result now is."""

from __future__ import annotations

import json
from pathlib import Path

from taskmerge.checkpoints.formats.reading import load_json
from taskmerge.checkpoints.lineage.grafts import is_processor_file, merged_json
from taskmerge.checkpoints.lineage.tokenizers import FILES
from taskmerge.checkpoints.output.side_files import side_files
from taskmerge.checkpoints.output.writing import OutputFolder
from taskmerge.merging.steps import Plan


def add_side_files(output: OutputFolder, plan: Plan, dtype: str | None) -> None:
    """Copies the side files of the plan's folders, the first folder's before the next's, and writes what the merge
    changes: config.json, the joined tokenizer, a processor whose parts come from several inputs.

    dtype: torch name of the number format all weights now have, None when each kept its own.
    """
    sources: dict[str, list[Path]] = {}
    for folder in plan.side_folders:
        for name in side_files(folder, plan.parts.values()):
            sources.setdefault(name, []).append(folder / name)
    here = f"{plan.parts['']}/" if plan.parts.get("") else ""
    _choose_tokenizer(sources, plan, here)
    written = {here + name: text for name, text in plan.texts.items()}
    inside = f"{here}config.json"
    stored = load_json(sources[inside][0]) if inside in sources else {}
    config = dict(plan.config)
    if config and dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    if config and config != stored:
        written[inside] = json.dumps(config, indent=2) + "\n"
    for name, paths in sources.items():
        if name in written:
            continue
        if len(paths) > 1 and is_processor_file(name):
            tables = [load_json(path) for path in paths]
            if merged_json(*tables) != tables[0]:
                written[name] = json.dumps(merged_json(*tables), indent=2) + "\n"
                continue
        output.add_copy(name, paths[0])
    for name, text in written.items():
        output.add_text(name, text)


def _choose_tokenizer(sources: dict[str, list[Path]], plan: Plan, here: str) -> None:
    """Tokenizer files all come from the plan's tokenizer folder; a chat template it lacks may come from elsewhere."""
    if plan.tokenizer_folder is None:
        return
    for name in FILES:
        path = plan.tokenizer_folder / name
        if path.is_file():
            sources[here + name] = [path]
        elif name != "chat_template.jinja":
            sources.pop(here + name, None)
