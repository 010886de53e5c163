"""Output with --json of the commands about this program, its demo and the hub."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from taskmerge.declarations import Doc


class Pushed(TypedDict):
    """`push`."""

    path: Annotated[str, Doc("The folder.")]
    repository: Annotated[str, Doc("owner/name.")]
    files: Annotated[dict[str, int], Doc("What goes up -> bytes.")]
    bytes: Annotated[int, Doc("Of all files.")]
    left: Annotated[dict[str, str], Doc("What stays -> why.")]
    card: Annotated[str, Doc("README.md as it goes up.")]
    own_card: Annotated[bool, Doc("Whether that is the user's own.")]
    findings: Annotated[list[str], Doc("What the card leaves open.")]
    licence_conflict: Annotated[bool, Doc("Whether the licences of the inputs differ.")]
    local_paths: Annotated[list[str], Doc("Places of this disk that taskmerge.json names.")]
    address: Annotated[str | None, Doc("Of the commit; null with --dry-run.")]


class MethodParameter(TypedDict):
    """One parameter of a merge method."""

    default: Annotated[Any, Doc("Null where it must be given.")]
    doc: Annotated[str, Doc("Meaning.")]


class Method(TypedDict):
    """A merge method."""

    name: Annotated[str, Doc("In recipes.")]
    aliases: Annotated[list[str], Doc("Other names.")]
    doc: Annotated[str, Doc("What it does.")]
    source: Annotated[str, Doc("Where it comes from.")]
    parameters: Annotated[dict[str, MethodParameter], Doc("By name.")]


class Methods(TypedDict):
    """`methods`."""

    methods: Annotated[list[Method], Doc("All, or the one that was asked for.")]


class MachineRow(TypedDict):
    """One row of the report about the machine."""

    what: Annotated[str, Doc("A library, a device, room.")]
    found: Annotated[str, Doc("Version or size.")]
    state: Annotated[Literal["ok", "absent", "broken"], Doc("Whether it works.")]
    note: Annotated[str, Doc("What it is for, or what to do.")]


class Doctored(TypedDict):
    """`doctor`. Exit 1 where something is broken."""

    rows: Annotated[list[MachineRow], Doc("One a finding.")]


class Told(TypedDict):
    """`demo`."""

    report: Annotated[str, Doc("The page.")]
    models: Annotated[dict[str, str], Doc("Variant -> folder.")]
    stages: Annotated[dict[str, Any], Doc("As `run` prints it.")]


class LaidOut(TypedDict):
    """`demo --texts`."""

    folder: Annotated[str, Doc("What holds the models and pairs.")]
    models: Annotated[dict[str, str], Doc("`base` and the specialists -> folder.")]


class WrittenSchema(TypedDict):
    """`schema --out FILE`; without --out it prints the JSON Schema itself."""

    path: Annotated[str, Doc("The file.")]
