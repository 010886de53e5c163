"""Output with --json of the commands about this program, its demo and the hub."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from taskmerge.declarations import Doc


class Pushed(TypedDict):
    """`push`."""

    path: Annotated[str, Doc("The folder.")]
    repository: Annotated[str, Doc("owner/name.")]
    files: Annotated[dict[str, int], Doc("File to upload -> bytes.")]
    bytes: Annotated[int, Doc("Size of all files to upload.")]
    left: Annotated[dict[str, str], Doc("File that is not uploaded -> why.")]
    card: Annotated[str, Doc("README.md as it is uploaded.")]
    own_card: Annotated[bool, Doc("Whether the card was edited by the user.")]
    findings: Annotated[list[str], Doc("What the card does not state.")]
    licence_conflict: Annotated[bool, Doc("Whether the licences of the inputs differ.")]
    local_paths: Annotated[list[str], Doc("Paths of this machine in taskmerge.json.")]
    address: Annotated[str | None, Doc("Address of the commit; null with --dry-run.")]


class MethodParameter(TypedDict):
    """One parameter of a merge method."""

    default: Annotated[Any, Doc("Default value; null if the parameter is required.")]
    doc: Annotated[str, Doc("Meaning.")]


class Method(TypedDict):
    """A merge method."""

    name: Annotated[str, Doc("Name in recipes.")]
    aliases: Annotated[list[str], Doc("Other names.")]
    doc: Annotated[str, Doc("What it does.")]
    source: Annotated[str, Doc("Where it comes from.")]
    parameters: Annotated[dict[str, MethodParameter], Doc("Name -> parameter.")]


class Methods(TypedDict):
    """`methods`."""

    methods: Annotated[list[Method], Doc("All methods, or the one that was asked for.")]


class MachineRow(TypedDict):
    """One row of the report about the machine."""

    what: Annotated[str, Doc("A library, a device, memory or disk space.")]
    found: Annotated[str, Doc("Version or size.")]
    state: Annotated[Literal["ok", "absent", "broken"], Doc("Whether it works.")]
    note: Annotated[str, Doc("What it is for, or what to do.")]


class Doctored(TypedDict):
    """`doctor`. Exit 1 where something is broken."""

    rows: Annotated[list[MachineRow], Doc("One row per finding.")]


class Told(TypedDict):
    """`demo`."""

    report: Annotated[str, Doc("The page.")]
    models: Annotated[dict[str, str], Doc("Variant -> folder.")]
    stages: Annotated[dict[str, Any], Doc("Stage -> its result, as `run` prints it.")]


class LaidOut(TypedDict):
    """`demo --texts`."""

    folder: Annotated[str, Doc("Folder of the models and pairs.")]
    models: Annotated[dict[str, str], Doc("`base` and the specialists -> folder.")]


class WrittenSchema(TypedDict):
    """`schema --out FILE`; without --out it prints the JSON Schema itself."""

    path: Annotated[str, Doc("The file.")]
