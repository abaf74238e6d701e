"""Reports as people see them: in headless Chromium, light and dark, on a phone and on a desktop.

Screenshots are left in build/screenshots/.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import SCREENSHOTS, Browser, Page, browser, needs_chromium
from finished_runs import NASTY, chain, sft_run
from page_checks import problems
from release.made_runs import make_base

from finetune.plan.evaluations import Evaluation, keep_evaluation
from finetune.reports.compare import comparison_page
from finetune.reports.page import recipe_page, run_page
from finetune.reports.read import read_run

pytestmark = needs_chromium
LOOKS = {"phone-light": (390, False), "phone-dark": (390, True), "desktop-light": (1280, False),
         "desktop-dark": (1280, True)}  # fmt: skip
PAGES = ("recipe", "sft", "helpful", "best", "ppo", "comparison", "damaged")
WIDE = "w" * 300
"""One word wider than any screen."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every sort of page, with words that do not fit."""
    return written(tmp_path_factory.mktemp("pages"), WIDE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, as they usually are."""
    return written(tmp_path_factory.mktemp("plain"), "Rome")


def written(folder: Path, word: str) -> dict[str, Path]:
    """Every sort of page in a file of its own, with answers, evaluations, notes, and a word in all of them."""
    folders = chain(folder)
    rows = [
        {"prompt": f"Ask {n} {word}?", "base": f"I do not know. {NASTY}", "sft": f"It is {n}, I think. {word}"}
        for n in range(9)
    ]
    keep_evaluation(folders["sft"], Evaluation("answers", {"name": word}, {}, {"names": ["base", "sft"]}, rows))
    results = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}, word: 1.0, "by_kind": {word: {"value": 0.5}}}
    keep_evaluation(folders["sft"], Evaluation("gsm8k", {"name": f"{word}.jsonl"}, {}, results))
    runs = {name: read_run(path) for name, path in folders.items()}
    content = {name: run_page(run) for name, run in runs.items()}
    content["recipe"] = recipe_page(f"chat {word}", list(runs.values()), {"dpo": "dpo"})
    other = sft_run(folder / "b", make_base(folder / "b-base"), settings={"kind": "sft", "name": word})
    rows = [{**row, "sft": f"Perhaps {row['sft']}"} for row in rows]
    keep_evaluation(other, Evaluation("answers", {}, {}, {"names": ["base", "sft"]}, rows))
    content["comparison"] = comparison_page([(runs["sft"], read_run(other))], ("A", f"B {word}"), {})
    (other / "metrics.jsonl").write_text("{")
    content["damaged"] = run_page(read_run(other))
    for name, text in content.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in content}


def open_all(page: Page) -> None:
    """Open what is folded, so that it is looked at too."""
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")


@pytest.mark.parametrize("name", PAGES)
def test_layout_colours_and_figures(chromium: Browser, pages: dict[str, Path], name: str) -> None:
    page = chromium.open(pages[name].as_uri())
    for look, (width, dark) in LOOKS.items():
        page.look(width=width, dark=dark)
        assert problems(page) == [], look
    open_all(page)
    for width, dark in LOOKS.values():
        page.look(width=width, dark=dark)
        assert problems(page) == [], (width, dark, "opened")
    assert page.requests == [page.url]
    page.close()


@pytest.mark.parametrize("name", ["recipe", "helpful", "comparison"])
def test_as_they_usually_are(chromium: Browser, plain: dict[str, Path], name: str) -> None:
    page = chromium.open(plain[name].as_uri())
    for look, (width, dark) in LOOKS.items():
        page.look(width=width, dark=dark)
        assert problems(page) == [], look
        assert page.screenshot(SCREENSHOTS / f"report-{name}-{look}.png").stat().st_size > 20_000
    page.close()


def test_dark_is_dark_and_light_is_light(chromium: Browser, pages: dict[str, Path]) -> None:
    page = chromium.open(pages["helpful"].as_uri())
    paper = {}
    for dark in (False, True):
        page.look(width=1280, dark=dark)
        paper[dark] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {False: "rgb(255, 255, 255)", True: "rgb(17, 21, 26)"}
    page.close()


def test_wide_tables_scroll_in_their_own_box(chromium: Browser, pages: dict[str, Path]) -> None:
    page = chromium.open(pages["helpful"].as_uri(), width=390)
    wider = "[...document.querySelectorAll('.ft-scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
    assert page.evaluate(wider) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_contents_are_reached_by_keyboard(chromium: Browser, pages: dict[str, Path]) -> None:
    page = chromium.open(pages["recipe"].as_uri())
    page.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().width") > 20  # it shows when it is reached
    page.press("Tab")
    page.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#lineage"
    page.press("Enter")
    page.wait_for("location.hash === '#lineage'")
    assert 0 <= page.evaluate("document.getElementById('lineage').getBoundingClientRect().top") < 200
    page.close()


def test_printed_it_is_light_and_whole(chromium: Browser, pages: dict[str, Path]) -> None:
    page = chromium.open(pages["recipe"].as_uri(), dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert problems(page) == []
    page.close()
