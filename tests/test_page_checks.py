"""The checks of pages find what they are for, and have nothing to say of a page that is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import BrowserError, browser, needs_chromium
from page_checks import problems

HEAD = '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Page</title><body>'
WRONG = """
<h1>One</h1><h2 style="margin-top:-40px">Two</h2><p style="color:#999">pale</p>
<div style="width:900px;height:3px">wide</div><img src="data:image/png;base64,xx"><svg width="0" height="0"></svg>
<a href="#no">link</a><p id="a"></p><p id="a"></p><input id="field"><script>nothing.there</script>
<img src="https://example.com/picture.png" alt="far" width="9" height="9">
"""
RIGHT = """
<h1>One</h1><h2>Two</h2><p>dark</p><div style="overflow:auto"><pre style="width:2000px">scrolls</pre></div>
<label for="field">Name</label><input id="field"><button onclick="out.textContent = field.value">Go</button>
<p id="out"></p>
"""


@needs_chromium
def test_the_checks_find_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    place.write_text(HEAD + WRONG)
    with browser() as chromium:
        page = chromium.open(place.as_uri(), width=390)
        found = "\n".join(problems(page))
        for what in (
            "wide on a screen of 390", 'outside the screen: div "wide"', "over each other", "broken picture: data:",
            "broken picture: far", "without a size: svg", "without a name: svg", "id twice: a",
            "a control without a name: input#field", "leads nowhere: #no", "contrast 2.85", "ReferenceError: nothing",
            "Failed to load resource",
        ):  # fmt: skip
            assert what in found
        assert page.requests == [place.as_uri(), "https://example.com/picture.png"]

        place.write_text(HEAD + RIGHT)
        page.go(place.as_uri())
        assert problems(page) == [] and page.requests == [place.as_uri()]
        page.type("#field", "Ann")
        page.press("Tab")
        page.press("Enter")
        assert page.text("#out") == "Ann"
        page.type("#field", "a")
        page.click("button")
        page.wait_for("out.textContent === 'Anna'")
        with pytest.raises(BrowserError, match="ReferenceError"):
            page.evaluate("nothing.there")
        assert page.screenshot(tmp_path / "shots" / "page.png").read_bytes().startswith(b"\x89PNG")
