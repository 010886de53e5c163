"""methods, schema."""

from __future__ import annotations

from pathlib import Path

import typer

from taskmerge.cli.options import JSON, OUT_FILE
from taskmerge.cli.output import print_json, print_table, say
from taskmerge.words.system_errors import writing


def methods(name: str = typer.Argument(None, help="A merge method, or file.py:name."), as_json: bool = JSON) -> None:
    """List the merge methods, or explain one and its parameters."""
    from taskmerge.methods import all_methods, find_method

    chosen = [find_method(name)] if name else all_methods()
    if as_json:
        rows = [
            {
                "name": method.name,
                "aliases": list(method.aliases),
                "doc": method.doc,
                "source": method.source,
                "parameters": {row.name: {"default": row.default, "doc": row.doc} for row in method.parameters},
            }
            for method in chosen
        ]
        print_json({"methods": rows})
        return
    if not name:
        shown = [(method.name, ", ".join(method.aliases), method.summary, method.source) for method in chosen]
        print_table(("method", "alias", "what it does", "source"), shown)
        return
    method = chosen[0]
    say(f"{method.name}: {method.doc}\n\nsource: {method.source or 'not stated'}\n")
    parameters = [(row.name, row.kind.words, row.default_words, row.doc) for row in method.parameters]
    print_table(("parameter", "takes", "default", "meaning"), parameters)


def schema(out: Path = OUT_FILE, as_json: bool = JSON) -> None:
    """Print the recipe's JSON Schema, for editors."""
    import json

    from taskmerge.recipes import schema as recipe_schema

    table = recipe_schema()
    text = json.dumps(table, indent=2, ensure_ascii=False)
    if out is None:
        print_json(table) if as_json else say(text)
    else:
        from taskmerge.errors import OutputError

        if out.is_symlink() or (out.exists() and '"$schema"' not in out.read_text("utf-8", errors="replace")[:1000]):
            raise OutputError("exists and is not a JSON Schema", str(out), "choose another --out, or remove it")
        with writing(out):
            out.write_text(text + "\n", "utf-8")
        if as_json:
            print_json({"path": str(out)})


COMMANDS = (methods, schema)
