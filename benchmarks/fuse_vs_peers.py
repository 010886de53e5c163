"""taskmerge, mergekit 0.1.5 and the floor, side by side: whole processes, alternating, several rounds.

    python benchmarks/fuse_vs_peers.py .bench --mergekit PEER_VENV/bin --suite headline

Writes benchmarks/results/SUITE.json and SUITE.md, after every method. Inputs are made when they are not there, and
read once before each method, so that all tools find them in the page cache. --suite growth (2, 4, 8 specialists; 0.1,
0.5, 2 B), shapes (5,000 little tensors, one huge one), sentence_transformers; or --case and --methods of one's own.
mergekit comes from PyPI into an environment of its own:
`python -m venv PEER_VENV && PEER_VENV/bin/pip install mergekit==0.1.5 sentence-transformers==6.2.0`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from compare_outputs import compare
from processes import Cost, machine, median, rows, run
from synthetic import make

HERE = Path(__file__).parent
WEIGHTS = (0.3, 0.4, 0.5, 0.2, 0.1, 0.3, 0.2, 0.4)
OUTPUTS = {
    "floor": "floor.out",
    "floor_unsynced": "floor.out",
    "taskmerge": "taskmerge",
    "taskmerge_first": "taskmerge",
    "mergekit": "mergekit",
    "sentence_transformers": "sentence_transformers",
}
METHODS: dict[str, dict[str, float]] = {
    "linear": {},
    "task_arithmetic": {},
    "ties": {"density": 0.2},
    "dare_ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.5, "outliers": 0.01},
    "della": {"density": 0.5, "epsilon": 0.1},
    "sce": {},
}


@dataclass(frozen=True)
class Measure:
    """What to run. case: shape:billions:specialists. rounds: of ours and the floor; the peer has peer_rounds."""

    case: str
    methods: tuple[str, ...]
    rounds: int = 3
    peer_rounds: int = 1
    tools: tuple[str, ...] = ("floor", "taskmerge", "mergekit")


SUITES = {
    "headline": (
        Measure("qwen2:0.494:3", ("task_arithmetic", "dare_ties", "ties", "breadcrumbs", "della"), rounds=5),
        Measure("qwen2:2.0:3", ("task_arithmetic",)),
    ),
    "growth": tuple(
        measure
        for case in (
            *(f"qwen2:0.494:{count}" for count in (2, 4, 8)),
            *(f"qwen2:{size}:3" for size in (0.1, 0.494, 2.0)),
        )
        for measure in (Measure(case, ("task_arithmetic",)), Measure(case, ("ties",), tools=("floor", "taskmerge")))
    ),
    # mergekit writes no weights for tensors that are in no architecture it knows
    "shapes": tuple(
        Measure(f"{shape}:0:3", ("task_arithmetic", "ties"), tools=("floor", "taskmerge")) for shape in ("many", "huge")
    ),
    "sentence_transformers": (
        Measure("qwen2:0.494:2", ("linear", "ties"), tools=("floor", "taskmerge", "sentence_transformers")),
    ),
}


@dataclass(frozen=True)
class Case:
    """One set of checkpoints. inputs: folders, the base's first."""

    name: str
    inputs: list[Path]
    work: Path

    @property
    def files(self) -> list[str]:
        return [str(folder / "model.safetensors") for folder in self.inputs]


Command = Callable[[Case, str], tuple[list[str], dict[str, str]]]


def floor(case: Case, method: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, str(HERE / "floor.py"), str(case.work / "floor.out"), *case.files], {}


def floor_unsynced(case: Case, method: str) -> tuple[list[str], dict[str, str]]:
    command, environment = floor(case, method)
    return [*command, "--no-sync"], environment


def taskmerge(case: Case, method: str) -> tuple[list[str], dict[str, str]]:
    """A fuse of inputs whose sha256 is known from an earlier run."""
    recipe = case.work / f"{method}.yaml"
    options = dict(METHODS[method])
    base, *specialists = [str(path.resolve()) for path in case.inputs]
    recipe.write_text(
        json.dumps(
            {
                "base": base,
                "specialists": {
                    f"s{i}": {"model": path, "weight": weight}
                    for i, (path, weight) in enumerate(zip(specialists, WEIGHTS, strict=False))
                },
                "merge": {"method": method, **options},
                "output": {"path": str((case.work / "taskmerge").resolve()), "dtype": "bfloat16"},
            },
            indent=1,
        )
    )
    command = [str(Path(sys.executable).parent / "taskmerge"), "fuse", str(recipe), "--fresh"]
    return command, {"XDG_CACHE_HOME": str(case.work / "cache")}


def taskmerge_first(case: Case, method: str) -> tuple[list[str], dict[str, str]]:
    """The same of inputs never seen before: their sha256 is computed for the record beside the merge."""
    (case.work / "cache" / "taskmerge" / "sha256.json").unlink(missing_ok=True)
    return taskmerge(case, method)


def mergekit(peer: Path, dtype: str) -> Command:
    def command(case: Case, method: str) -> tuple[list[str], dict[str, str]]:
        config = case.work / f"mergekit_{method}.yaml"
        base, *specialists = [str(path.resolve()) for path in case.inputs]
        shared = {"normalize": method == "linear"} if method not in ("ties", "dare_ties", "della") else {}
        options = {"gamma" if name == "outliers" else name: value for name, value in METHODS[method].items()}
        models = [
            {"model": path, "parameters": {"weight": weight, **options}}
            for path, weight in zip(specialists, WEIGHTS, strict=False)
        ]
        table = {"merge_method": method, "models": models, "parameters": shared, "dtype": dtype}
        table |= {"out_dtype": "bfloat16"} | ({} if method == "linear" else {"base_model": base})
        config.write_text(json.dumps(table, indent=1))
        return [str(peer / "mergekit-yaml"), str(config), str(case.work / "mergekit"), "--quiet"], {}

    return command


def sentence_transformers(peer: Path) -> Command:
    """`SentenceTransformer.merge`, which takes folders with a tokenizer: see `with_tokenizer`."""

    def command(case: Case, method: str) -> tuple[list[str], dict[str, str]]:
        out = str(case.work / "sentence_transformers")
        script = str(HERE / "merge_sentence_transformers.py")
        return [str(peer / "python"), script, method, out, *map(str, case.inputs)], {}

    return command


def alternate(case: Case, method: str, tools: dict[str, Command], rounds: dict[str, int]) -> dict[str, list[Cost]]:
    """Each tool in turn, round after round, so that a busy minute hits them all."""
    costs: dict[str, list[Cost]] = {name: [] for name in tools}
    for number in range(max(rounds.values())):
        for name, tool in tools.items():
            if number >= rounds[name]:
                continue
            path = case.work / OUTPUTS[name]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            command, environment = tool(case, method)
            costs[name].append(run(command, environment, case.work / f"{name}.log"))
            last = costs[name][-1]
            print(f"{case.name} {method} {name}: {last.wall:.2f} s wall, {last.cpu:.2f} s cpu", flush=True)
    return costs


def report(name: str, results: list[dict[str, object]], folder: Path) -> None:
    """The results as JSON and as a table."""
    about = machine()
    (folder / f"{name}.json").write_text(
        json.dumps({"machine": about, "results": results}, indent=1, default=asdict) + "\n"
    )
    lines = [
        f"# {name}",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB. Whole processes, alternating;",
        f"load average {about['load_average_after']} at the end. Times are medians, memory is the largest seen,",
        "'private' without mapped file pages. 'x floor' and 'peer ÷ ours' are ratios of wall time within one run.",
        "",
        "| case | method | tool | runs | wall s | cpu s | resident MiB | private MiB | x floor | peer ÷ ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        costs: dict[str, Cost] = row["medians"]  # type: ignore[assignment]
        for tool, cost in costs.items():
            ratio = f"{cost.wall / costs['floor'].wall:.2f}" if "floor" in costs else ""
            ours = f"{cost.wall / costs['taskmerge'].wall:.1f}" if "taskmerge" in costs else ""
            cells = [row["case"], row["method"], tool, len(row["runs"][tool]), f"{cost.wall:.2f}", f"{cost.cpu:.2f}"]  # type: ignore[index]
            cells += [cost.resident >> 20, cost.private >> 20, ratio, ours]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += [""] + [
        f"Outputs, {row['case']} {row['method']}: {json.dumps(row['outputs'])}" for row in results if row.get("outputs")
    ]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def with_tokenizer(inputs: list[Path]) -> None:
    """A small tokenizer beside each model: `SentenceTransformer.merge` loads one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    for folder in inputs:
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def into_page_cache(case: Case) -> None:
    """Reads all inputs once."""
    buffer = bytearray(16 << 20)
    for name in case.files:
        with Path(name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def measured(
    what: Measure, folder: Path, peer: Path | None, peer_dtype: str, compared: bool
) -> Iterator[dict[str, object]]:
    """One row of results per method."""
    shape, billions, specialists = what.case.split(":")
    place = folder / f"{shape}_{billions}"
    case = Case(what.case, make(place, shape, float(billions), int(specialists)), place)
    known: dict[str, Command] = {
        "floor": floor,
        "floor_unsynced": floor_unsynced,
        "taskmerge": taskmerge,
        "taskmerge_first": taskmerge_first,
    }
    if peer is not None:
        known |= {"mergekit": mergekit(peer, peer_dtype), "sentence_transformers": sentence_transformers(peer)}
    tools = {name: known[name] for name in what.tools if name in known}
    if "sentence_transformers" in tools:
        with_tokenizer(case.inputs)
    rounds = {
        name: what.peer_rounds if name in ("mergekit", "sentence_transformers") else what.rounds for name in tools
    }
    for method in what.methods:
        run(*taskmerge(case, method), case.work / "warm_up.log")  # builds the kernels, hashes the inputs
        into_page_cache(case)
        costs = alternate(case, method, tools, rounds)
        outputs = None
        if compared and "mergekit" in tools:
            ours = case.work / "taskmerge" / "model.safetensors"
            density = METHODS[method].get("density") if method == "ties" else None
            outputs = compare(ours, case.work / "mergekit", case.inputs, density)
        yield {
            "case": what.case,
            "method": method,
            "medians": {tool: median(list_) for tool, list_ in costs.items()},
            "runs": {tool: rows(list_) for tool, list_ in costs.items()},
            "outputs": outputs,
        }
        for name in tools:
            path = case.work / OUTPUTS[name]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where checkpoints and outputs go")
    parser.add_argument("--mergekit", type=Path, help="bin folder of the peer's environment")
    parser.add_argument("--suite", choices=sorted(SUITES))
    parser.add_argument("--name", help="of the results; the suite's by default")
    parser.add_argument("--case", default="qwen2:0.494:3", help="shape:billions:specialists, several by commas")
    parser.add_argument("--methods", default="task_arithmetic,dare_ties,ties")
    parser.add_argument("--tools", default="floor,taskmerge,mergekit", help="also floor_unsynced, taskmerge_first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument("--peer-dtype", default="bfloat16", help="what mergekit computes in")
    parser.add_argument("--compare", action="store_true", help="compare the two tools' outputs")
    given = parser.parse_args()
    methods, tools = tuple(given.methods.split(",")), tuple(given.tools.split(","))
    own = (Measure(case, methods, given.rounds, given.peer_rounds, tools) for case in given.case.split(","))
    results: list[dict[str, object]] = []
    for what in SUITES[given.suite] if given.suite else own:
        for row in measured(what, given.folder, given.mergekit, given.peer_dtype, given.compare):
            results.append(row)
            report(given.name or given.suite or "fuse_vs_peers", results, HERE / "results")


if __name__ == "__main__":
    main()
