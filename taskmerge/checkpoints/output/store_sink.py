"""One weight file on its way into a store: the bytes are uploaded in parts while the next are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from taskmerge.checkpoints.stores.interface import Store, part_size, rechunked, storing

_WAITING = 3


class _Stopped(Exception):
    """The file is not to be."""


class StoreSink:
    """See `shard_writer.Sink`. state: what the store calls the file, once it is finished."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self.state = ""
        self._store, self._name, self._size = store, name, size
        self._queue: queue.Queue[bytes | _Stopped | None] = queue.Queue(_WAITING)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def append(self, data: np.ndarray) -> None:
        """See `Sink.append`."""
        if self._failure is not None:
            raise self._failure
        self._put(data.tobytes())

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """See `Sink.close`."""
        self._put(_Stopped())
        self._thread.join()

    def _put(self, item: bytes | _Stopped | None) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _chunks(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Stopped):
                raise item
            yield item

    def _run(self) -> None:
        place = f"{self._store.uri}/{self._name}"
        parts = rechunked(self._chunks(), part_size(self._size))
        try:
            self.state = storing(place, lambda: self._store.upload(self._name, parts, self._size), again=False)
        except BaseException as error:
            self._failure = error
