"""A hub on this machine, as far as uploads of small files and reads ask it; the bytes that it sends are counted."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """repositories: id -> file name -> bytes.  private: ids that were made so.  cards: what was sent to be checked.
    sent: file name -> bytes that were read of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: list[str] = []
        self.cards: list[str] = []
        self.sent: Counter[str] = Counter()
        self.url = ""

    def answer(self, path: str, body: bytes) -> Any:
        """What the hub says to a POST."""
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
            self.repositories.setdefault(name, {})
            self.private += [name] if said.get("private") or said.get("visibility") == "private" else []
            return {"url": f"{self.url}/{name}", "id": name}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
        if "/commit/" in path:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    value = row["value"]
                    self.repositories[repository][value["path"]] = base64.b64decode(value["content"])
            return {"commitUrl": f"{self.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return None

    def told(self, path: str) -> Any:
        """What the hub says of a repository to a GET."""
        if not path.startswith("/api/models/"):
            return None
        name = "/".join(path.split("/")[3:5])
        if name not in self.repositories:
            return {"id": "x", "sha": COMMIT, "siblings": []}
        if "/tree/" in path:
            return [
                {"type": "file", "path": file, "size": len(data), "oid": "b",
                 **({"lfs": {**_lfs(data), "oid": _lfs(data)["sha256"]}} if _is_large(file) else {})}
                for file, data in self.repositories[name].items()
            ]  # fmt: skip
        rows = [
            {"rfilename": file, "size": len(data), "blobId": "b", **({"lfs": _lfs(data)} if _is_large(file) else {})}
            for file, data in self.repositories[name].items()
        ]
        return {"id": name, "sha": COMMIT, "siblings": rows}

    def file(self, path: str) -> tuple[str, bytes] | None:
        """The file that a request for its content names: /owner/name/resolve/revision/file."""
        owner, name, verb, _, file = (path.lstrip("/").split("/", 4) + [""] * 5)[:5]
        data = self.repositories.get(f"{owner}/{name}", {}).get(file) if verb == "resolve" else None
        return None if data is None else (file, data)


COMMIT = "0" * 40


def _is_large(file: str) -> bool:
    return file.endswith(".safetensors")


def _lfs(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that listens while the block runs; HF_ENDPOINT=hub.url has the library use it."""
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._say(held.answer(self.path, body))

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            found = held.file(path)
            self._say(held.told(path)) if found is None else self._send(*found)

        do_HEAD = do_GET

        def _send(self, name: str, data: bytes) -> None:
            asked = self.headers.get("Range")
            first, _, last = (asked or "").removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1] if asked else data
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                held.sent[name] += len(part)
                self.wfile.write(part)

        def _say(self, found: Any) -> None:
            data = json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
