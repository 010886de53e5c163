"""The interface of every store: objects by name, written completely or not at all."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from taskmerge.errors import CheckpointError, OutputError, TaskmergeError, clipped, first_line
from taskmerge.words.places import StoreUri

_QUERY = re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]+")
_TRIES, _PAUSE = 6, 0.2
_NOT_AGAIN = (FileNotFoundError, PermissionError, FileExistsError, NotImplementedError, IsADirectoryError)
CREDENTIALS = (
    "check that the store's own tools can reach it from here: credentials (environment, roles), region, endpoint"
)
Result = TypeVar("Result")
UNFINISHED = ".taskmerge-unfinished"
"""The folder of marks in an output that is being written to a store; see `output.store_folder`."""


class Stat(NamedTuple):
    """One object. state: what the store calls this version of it (an ETag), else size and time. modified: seconds since
    1970, by the store's clock."""

    size: int
    state: str
    modified: float


class Changed(Exception):
    """An object is no longer the version that was asked for."""


class Store(Protocol):
    """The objects below one uri, by their names relative to it.

    conditional: whether a read of another version than the one asked for is refused by the store itself. Methods raise
    what the library raises; `reading` and `storing` make errors for the user of it.
    """

    uri: StoreUri
    conditional: bool

    def stat(self, name: str) -> Stat | None:
        """Return one object; None if it is missing."""
        ...

    def names(self) -> Mapping[str, Stat]:
        """Return every object below a name."""
        ...

    def read(self, name: str, start: int, stop: int, state: str = "") -> bytes:
        """Return bytes [start, stop). state: version that is expected. Raises Changed."""
        ...

    def put(self, name: str, data: bytes) -> str:
        """Write one small object; its state."""
        ...

    def upload(self, name: str, chunks: Iterator[bytes], size: int) -> str:
        """Write one object of `size` bytes in parts; its state. Where `chunks` raises, nothing is written."""
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        ...


def patiently(call: Callable[[], Result]) -> Result:
    """Return the result of a call that is repeated, with growing pauses, if network or store fail."""
    for attempt in range(_TRIES):
        try:
            return call()
        except (TaskmergeError, Changed, *_NOT_AGAIN):
            raise
        except Exception as error:
            tried = type(error).__module__.startswith("obstore")  # has tried again itself
            if attempt == _TRIES - 1 or tried or _is_refusal(error):
                raise
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def _is_refusal(error: BaseException) -> bool:
    """Whether a store refused the user's rights, so that another try changes nothing."""
    text = f"{type(error).__name__} {error}"
    return any(word in text for word in ("ermissionDenied", "nauthenticated", "ExpiredToken", "InvalidAccessKey",
                                         "InvalidToken", "SignatureDoesNotMatch", "AccessDenied", "NotSupported",
                                         "NotImplemented"))  # fmt: skip


def said(error: BaseException) -> str:
    """Return the message of a store library's error in one line, without secrets that a uri may contain."""
    text = str(error)
    if "ExpiredToken" in text or "has expired" in text:
        return "the credentials have expired"
    text = " ".join(first_line(error).split())
    return clipped(_QUERY.sub(r"\1", text), 300)


def reading(place: object, call: Callable[[], Result]) -> Result:
    """Return the result of a call that reads, repeated if that may help. Raises CheckpointError."""
    try:
        return patiently(call)
    except TaskmergeError:
        raise
    except Changed:
        what = "was written to while it was being read"
        raise CheckpointError(what, str(place), "run it again when no other program writes to it") from None
    except FileNotFoundError:
        raise CheckpointError("does not exist", str(place), "check the uri") from None
    except Exception as error:
        raise CheckpointError(f"cannot be read: {said(error)}", str(place), CREDENTIALS) from None


def storing(place: object, call: Callable[[], Result], again: bool = True) -> Result:
    """Return the result of a call that writes, repeated if that is possible and may help. Raises OutputError."""
    try:
        return patiently(call) if again else call()
    except TaskmergeError:
        raise
    except NotImplementedError:
        raise OutputError("cannot be written to", str(place), "write to another store or to a folder") from None
    except Exception as error:
        move = f"{CREDENTIALS}; then run the same command again: it continues from the finished files"
        raise OutputError(f"cannot be written: {said(error)}", str(place), move) from None


def rechunked(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in chunks of `size`; the last one is the remainder."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


LEAST_PART, _MOST_PARTS = 8 << 20, 9_000


def part_size(size: int) -> int:
    """Bytes of one part of an upload of `size` bytes: stores take 5 MiB at least, and 10,000 parts at most."""
    return max(LEAST_PART, -(-size // _MOST_PARTS // (1 << 20)) * (1 << 20) + (1 << 20))
