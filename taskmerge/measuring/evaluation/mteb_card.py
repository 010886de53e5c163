"""The facts in a model's card (README.md) that mteb needs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.cards.front_matter import fields, read_card
from taskmerge.errors import UsageError, first_line
from taskmerge.opened import opened


def card_fields(folder: Path | None) -> dict[str, Any]:
    """ModelMeta fields from the front matter of a folder's card: license, languages, base model; {} without a card.

    What mteb would refuse is left out: it is better not known than wrong.
    """
    card = fields(read_card(folder), ("license", "language", "base_model")) if folder is not None else {}
    found: dict[str, Any] = {"license": _license(card.get("license")), "languages": _languages(card.get("language"))}
    base = card.get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    found["adapted_from"] = base if isinstance(base, str) else None
    return {name: value for name, value in found.items() if value}


def read_meta(path: str | Path) -> dict[str, Any]:
    """Read fields of mteb's ModelMeta from a YAML or JSON file.

    Raises:
        UsageError: for a file that is missing or contains no mapping.
    """
    import yaml

    opened(Path(path))
    try:
        table = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"cannot be read: {first_line(error)}", str(path), "give a YAML or JSON file") from None
    if not isinstance(table, Mapping):
        raise UsageError(
            "does not contain a mapping of fields", str(path), "write for example release_date: 2026-11-26"
        )
    found = {str(name): str(value) if isinstance(value, date) else value for name, value in table.items()}
    if isinstance(found.get("training_datasets"), list):
        found["training_datasets"] = set(found["training_datasets"])
    return found


def _license(said: Any) -> str | None:
    from typing import get_args

    from mteb.types import Licenses

    return said if isinstance(said, str) and (said in get_args(Licenses) or said.startswith("http")) else None


def _languages(said: Any) -> list[str]:
    """mteb's "eng-Latn" of a card's "en"; unknown ones are left out."""
    from mteb.languages.iso_mappings import _hf_langs_to_iso_lang_scripts

    listed = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    try:
        return list(_hf_langs_to_iso_lang_scripts([one for one in listed if isinstance(one, str)]) or [])
    except (KeyError, ValueError):
        return []
