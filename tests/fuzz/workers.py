"""Two processes that run cases; one that hangs or dies by a signal is a finding, and another takes its place."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzz.cases import Case, Command
from fuzz.judging import Result, prepare, run, run_case

LONGEST = 10.0
"""Seconds that one command may take: of the processor's time, so that a busy machine is no finding."""
_WAITING = 30.0
"""Seconds without using the processor at all: it waits for something. What a busy machine starves uses a little."""
WARM = "warming up"
_MEMORY = 4 << 30
_LARGEST_FILE = 1 << 30
_WARM = 300.0
"""Seconds for a worker to load libraries and to build kernels on a healthy case."""
HEALTHY = {
    "tiny": (
        "inspect base",
        "fuse recipe.yaml",
        "extract base one --out sign --form sign",
        "compare base one",
        "extract base one --out lora --lora 2",
        "diff base base",
    ),
    "hearing": ("check-model model --json", "evaluate model --retrieval a=sounds.jsonl --json"),
}
"""Template -> commands that must end well there."""


@dataclass
class Worker:
    process: Any
    pipe: Connection
    sandbox: Path
    case: Case | None = None
    doing: str = ""
    cpu: float = 0.0
    latest: float = 0.0
    moved: float = field(default_factory=time.monotonic)
    """cpu: what it had used of the processor when it began; latest: now; moved: when that last grew."""

    @property
    def stack(self) -> Path:
        return self.sandbox / "stack.txt"


def run_all(cases: Sequence[Case], session: Path, count: int = 2) -> Iterator[tuple[Case, Result]]:
    """Each case's result as it comes. session: a folder with templates/; sandboxes are made in it."""
    waiting = list(reversed(cases))
    workers = [_start(session, number) for number in range(min(count, len(cases)))]
    numbers = iter(range(count, 1_000_000))
    for worker in workers:
        _give(worker, waiting)
    while any(worker.case for worker in workers):
        busy = [worker for worker in workers if worker.case]
        ready = wait([worker.pipe for worker in busy] + [worker.process.sentinel for worker in busy], timeout=0.5)
        for place, worker in enumerate(workers):
            if worker.case is None:
                continue
            told = _listen(worker) if worker.pipe in ready or worker.process.sentinel in ready else None
            trouble = _trouble(worker)
            if told is None and trouble is None:
                continue
            case = worker.case
            yield case, told if told is not None else Result(findings=[f"{worker.doing}: {trouble}"])
            if told is None:
                workers[place] = worker = _start(session, next(numbers))
            _give(worker, waiting)
    for worker in workers:
        worker.pipe.close()
        worker.process.join(5)


def _give(worker: Worker, waiting: list[Case]) -> None:
    worker.case = waiting.pop() if waiting else None
    _begins(worker)
    if worker.case is not None:
        worker.pipe.send(worker.case)


def _begins(worker: Worker) -> None:
    worker.cpu = worker.latest = _seconds(worker.process.pid)
    worker.moved = time.monotonic()


def _seconds(pid: int) -> float:
    """What a process has used of the processor."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _listen(worker: Worker) -> Result | None:
    """Reads what a worker says: of the command it begins, or its result."""
    try:
        while worker.pipe.poll():
            said = worker.pipe.recv()
            if isinstance(said, str):
                worker.doing = said
                _begins(worker)
            else:
                return Result(**said)
    except (EOFError, OSError):
        worker.process.join(5)
    return None


def _trouble(worker: Worker) -> str | None:
    code = worker.process.exitcode
    if code is not None:
        return f"the process died by signal {-code}" if code < 0 else f"the process ended with code {code}"
    now, seconds = time.monotonic(), _seconds(worker.process.pid)
    if seconds > worker.latest:
        worker.latest, worker.moved = seconds, now
    warming = worker.doing == WARM
    if seconds - worker.cpu < (_WARM if warming else LONGEST) and now - worker.moved < _WAITING:
        return None
    os.kill(worker.process.pid, signal.SIGUSR1)  # says where it is
    time.sleep(0.3)
    worker.process.kill()
    worker.process.join()
    return f"hangs for more than {LONGEST:.0f} s: {worker.stack.read_text()[-3000:]}"


def _start(session: Path, number: int) -> Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    sandbox = session / f"sandbox-{number}"
    sandbox.mkdir(parents=True)
    process = context.Process(target=_work, args=(theirs, sandbox, session / "templates"), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours, sandbox)


def _work(pipe: Connection, sandbox: Path, templates: Path) -> None:
    from fuzz import watching

    enter(sandbox)
    pipe.send(WARM)
    warm(sandbox / "inner", templates)
    pipe.send("nothing")
    stack = (sandbox / "stack.txt").open("w")
    faulthandler.register(signal.SIGUSR1, stack, all_threads=True)
    faulthandler.enable(stack, all_threads=False)
    watching.install()
    inner = sandbox / "inner"
    while True:
        try:
            case: Case = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            result = run_case(case, inner, templates, pipe.send)
        except Exception:
            result = Result(findings=[f"the fuzzer itself: {traceback.format_exc()[-2000:]}"])
        pipe.send(asdict(result))


def warm(sandbox: Path, templates: Path) -> None:
    """Healthy commands, so that what is loaded and built once is there before anything is timed."""
    for template, commands in HEALTHY.items():
        if (templates / template).is_dir():
            os.chdir(prepare(sandbox, templates / template))
            for words in commands:
                ended = run(Command(tuple(words.split())))
                assert ended.code == 0, ended


def enter(sandbox: Path) -> None:
    """Sets a process up: a home of its own, bounded memory, nothing of the caller's terminal."""
    home = sandbox / "home"
    home.mkdir(parents=True, exist_ok=True)
    temporary = sandbox / "inner" / "temporary"
    os.environ |= {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(sandbox.parent / "cache"),
        "HF_HOME": str(home / "hf"),
        "COLUMNS": "120",
        "TMPDIR": str(temporary),
        "MTEB_CACHE": str(home / "mteb"),
    }
    import tempfile

    tempfile.tempdir = str(temporary)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (used + _MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    os.close(devnull)
