"""A hub on this machine, as far as an upload of small files asks it: what arrives is what a repository would hold."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """repositories: id -> file name -> bytes.  private: ids that were made so.  cards: what was sent to be checked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: list[str] = []
        self.cards: list[str] = []
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
            commit = "0" * 40
            return {"commitUrl": f"{self.url}/{repository}/commit/{commit}", "commitOid": commit, "success": True}
        return None


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that listens while the block runs; HF_ENDPOINT=hub.url has the library use it."""
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._say(held.answer(self.path, body))

        def do_GET(self) -> None:
            self._say({"id": "x", "sha": "0" * 40, "siblings": []} if self.path.startswith("/api/models/") else None)

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
