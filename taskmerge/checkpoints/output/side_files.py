"""Files next to the weights of a model folder that are copied with them: config, tokenizer, processor, code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.lineage.tokenizers import FILES
from taskmerge.errors import CheckpointError

_PATTERNS = (
    "*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.vocab",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_NOT_OURS = (
    "*.index.json", "trainer_state.json", "adapter_config.json", "all_results.json", "*_results.json",
    "requirements*.txt", "taskmerge*.json", "task_vector.json",
)  # fmt: skip
_LARGEST = 512 << 20


def side_files(folder: Path, modules: Iterable[str]) -> list[str]:
    """Relative names of the files to copy: in `folder` itself and in each module folder, sorted.

    Weights in any format, training state and the model card are left out. Raises CheckpointError for a link that
    leaves the folder or a file too large to be a side file.
    """
    names: set[str] = set()
    for inside in {"", *modules}:
        here = folder / inside
        check_link(here, folder)
        for pattern in _PATTERNS:
            for path in here.glob(pattern):
                if path.is_file() and not any(path.match(skip) for skip in _NOT_OURS):
                    check_link(path, folder)
                    if path.stat().st_size > _LARGEST:
                        raise CheckpointError(
                            f"{path.stat().st_size:,} bytes is too large for a file next to the weights",
                            str(path),
                            "remove it from the folder of the model",
                        )
                    names.add(str(path.relative_to(folder)))
        extra = here / "additional_chat_templates"
        if extra.is_dir():
            check_link(extra, folder)
            for path in extra.glob("*.jinja"):
                check_link(path, folder)
                names.add(str(path.relative_to(folder)))
    return sorted(names)


def tokenizer_files(folder: Path, inside: str) -> dict[str, Path | None]:
    """Place in a model folder -> the file of the tokenizer in `folder` to put there; None: no such file may be there.

    A tokenizer's files belong together, so all come from one folder; only a chat template it lacks may be another's.
    inside: the transformer's own folder in the model folder.
    """
    files: dict[str, Path | None] = {}
    for name in FILES:
        path, place = folder / name, str(PurePosixPath(inside, name))
        if path.is_file():
            check_link(path, folder)
            files[place] = path
        elif name != "chat_template.jinja":
            files[place] = None
    return files
