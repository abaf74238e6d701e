"""The site is built strictly, from nothing but this folder, and can be read on a phone and in the dark."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import SCREENSHOTS, browser, needs_chromium
from guides import ROOT, pages
from test_links import navigation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: the extra docs"),
]
LOOKED_AT = (
    "index",
    "quickstart",
    "procedures",
    "preference",
    "troubleshooting",
    "reference/recipe",
    "reference/commands",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_every_page_is_on_the_site_and_fetches_nothing(site: Path) -> None:
    for name in navigation():
        assert (site / name).with_suffix(".html").is_file()
    found = list(site.rglob("*.html"))
    assert len(found) >= len([path for path in pages() if path.startswith("docs/")])
    for page in found:
        fetched = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:|//)[^>]*", page.read_text("utf-8")
        )
        assert not fetched, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:|//)|@import", sheet.read_text("utf-8")), sheet


@needs_chromium
def test_pages_are_whole_at_a_desk_on_a_phone_and_in_the_dark(address: str) -> None:
    with browser() as chromium:
        for name in LOOKED_AT:
            for width, dark in ((1280, False), (390, True)):
                page = chromium.open(f"{address}/{name}.html", width=width, dark=dark)
                assert page.evaluate("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
                root = "document.documentElement"
                assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), f"{name} is wider than {width}"
                assert page.errors == [] and all(asked.startswith(address) for asked in page.requests), name
                page.screenshot(SCREENSHOTS / f"docs-{name.replace('/', '-')}-{width}.png", whole=False)
                page.close()


@needs_chromium
def test_the_search_finds_a_key(address: str) -> None:
    with browser() as chromium:
        page = chromium.open(f"{address}/index.html")
        page.click("input.md-search__input")
        page.type("input.md-search__input", "mask_format_tokens")
        page.wait_for("document.querySelectorAll('.md-search-result__link').length > 1")
        links = page.evaluate("[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)")
        assert any("preference.html" in link for link in links) and any(
            "reference/recipe.html" in link for link in links
        )
