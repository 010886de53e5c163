"""Chromium without a window, driven over a pair of pipes: no driver, no library, no port.

Messages of the DevTools protocol are JSON texts, each ended by a zero byte (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
Scheme = Literal["light", "dark"]
_OVERFLOW = """
(() => {
  const room = document.documentElement.clientWidth;
  const beyond = [...document.querySelectorAll('main *')].filter(node =>
    !node.closest('.scroll, pre') && node.getBoundingClientRect().right > room + 1);
  return {wide: document.documentElement.scrollWidth - room,
          nodes: beyond.map(node => node.tagName + ' ' + node.textContent.slice(0, 60))};
})()
"""


def find_browser() -> str | None:
    """The path of a Chromium: $TASKMERGE_BROWSER, else what is installed; None without any."""
    said = os.environ.get("TASKMERGE_BROWSER")
    return said or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with one page. Use it as a context, so that it ends."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="taskmerge-browser-", ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
                 "--no-first-run", "--disable-extensions", "--disable-background-networking",
                 f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        line = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, program, *flags], pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self._number:
            self.events.append(found)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']['message']}")
        return found["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._read, 1 << 20)
            if not read:
                raise RuntimeError("the browser has ended")
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = 1280, scheme: Scheme = "light") -> None:
        """Show a file at a width, in CSS pixels."""
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, script: str) -> Any:
        """The value of an expression on the page."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def complaints(self) -> list[str]:
        """What stands in the console, exceptions, and every request but that of the page itself."""
        self.evaluate("1")  # events before its answer have been sent
        found = []
        for event in self.events:
            method, told = event.get("method", ""), event.get("params", {})
            if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(told)[:2000])
            elif method == "Network.requestWillBeSent" and told["type"] != "Document":
                found.append(f"asks for {told['request']['url'][:200]}")
        return found

    def overflow(self) -> tuple[int, list[str]]:
        """(pixels by which the page is wider than its window, what reaches beyond outside boxes that scroll)."""
        found = self.evaluate(_OVERFLOW)
        return found["wide"], found["nodes"]

    def picture(self, path: Path, top: int = 0, height: int | None = None, kind: str = "png") -> None:
        """Write what is seen, from `top` on; None: the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        more = {"quality": 80} if kind == "webp" else {}
        found = self.ask("Page.captureScreenshot", format=kind, clip=clip, captureBeyondViewport=True, **more)
        path.write_bytes(base64.b64decode(found["data"]))

    def printed(self, path: Path) -> None:
        """Write the page as it prints, a PDF."""
        path.write_bytes(base64.b64decode(self.ask("Page.printToPDF", printBackground=True)["data"]))
