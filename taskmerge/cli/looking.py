"""inspect, check-model, compare, diff."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import typer

from taskmerge.cli.options import EMBEDDER, HTML, JSON, MODEL_DEVICE, PLOT, PRECISION
from taskmerge.cli.output import announce_notes, note, print_json, print_table, say
from taskmerge.cli.pages import check_html, write_page
from taskmerge.errors import UsageError
from taskmerge.words.sizes import show_bytes
from taskmerge.words.tables import counted

MODEL = typer.Argument(help="A model: path, hub id[@revision] or hf:// uri.")


def inspect(
    model: str = MODEL,
    tensors: bool = typer.Option(False, "--tensors", help="One line per tensor."),
    as_json: bool = JSON,
) -> None:
    """Show the components, tensors, number formats and sizes of a model."""
    from taskmerge.merging.algebra import Checkpoint

    announce_notes()
    checkpoint = Checkpoint.open(model)
    components = checkpoint.components()
    if as_json:
        rows = {
            name: {"component": components[name], "dtype": info.dtype, "shape": list(info.shape)}
            for name, info in checkpoint.tensors.items()
        }
        found = [
            {"path": ".".join(one.root), "component": one.component, "reason": one.reason}
            for one in components.inferred
        ]
        print_json({"model": model, "config": dict(checkpoint.config), "tensors": rows, "told_by_shapes": found})
        return
    if tensors:
        print_table(
            ("tensor", "component", "dtype", "shape"),
            [(name, components[name], info.dtype, list(info.shape)) for name, info in checkpoint.tensors.items()],
        )
        return
    groups: dict[str, list[Any]] = {}
    for name, info in checkpoint.tensors.items():
        groups.setdefault(components[name], []).append(info)
    rows_shown = [
        (
            component,
            len(infos),
            f"{sum(info.count for info in infos):,}",
            show_bytes(sum(info.nbytes for info in infos)),
            ", ".join(sorted({info.dtype for info in infos})),
            infos[0].name,
        )
        for component, infos in groups.items()
    ]
    print_table(("component", "tensors", "entries", "size", "dtype", "first"), rows_shown, model)
    for one in components.inferred:
        note(f"{'.'.join(one.root)}: {one.component}, recognised by its shapes ({one.reason})")
    if components.inferred:
        note("if this is wrong, set it in a recipe: components: {audio_projector: ['bridge.*']}")


def check_model(
    model: str = MODEL,
    embedder: str = EMBEDDER,
    recipe: Path = typer.Option(None, "--recipe", help="Use `embedder` and `components` of this recipe."),
    device: str = MODEL_DEVICE,
    precision: str = PRECISION,
    as_json: bool = JSON,
) -> None:
    """Run one item per modality through a model and show its parts. Exit with 1 if something does not fit."""
    from dataclasses import asdict

    from taskmerge.embedders.checking import check_model as check
    from taskmerge.embedders.loading import open_to_measure
    from taskmerge.embedders.sources import ModelSource

    source = ModelSource(model, embedder)
    if recipe is not None:
        from taskmerge.recipes import load

        said = load(recipe)
        source = ModelSource(model, embedder or said.embedder, said.components, Path() if embedder else said.folder)
    found = check(open_to_measure(source, device=device, precision=precision))
    if as_json:
        print_json({**asdict(found), "fits": found.fits})
    else:
        print_table(
            ("modality", "dimension", "projectors", "projected tokens", "problem"),
            [
                (one.modality, one.dimension or "", ", ".join(one.projectors) or "none",
                 "unknown" if one.projected is None else one.projected, one.problem)
                for one in found.modalities
            ],
            model,
        )  # fmt: skip
        print_table(("component", "tensors"), sorted(found.components.items()))
        print_table(
            ("role", "prompt"), [(role, repr(text) if text else "none") for role, text in found.prompts.items()]
        )
        say(f"run in {found.precision}")
        say(f"backbone: {len(found.layers)} layers" + (f", {found.layers[0]} …" if found.layers else ""))
        for problem in found.problems:
            say(f"does not fit: {problem}")
    if not found.fits:
        raise typer.Exit(1)


def compare(
    base: str = typer.Argument(help="The base of all the models."),
    models: list[str] = typer.Argument(help="Specialists: paths, hub ids or name=path."),
    by_layer: bool = typer.Option(False, "--by-layer", help="Also print the norm of each task vector in each layer."),
    html: Path = HTML,
    plot: Path = PLOT,
    as_json: bool = JSON,
) -> None:
    """Compare task vectors: norms, cosines, sign conflicts."""
    from taskmerge.merging.algebra.comparison import compare_task_vectors

    announce_notes(here=False)
    check_html(html)
    if plot is not None:
        from taskmerge.reporting.plots import check_plot, plot_comparison

        check_plot(plot)
    named = _named(models)
    result = compare_task_vectors(base, named)
    for line in () if as_json else result["warnings"]:
        note(f"warning: {line}")
    if plot is not None:
        note(f"picture: {plot_comparison(result, plot)}")
    if html is not None:
        from taskmerge.reporting import comparison_sections

        write_page(html, "Task vectors", comparison_sections(result), result, f"{', '.join(named)} against {base}.")
    if as_json:
        print_json(result)
        return
    labels = list(named)
    print_table(("task vector", "norm", "relative"), [(name, *result["norms"][name]) for name in labels], "norms")
    for key, title in (("cosine", "cosine"), ("sign_conflict", "sign conflict")):
        print_table(
            (title, *labels), [(name, *(result[key][name][other] for other in labels)) for name in labels], title
        )
    if by_layer:
        print_table(
            ("layer", *labels),
            [(layer, *(norms.get(name) for name in labels)) for layer, norms in result["by_layer"].items()],
            "norm by layer",
        )


def _named(texts: list[str]) -> dict[str, str]:
    """name=path, or a path under its last part; under all of it where another model has the same last part.

    Raises UsageError for two models of one name.
    """
    shorts = Counter(_short(text) for text in texts)
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = _short(text) if shorts[_short(text)] == 1 else text, text
        if name in found:
            move = "give each a name of its own: name=path"
            raise UsageError(f"two models have the name {name!r}: {found[name]} and {path}", next_move=move)
        found[name] = path
    return found


def _short(text: str) -> str:
    name, equals, _ = text.partition("=")
    return name if equals and "/" not in name else Path(text).name or text


def diff(first: str = MODEL, second: str = MODEL, as_json: bool = JSON) -> None:
    """List all differences between two checkpoints; exit with 1 if there are any."""
    from taskmerge.merging.algebra.comparison import differences

    announce_notes()
    found = differences(first, second)
    if as_json:
        print_json({"same": not found, "differences": found})
    elif found:
        print_table(("tensor", "difference", "entries", "largest"), [tuple(row.values()) for row in found])
    if found:
        note(f"{counted(len(found), 'tensor')} {'differs' if len(found) == 1 else 'differ'}")
        raise typer.Exit(1)
    note("no tensor differs")


COMMANDS = (inspect, check_model, compare, diff)
