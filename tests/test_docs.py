"""The documentation as a site: it builds without a warning, from a disk, and no page is left out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from places import ROOT


class Links(HTMLParser):
    """What a page loads and what it leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.led: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "link") and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded += [value for key in ("src", "href") if (value := given.get(key))]
        elif tag == "a" and given.get("href"):
            self.led.append(str(given["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs", place / "docs")
    shutil.copy(ROOT / "zensical.toml", place)
    program = Path(sys.executable).with_name("zensical")
    ended = subprocess.run([program, "build", "--strict"], cwd=place, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return place / "site"


def links(page: Path) -> Links:
    found = Links()
    found.feed(page.read_text("utf-8"))
    return found


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        for target in links(page).loaded:
            assert not re.match(r"[a-z]+:", target) or target.startswith("data:"), (page.name, target)
            if page.name != "404.html":
                assert (page.parent / target.partition("?")[0].partition("#")[0]).exists(), (page.name, target)


def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    seen, waiting = {"index.html"}, ["index.html"]
    while waiting:
        for target in links(site / waiting.pop()).led:
            name = target.partition("#")[0].removeprefix("./")
            if name.endswith(".html") and (site / name).exists() and name not in seen:
                seen.add(name)
                waiting.append(name)
    assert {page.name for page in site.glob("*.html")} - seen == {"404.html"}
    assert {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} <= seen
