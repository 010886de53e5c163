"""The recipe: inputs, method, output, and the stages before and after the fusion. Read strictly and completely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from taskmerge.checkpoints.formats.folders import is_model_folder
from taskmerge.declarations import At, Between, Doc, Section, place_field, plain, shown
from taskmerge.errors import Problem, RecipeError
from taskmerge.recipes.document import Document, parse_documents, read_documents
from taskmerge.recipes.merging import Merge
from taskmerge.recipes.searching import Search
from taskmerge.recipes.sections import (
    BaseOrSpecialist,
    NamePattern,
    NewSpecialist,
    Output,
    Specialist,
    SpecialistName,
)
from taskmerge.recipes.stacking import stack_problems
from taskmerge.recipes.stages import Drift, Evaluate, Prompts, Recover, Rehearse, Specialize
from taskmerge.words.named_objects import check_users_own, names_code, not_the_users
from taskmerge.words.numerals import is_whole


@dataclass(frozen=True)
class Recipe:
    """A complete recipe, checked by itself; no model has been opened.

    place: the file (or "recipe").  folder: what relative file names of methods are relative to.  text: as written.
    notes: what was ignored or assumed, to be reported to the user.
    """

    base: Annotated[str, Doc("the model all specialists were fine-tuned from: path, hub id[@revision] or hf:// uri")]
    specialists: Annotated[
        Mapping[NewSpecialist, Specialist], Doc("the models to fuse, each under a name of your choice")
    ]
    base_adapter: Annotated[
        str | None,
        Doc("a PEFT adapter that belongs to the base: path or hub id; task vectors start from both together"),
    ] = None
    merge: Annotated[Merge, Doc("how")] = field(default_factory=Merge)
    components: Annotated[
        Mapping[str, tuple[NamePattern, ...]],
        Doc("name patterns of components that are not recognised from the architecture"),
    ] = field(default_factory=dict)
    embedder: Annotated[
        str | None,
        Doc(
            "the function that opens models of your own class: path/to/file.py:name, package.module:name or an "
            "entry point"
        ),
    ] = None
    copy: Annotated[
        Mapping[SpecialistName, tuple[NamePattern, ...]] | None,
        Doc(
            "components or name patterns to copy from a specialist; by default the tensors that only this "
            "specialist has"
        ),
    ] = None
    output: Annotated[Output, Doc("the output: where and how it is written")] = field(default_factory=Output)
    stack: Annotated[
        tuple[Mapping[BaseOrSpecialist, str], ...] | None,
        Doc(
            "the layers of the output in order; each entry lists layers of the inputs, `{base: 0..15, a: "
            "0..15}`; by default the layers stay as they are"
        ),
    ] = None
    seed: Annotated[int, Between(0, 2**63 - 1), Doc("seed of all random drops")] = 0
    prompts: Annotated[
        Prompts | None, Doc("prompts before items wherever a model runs; they replace the models' own")
    ] = None
    drift: Annotated[Drift | None, Doc("drift diagnosis")] = None
    recover: Annotated[Recover | None, Doc("repair of drifted projectors")] = None
    rehearse: Annotated[Rehearse | None, Doc("balanced training on all modalities after the fusion")] = None
    specialize: Annotated[
        Mapping[SpecialistName, Specialize] | None, Doc("training of specialists before the fusion, by name")
    ] = None
    evaluate: Annotated[Evaluate | None, Doc("evaluation of all variants")] = None
    search: Annotated[Search | None, Doc("search for weights and methods (`taskmerge search`)")] = None
    place: str = place_field()
    folder: Path = field(default=Path(), compare=False, repr=False, metadata={"filled": "folder"})
    text: str = field(default="", compare=False, repr=False, metadata={"filled": "text"})

    notes: tuple[str, ...] = field(default=(), compare=False, repr=False, metadata={"filled": "notes"})

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        if not self.specialists:
            yield Problem("specialists is empty", self.place, "give at least one, such as `audio: models/audio`")
        if self.stack is not None:
            yield from stack_problems(self.stack, self.specialists, self.place)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back to an equal recipe; what is left at its default is left out."""
        from taskmerge.recipes.writing import plain

        return plain(self)

    def to_yaml(self) -> str:
        """Return the recipe as YAML, see `to_dict`."""
        from taskmerge.recipes.writing import dump

        return dump(self.to_dict())


def load(path: str | Path) -> Recipe:
    """Read a recipe file, ours or mergekit's.

    Args:
        path: the YAML file; relative paths in it start from its folder.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: with every problem in it, each with file and line.
    """
    with _of_user_or_model(Path(path)):
        return _from_documents(read_documents(path))


def _of_user_or_model(path: Path) -> AbstractContextManager[None]:
    """A recipe next to a model's files, or in the hub's cache, came with the model: no code that it names runs."""
    return not_the_users(str(path)) if is_model_folder(path.resolve().parent) else nullcontext()


def load_all(path: str | Path, intermediate: str | Path) -> list[Recipe]:
    """Read all merges of a file, in order: one, or those of a mergekit file with several documents.

    A document's `name` is how later ones call its result, which is written to the folder `intermediate`/name. Raises
    RecipeError with every problem in the first document that has one.
    """
    with _of_user_or_model(Path(path)):
        return _load_all(path, intermediate)


def _load_all(path: str | Path, intermediate: str | Path) -> list[Recipe]:
    documents = read_documents(path)
    if len(documents) == 1:
        return [_from_documents(documents)]
    results: dict[str, str] = {}
    found = []
    for document in documents:
        at = At(document.place, (), document.folder, document.data)
        if not isinstance(document.data, Mapping) or not is_mergekit(document.data):
            raise RecipeError(
                "a recipe is one YAML document", at.place, "write one document: only mergekit files may contain several"
            )
        found.append(_read(document.data, at, document.text, results, document.repeated))
        name = document.data.get("name")
        if isinstance(name, str):
            results[name] = str(Path(intermediate) / name)
            found[-1] = replace(found[-1], output=replace(found[-1].output, path=results[name]))
    return found


def loads(text: str, label: str = "recipe", folder: str | Path = ".") -> Recipe:
    """Read a recipe from YAML text, as `load` does from a file.

    Args:
        text: the YAML text.
        label: its name in the places of problems.
        folder: the folder that relative paths start from.
    """
    return _from_documents(parse_documents(text, label, Path(folder)))


def from_dict(values: Mapping[str, Any], folder: str | Path = ".") -> Recipe:
    """Read a recipe from plain values, as `load` does from a file.

    Args:
        values: the mapping that the YAML file would contain.
        folder: the folder that relative paths start from.

    Raises:
        RecipeError: with every problem; places are the dotted names of keys.
    """
    from yaml.representer import RepresenterError

    from taskmerge.recipes.writing import dump, without_paths

    def lookup(path: tuple[str | int, ...]) -> str:
        return ".".join(["recipe", *map(str, path)])

    values = without_paths(plain(values))
    at = At(lookup, (), Path(folder), values)
    try:
        text = dump(values)
    except RepresenterError as error:  # an object of another class, which the kind of its key refuses, with the place
        _read(values, at, "")
        raise RecipeError(
            f"{shown(error.args[-1])} is not a value that a recipe can contain",
            next_move="use text, numbers, true or false, lists and mappings",
        ) from None
    return _read(values, at, text)


def _from_documents(documents: list[Document]) -> Recipe:
    if len(documents) > 1:
        place = documents[1].place(())
        move = "remove the `---`, or split the file; `taskmerge.recipes.load_all` reads mergekit files of several"
        raise RecipeError("a recipe is one YAML document", place, move)
    if documents[0].data is None:
        raise RecipeError("the recipe is empty", documents[0].label, "begin with `base:` and `specialists:`")
    document = documents[0]
    at = At(document.place, (), document.folder, document.data)
    return _read(document.data, at, document.text, repeated=document.repeated)


def _read(
    values: Any,
    at: At,
    text: str,
    results: Mapping[str, str] | None = None,
    repeated: Sequence[Problem] = (),
) -> Recipe:
    """results: folders of what earlier documents merge, by the name that this one may call them. repeated: keys that
    are given twice, which mergekit allows."""
    if not isinstance(values, Mapping):
        raise RecipeError("a recipe is a mapping", at.place, "begin with `base:` and `specialists:`")
    if is_mixture(values):
        raise RecipeError(
            "a mergekit-moe configuration: it combines complete models as experts of one model and does not merge them",
            at.place,
            "make it with mergekit-moe; to merge the experts into one dense model, list them as `specialists:`",
        )
    notes: list[str] = []
    if is_mergekit(values):
        from taskmerge.recipes.mergekit import translate

        whole = at.place
        values, notes = translate(values, at, results or {})
        notes = [*(f"{one.place}: {one.what}; the last one counts, as in mergekit" for one in repeated), *notes]
        at = At(lambda _path: whole, (), at.folder, values)
    elif repeated:
        raise RecipeError(list(repeated))
    problems: list[Problem] = []
    recipe = Section(Recipe).read(values, at, problems)
    if problems:
        raise RecipeError(sorted(problems, key=_line))
    object.__setattr__(recipe, "folder", at.folder)
    object.__setattr__(recipe, "text", text)
    object.__setattr__(recipe, "notes", tuple(notes))
    assert isinstance(recipe, Recipe)
    if recipe.embedder is not None and names_code(recipe.embedder):
        check_users_own(recipe.embedder, "the embedder")
    return recipe


def is_mergekit(values: Mapping[str, Any]) -> bool:
    """Return whether a document is a mergekit configuration and not a recipe of ours."""
    return "merge_method" in values or ("specialists" not in values and bool({"models", "slices"} & set(values)))


def is_mixture(values: Mapping[str, Any]) -> bool:
    """Return whether a document is a mergekit-moe configuration."""
    return isinstance(values.get("experts"), list) and "specialists" not in values and "merge_method" not in values


def _line(problem: Problem) -> int:
    _, _, line = (problem.place or "").rpartition(":")
    return int(line) if is_whole(line) else 0
