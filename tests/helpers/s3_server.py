"""A small server that speaks S3 on this machine: objects in memory, uploads in parts, and faults on demand.

What it takes and gives is counted, by key. `fault` is asked about every request: None lets it pass, "503" and "expired"
refuse it, "slow" makes it wait, "cut" breaks the connection in the middle of it.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

Fault = Callable[[str, str], str | None]
REGION = {
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_REGION": "us-east-1",
}  # fmt: skip


class Stored(NamedTuple):
    data: bytes
    etag: str
    when: float


class S3(ThreadingHTTPServer):
    """objects: "bucket/key" -> what it holds. read, written: bytes by key. largest: most bytes of a key at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.read: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()
        self.most_parts = 0
        self.least_part = 1 << 60
        self.fault: Fault = lambda method, key: None
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        return {**REGION, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}"}

    def put(self, key: str, data: bytes) -> str:
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        with self.lock:
            self.objects[key] = Stored(data, etag, time.time())
        return etag

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's news."""


def at_random(rate: float, kinds: tuple[str, ...], seed: int = 0) -> Fault:
    """Faults of these kinds, of a share of the requests."""
    draw = random.Random(seed)
    lock = threading.Lock()

    def fault(method: str, key: str) -> str | None:
        with lock:
            return draw.choice(kinds) if draw.random() < rate else None

    return fault


@contextmanager
def serving() -> Iterator[S3]:
    server = S3()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3
    timeout = 60
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.key = unquote(parts.path).lstrip("/")
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests[self.command] += 1
        self.kind = self.server.fault(self.command, self.key)
        if self.kind == "slow":
            time.sleep(0.3)
        if self.kind == "503":
            return self._answer(503, _error("SlowDown", "Please reduce your request rate."))
        if self.kind == "expired":
            return self._answer(400, _error("ExpiredToken", "The provided token has expired."))
        if self.kind == "cut" and self.command != "GET":
            self.close_connection = True
            return None
        return getattr(self, f"_{self.command.lower()}")()

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD" or not body:
            return
        if self.kind == "cut" and self.command == "GET":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(body)

    def _get(self) -> None:
        if "list-type" in self.query:
            return self._list()
        stored = self.server.objects.get(self.key)
        if stored is None:
            return self._answer(404, _error("NoSuchKey", self.key))
        if (wanted := self.headers.get("If-Match")) not in (None, stored.etag):
            return self._answer(412, _error("PreconditionFailed", str(wanted)))
        data, code, more = stored.data, 200, {}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            more = {"Content_Range": f"bytes {first}-{last}/{len(data)}"}
            data, code = data[first : last + 1], 206
        with self.server.lock:
            self.server.read[self.key] += len(data)
            self.server.largest[self.key] = max(self.server.largest[self.key], len(data))
        return self._answer(code, data, ETag=stored.etag, Last_Modified=formatdate(stored.when, usegmt=True), **more)

    def _head(self) -> None:
        stored = self.server.objects.get(self.key)
        if stored is None:
            return self._answer(404)
        when = formatdate(stored.when, usegmt=True)
        return self._answer(200, ETag=stored.etag, Last_Modified=when, Content_Length=str(len(stored.data)))

    def _put(self) -> None:
        if "uploadId" in self.query:
            upload = self.server.uploads.get(self.query["uploadId"])
            if upload is None:
                return self._answer(404, _error("NoSuchUpload", self.query["uploadId"]))
            upload[1][int(self.query["partNumber"])] = self.body
            self.server.written[self.key] += len(self.body)
            return self._answer(200, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')
        if self.headers.get("If-None-Match") == "*" and self.key in self.server.objects:
            return self._answer(412, _error("PreconditionFailed", self.key))
        self.server.written[self.key] += len(self.body)
        return self._answer(200, ETag=self.server.put(self.key, self.body))

    def _post(self) -> None:
        if "uploads" in self.query:
            name = f"upload-{random.getrandbits(64):x}"
            self.server.uploads[name] = (self.key, {})
            return self._answer(200, _xml(f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId>"
                                          "</InitiateMultipartUploadResult>"))  # fmt: skip
        if "delete" in self.query:
            keys = [unescape(key.decode()) for key in re.findall(rb"<Key>(.*?)</Key>", self.body)]
            for key in keys:
                self.server.objects.pop(f"{self.key.rstrip('/')}/{key}", None)
            told = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
            return self._answer(200, _xml(f"<DeleteResult>{told}</DeleteResult>"))
        upload = self.server.uploads.pop(self.query["uploadId"], None)
        if upload is None:
            return self._answer(404, _error("NoSuchUpload", self.query["uploadId"]))
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", self.body)]
        parts = [upload[1][number] for number in numbers]
        self.server.most_parts = max(self.server.most_parts, len(parts))
        if len(parts) > 1:
            self.server.least_part = min(self.server.least_part, *(len(part) for part in parts[:-1]))
        etag = self.server.put(self.key, b"".join(parts))
        return self._answer(200, _xml(f"<CompleteMultipartUploadResult><ETag>{escape(etag)}</ETag>"
                                      f"<Key>{escape(self.key)}</Key></CompleteMultipartUploadResult>"))  # fmt: skip

    def _delete(self) -> None:
        if "uploadId" in self.query:
            self.server.uploads.pop(self.query["uploadId"], None)
        else:
            self.server.objects.pop(self.key, None)
        return self._answer(204)

    def _list(self) -> None:
        bucket, prefix = self.key.rstrip("/"), self.query.get("prefix", "")
        with self.server.lock:
            rows = sorted((key[len(bucket) + 1 :], one) for key, one in self.server.objects.items()
                          if key.startswith(f"{bucket}/{prefix}"))  # fmt: skip
        rows = [row for row in rows if row[0] > self.query.get("continuation-token", "")]
        page, more = rows[:1000], len(rows) > 1000
        told = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(one.data)}</Size><ETag>{escape(one.etag)}</ETag>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(one.when))}."
            f"{int(one.when % 1 * 1000):03d}Z</LastModified></Contents>"
            for key, one in page
        )
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        self._answer(200, _xml(f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{told}"
                               "</ListBucketResult>"))  # fmt: skip


def _xml(text: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


def _error(code: str, message: str) -> bytes:
    return _xml(f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>")
