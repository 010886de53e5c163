"""What stands beside the fused weights: config, tokenizer and processor of what the result now is."""

from __future__ import annotations

import json
from pathlib import Path

from taskmerge.checkpoints.reading import load_json
from taskmerge.checkpoints.side_files import side_files
from taskmerge.checkpoints.writing import OutputFolder
from taskmerge.fusion.grafts import is_processor_file, merged_json
from taskmerge.fusion.steps import Plan


def add_side_files(output: OutputFolder, plan: Plan, dtype: str | None) -> None:
    """Copies the side files of the plan's folders, the first folder's before the next's, and writes what the merge
    changes: config.json, the joined tokenizer, a processor whose parts come from several inputs.

    dtype: torch name of the number format all weights now have, None when each kept its own.
    """
    sources: dict[str, list[Path]] = {}
    for folder in plan.side_folders:
        for name in side_files(folder, plan.parts.values()):
            sources.setdefault(name, []).append(folder / name)
    written = dict(plan.texts)
    inside = f"{plan.parts['']}/config.json" if plan.parts.get("") else "config.json"
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
