"""Files next to the fused weights: config, tokenizer and processor of the resulting model."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.reading import PROMPTS
from taskmerge.checkpoints.lineage.grafts import is_processor_file, merged_json
from taskmerge.checkpoints.output.side_files import side_files, tokenizer_files
from taskmerge.checkpoints.state_dict import Output
from taskmerge.merging.steps import Plan


def side_bytes(plan: Plan) -> int:
    """Return an upper bound of the bytes of the files next to the weights; a file in two folders is counted once."""
    sizes: dict[str, int] = {}
    for folder in plan.side_folders:
        for name in side_files(folder, plan.beside.module_folders.values()):
            sizes[name] = max(sizes.get(name, 0), (folder / name).stat().st_size)
    return sum(sizes.values()) + sum(len(text.encode()) for text in plan.texts.values())


def add_side_files(output: Output, plan: Plan, dtype: str | None) -> None:
    """Copy the side files of the plan's folders; the first folder that has a file wins.

    Write the files that the merge changes: config.json, the joined tokenizer, a processor whose parts come from several
    inputs.
    """
    sources: dict[str, list[Path]] = {}
    for folder in plan.side_folders:
        for name in side_files(folder, plan.beside.module_folders.values()):
            sources.setdefault(name, []).append(folder / name)
    inside = plan.beside.module_folders.get("", "")
    if plan.beside.own_tokenizer is not None:
        for name, path in tokenizer_files(plan.beside.own_tokenizer, inside).items():
            sources[name] = [path] if path is not None else []
    sources = {name: paths for name, paths in sources.items() if paths}
    written = {str(PurePosixPath(inside, name)): text for name, text in plan.texts.items()}
    config = dict(plan.beside.config)
    if config and dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    for name, table in ((str(PurePosixPath(inside, "config.json")), config), (PROMPTS, dict(plan.beside.prompts))):
        stored: Any = read_json(sources[name][0]) if name in sources else {}
        if table and table != stored:
            written[name] = json.dumps(table, indent=2) + "\n"
    for name, paths in sources.items():
        if name in written:
            continue
        if len(paths) > 1 and is_processor_file(name):
            tables: list[Any] = [read_json(path, dict[str, Any]) for path in paths]
            if merged_json(*tables) != tables[0]:
                written[name] = json.dumps(merged_json(*tables), indent=2) + "\n"
                continue
        output.add_copy(name, paths[0])
    for name, text in written.items():
        output.add_text(name, text)
