"""One file a kind of input. Importing this package registers every generator."""

from importlib import import_module
from pathlib import Path

from fuzz.keeping import register

for _path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"fuzz.generators.{_path.stem}")
register()
