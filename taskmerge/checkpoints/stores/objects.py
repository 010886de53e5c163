"""S3, Google Cloud Storage and Azure, and what speaks like them, through obstore."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskmerge.checkpoints.stores.interface import Changed, Stat, part_size
from taskmerge.words.extras import require
from taskmerge.words.places import StoreUri

_AT_ONCE = 3
"""Parts of one upload under way."""
_PATIENCE: dict[str, Any] = {"timeout": "120s", "connect_timeout": "10s"}
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_SAME = {"gcs": "gs", "s3a": "s3"}


class ObjectStore:
    """See `interface.Store`. Credentials, region and endpoint are those of the environment (AWS_…, GOOGLE_…, AZURE_…),
    of the machine's role, and for S3 of boto3's configuration where boto3 is installed."""

    conditional = True

    def __init__(self, uri: StoreUri) -> None:
        require("obstore")
        import obstore
        from obstore.store import from_url

        self.uri = uri
        self._library = obstore
        scheme = _SAME.get(uri.scheme, uri.scheme)
        bucket, _, inside = uri.text.partition("://")[2].partition("/")
        self._inside = f"{inside}/" if inside else ""
        options: dict[str, Any] = {
            "client_options": {**_PATIENCE, "allow_http": _is_plain()},
            "retry_config": {"max_retries": 8},
        }
        if scheme == "s3" and (provider := _of_boto3()) is not None:
            options["credential_provider"] = provider
        self._store: Any = from_url(f"{scheme}://{bucket}", **options)

    def stat(self, name: str) -> Stat | None:
        """See `Store.stat`."""
        try:
            return _stat(self._library.head(self._store, self._inside + name))
        except FileNotFoundError:
            return None

    def names(self) -> Mapping[str, Stat]:
        """See `Store.names`."""
        found: dict[str, Stat] = {}
        for rows in self._library.list(self._store, prefix=self._inside.rstrip("/") or None):
            for row in rows:
                if row["path"].startswith(self._inside):
                    found[row["path"][len(self._inside) :]] = _stat(row)
        return found

    def read(self, name: str, start: int, stop: int, state: str = "") -> bytes:
        """See `Store.read`."""
        if stop <= start:
            return b""
        options: Any = {"range": (start, stop), **({"if_match": state} if state else {})}
        try:
            found = self._library.get(self._store, self._inside + name, options=options)
            data = bytes(found.bytes())
        except self._library.exceptions.PreconditionError:
            raise Changed from None
        if len(data) != stop - start:
            raise OSError(f"{len(data):,} of {stop - start:,} bytes arrived")
        return data

    def put(self, name: str, data: bytes) -> str:
        """See `Store.put`."""
        return str(self._library.put(self._store, self._inside + name, data, use_multipart=False)["e_tag"] or "")

    def upload(self, name: str, chunks: Iterator[bytes], size: int) -> str:
        """See `Store.upload`."""
        found = self._library.put(
            self._store, self._inside + name, chunks,
            use_multipart=True, chunk_size=part_size(size), max_concurrency=_AT_ONCE,
        )  # fmt: skip
        return str(found["e_tag"] or "")

    def remove(self, names: Sequence[str]) -> None:
        """See `Store.remove`."""
        try:
            if names:
                self._library.delete(self._store, [self._inside + name for name in names])
        except FileNotFoundError:  # where there is no such request, each is asked for
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._library.delete(self._store, [self._inside + name])


def _stat(row: Any) -> Stat:
    modified = row["last_modified"].timestamp()
    return Stat(row["size"], str(row["e_tag"] or row["version"] or f"{row['size']} bytes of {modified}"), modified)


def _is_plain() -> bool:
    """Whether the endpoint that the user names is one without encryption, such as a store on this machine."""
    return any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)


def _of_boto3() -> Any:
    """What asks boto3 for credentials: it knows profiles and sign-on too. None without boto3, and where it has none."""
    try:
        import boto3  # type: ignore[import-not-found, unused-ignore]
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = boto3.Session()
        return Boto3CredentialProvider(session) if session.get_credentials() is not None else None
    except ImportError:
        return None
