"""The store that holds what a uri names."""

from __future__ import annotations

from functools import lru_cache

from taskmerge.checkpoints.stores.filesystems import FileSystem
from taskmerge.checkpoints.stores.interface import Store, said
from taskmerge.checkpoints.stores.objects import ObjectStore
from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.words.places import OBJECT_STORES, StoreUri


@lru_cache(64)
def open_store(uri: StoreUri) -> Store:
    """Open the objects below a uri, without a request to the store.

    Raises UsageError where the library that opens it is missing, or its settings make no sense.
    """
    try:
        return ObjectStore(uri) if uri.scheme in OBJECT_STORES else FileSystem(uri)
    except TaskmergeError:
        raise
    except Exception as error:
        raise UsageError(
            f"{uri.scheme}:// cannot be opened: {said(error)}",
            str(uri),
            "check the uri and the credentials of the store",
        ) from None
