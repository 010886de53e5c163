"""One declaration per parameter: a signature or a dataclass, read into rows that check and document themselves."""

from taskmerge.declarations.containers import Graded
from taskmerge.declarations.kinds import BAD, At, EntryOf, Glob, Kind, NewName, Number, Size, shown
from taskmerge.declarations.parameters import (
    REQUIRED,
    Between,
    DeclarationError,
    Doc,
    Gradient,
    Parameter,
    Section,
    check,
    fields_of,
    kind_of,
    name_field,
    object_schema,
    parameters_of,
    place_field,
    read_mapping,
)

__all__ = [
    "BAD",
    "REQUIRED",
    "At",
    "Between",
    "DeclarationError",
    "Doc",
    "EntryOf",
    "Glob",
    "Graded",
    "Gradient",
    "Kind",
    "NewName",
    "Number",
    "Parameter",
    "Section",
    "Size",
    "check",
    "fields_of",
    "kind_of",
    "name_field",
    "object_schema",
    "parameters_of",
    "place_field",
    "read_mapping",
    "shown",
]
