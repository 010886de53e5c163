"""Prompts: texts before items of a role, by modality and by set or task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from taskmerge.declarations import shown
from taskmerge.errors import UsageError, did_you_mean

Role = Literal["query", "document"]
ROLES: tuple[Role, ...] = ("query", "document")
"""A query searches, a document is found. Items of neither role (to be clustered or classified) have none."""


@dataclass(frozen=True)
class Prompts:
    """The prompts that the user puts before items, in place of the model's own.

    Attributes:
        query, document: before items of that role; None: the model's own, "": nothing.
        default: before items without a role.
        modalities: the same three by modality ("audio"); they have priority over the three above.
        tasks: the same three by name of an evaluation set or mteb task; they have priority over all others.
    """

    query: str | None = None
    document: str | None = None
    default: str | None = None
    modalities: Mapping[str, Prompts] = field(default_factory=dict)
    tasks: Mapping[str, Prompts] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Any) -> Prompts:
        """Make prompts from a mapping or any object with their attributes (a recipe's section); None: no prompts.

        Raises:
            UsageError: for a key that does not exist, and for a value that is not text.
        """
        if said is None or isinstance(said, cls):
            return said or cls()
        names = [row.name for row in fields(cls)]
        if isinstance(said, Mapping):
            unknown = sorted(set(said) - set(names))
            if unknown:
                raise UsageError(f"prompts: {unknown[0]!r} is unknown", next_move=did_you_mean(str(unknown[0]), names))
            found = dict(said)
        else:
            found = {name: getattr(said, name) for name in names if hasattr(said, name)}
            if not found:
                raise UsageError(
                    f"prompts: {shown(said)} is not a mapping", next_move='for example {"query": "query: "}'
                )
        for name, value in found.items():
            if name in ("modalities", "tasks"):
                if value is not None and not isinstance(value, Mapping):
                    move = f"give them by name: {{{name!r}: {{NAME: {{'query': …}}}}}}"
                    raise UsageError(f"prompts: {name}: {shown(value)} is not a mapping", next_move=move)
                found[name] = {str(key): cls.of(inner) for key, inner in (value or {}).items()}
            elif value is not None and not isinstance(value, str):
                raise UsageError(f"prompts: {name}: {value!r} is not text", next_move="put the prompt in quotes")
        return cls(**found)

    def text(self, role: Role | None, modality: str | None = None) -> str | None:
        """Return the text before items of a role (None: without a role) and modality; None: the model's own prompt."""
        name = role or "default"
        own = self.modalities.get(modality) if modality else None
        found: str | None = getattr(own, name) if own is not None else None
        return found if found is not None else getattr(self, name)

    def of_task(self, name: str) -> Prompts:
        """Return the prompts of one set or task: its own if it has any, else those of all."""
        own = self.tasks.get(name)
        if own is None:
            return replace(self, tasks={})
        cleared = {modality: row._without(own) for modality, row in self.modalities.items()}
        names = dict.fromkeys((*cleared, *own.modalities))
        rows = {name: own.modalities.get(name, Prompts())._over(cleared.get(name, Prompts())) for name in names}
        return replace(own._over(self), modalities=rows, tasks={})

    def _over(self, other: Prompts) -> Prompts:
        """These, and the others where these say nothing."""
        return Prompts(
            self.query if self.query is not None else other.query,
            self.document if self.document is not None else other.document,
            self.default if self.default is not None else other.default,
        )

    def _without(self, other: Prompts) -> Prompts:
        """What these say where the others say nothing."""
        return Prompts(
            self.query if other.query is None else None,
            self.document if other.document is None else None,
            self.default if other.default is None else None,
        )

    def __bool__(self) -> bool:
        """Whether anything is said at all."""
        return self != Prompts()

    def as_dict(self) -> dict[str, Any]:
        """Return the prompts that are set, as plain values."""
        said = {key: text for key in (*ROLES, "default") if (text := getattr(self, key)) is not None}
        nested = {
            key: {name: row.as_dict() for name, row in getattr(self, key).items()} for key in ("modalities", "tasks")
        }
        return {**said, **{key: rows for key, rows in nested.items() if rows}}
