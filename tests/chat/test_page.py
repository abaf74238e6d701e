"""The page in a headless Chromium: ask, watch two answers come, say which is better, find it in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import SCREENSHOTS, Browser, Page, browser, needs_chromium
from chat_lab import LETTERS, PLAIN
from serve_lab import Running, Slow

from finetune.chat.model import ChatModel

pytestmark = needs_chromium
DONE = "document.querySelectorAll('[data-verdict]').length == 4 && running === null"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def own(chat: ChatModel, tmp_path: Path) -> Iterator[Running]:
    running = Running(chat, tmp_path / "preferences.jsonl")
    yield running
    running.server.stop()


def opened(chromium: Browser, running: Running, *, width: int = 1280, dark: bool = False) -> Page:
    page = chromium.open(f"http://127.0.0.1:{running.port}/", width=width, dark=dark)
    page.wait_for("about || !document.getElementById('door').hidden")
    return page


def greedy(page: Page) -> None:
    page.evaluate("at('temperature').value = 0")


def ask(page: Page, question: str) -> None:
    page.type("#question", question)
    page.press("Enter")


def said(page: Page) -> list[str]:
    """What the answers of the last question say."""
    return page.evaluate(
        "[...[...document.querySelectorAll('.turn')].pop().querySelectorAll('.said')].map(e => e.innerText)"
    )


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (800, False), (390, False), (390, True)])
def test_ask_and_prefer(chromium: Browser, own: Running, width: int, dark: bool) -> None:
    page = opened(chromium, own, width=width, dark=dark)
    greedy(page)
    assert fits(page)
    ask(page, "What is 3?")
    page.wait_for(DONE)
    assert said(page) == [LETTERS, PLAIN]
    assert page.evaluate("document.querySelectorAll('mark').length") >= 2
    assert "Left: letters" in page.text(".answer")
    page.click("[data-verdict=right]")
    page.wait_for("document.querySelector('.better')")
    (row,) = map(json.loads, own.served.pairs.read_text(encoding="utf-8").splitlines())
    assert row["prompt"] == [{"role": "user", "content": "What is 3?"}]
    assert row["chosen"] == [{"role": "assistant", "content": PLAIN}] and row["chosen_model"] == "plain"
    assert row["rejected"] == [{"role": "assistant", "content": LETTERS}] and row["temperature"] == 0
    assert page.text("#kept").startswith("1 pair in ") and "goes on with the right one" in page.text(".verdicts")

    # The conversation goes on with the answer that was preferred, for both.
    ask(page, "What is 5?")
    page.wait_for(f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    messages = page.evaluate("turns[1].messages")
    assert messages[1] == {"role": "assistant", "content": PLAIN} and len(messages) == 3
    place = {390: "phone", 800: "tablet", 1280: "desktop"}[width]
    name = f"serve-{place}-{'dark' if dark else 'light'}.png"
    page.screenshot(SCREENSHOTS / name, whole=False)
    assert fits(page)
    page.click("#settings summary")
    assert fits(page) and "512" not in page.text("#about")
    assert page.errors == [] and all(url.startswith(f"http://127.0.0.1:{own.port}/") for url in page.requests)
    page.close()


def test_blind_hides_who_answers_and_shuffles_the_sides(chromium: Browser, own: Running) -> None:
    page = opened(chromium, own)
    greedy(page)
    page.click("#blind")
    for side, models in ((0.9, ["letters", "plain"]), (0.1, ["plain", "letters"])):
        page.click("#new")
        page.evaluate(f"Math.random = () => {side}")
        ask(page, "What is 3?")
        page.wait_for(DONE)
        assert said(page) == [{"letters": LETTERS, "plain": PLAIN}[model] for model in models]
        shown = page.text("#turns")
        assert "Left" in shown and "letters" not in shown and "plain" not in shown
        page.click("[data-verdict=left]")
        page.wait_for("document.querySelector('.better')")
        assert f"Left: {models[0]}" in page.text("#turns") and f"Right: {models[1]}" in page.text("#turns")
    kept = [json.loads(line) for line in own.served.pairs.read_text(encoding="utf-8").splitlines()]
    assert [row["chosen_model"] for row in kept] == ["letters", "plain"] and all(row["blind"] for row in kept)
    page.close()


def test_two_samples_of_one_model_and_ties(chromium: Browser, own: Running) -> None:
    page = opened(chromium, own)
    page.evaluate("at('left').value = at('right').value = 'base'")
    ask(page, "What is 3?")
    page.wait_for(DONE)
    first, second = said(page)
    assert first != second
    page.click("[data-verdict=both_bad]")
    page.wait_for("turns[0].verdict")
    assert not own.served.pairs.exists()
    assert json.loads(own.served.pairs.with_name("preferences.ties.jsonl").read_text())["verdict"] == "both_bad"
    assert "1 bad on both sides" in page.text("#kept")
    # At temperature 0 there is nothing to prefer, and the page says so.
    greedy(page)
    ask(page, "What is 5?")
    page.wait_for(f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    assert "both answers are the same" in page.text("#notice") and "nothing to prefer" in page.text(".turn:last-child")
    assert page.evaluate("document.querySelector('[data-verdict=left]').disabled")
    # One model alone: no verdicts.
    page.click("#new")
    page.evaluate("at('right').value = ''")
    ask(page, "What is 7?")
    page.wait_for("turns.length == 1 && running === null")
    assert len(said(page)) == 1 and not page.evaluate("document.querySelector('.turn:last-child .verdicts')")
    assert page.errors == []
    page.close()


def test_an_answer_can_be_stopped_and_comes_in_piece_by_piece(
    chromium: Browser, chat: ChatModel, tmp_path: Path
) -> None:
    slow = Slow(chat)
    running = Running(slow, tmp_path / "p.jsonl")
    try:
        page = opened(chromium, running)
        ask(page, "What is 3?")
        page.wait_for("document.querySelector('.said.writing') && turns[0].answers[0].text.endsWith('xx')")
        assert page.text("#send") == "Stop"
        page.click("#send")
        page.wait_for("running === null")
        assert "[stopped]" in said(page)[0] and page.text("#send") == "Send"
        assert not page.evaluate("document.querySelector('[data-verdict]')")
        page.close()
    finally:
        slow.go_on.set()
        running.server.stop()


def test_markup_is_text(chromium: Browser, own: Running) -> None:
    page = opened(chromium, own)
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    page.evaluate(f"at('system').value = {json.dumps(evil)}")
    ask(page, evil)
    page.wait_for("running === null && turns.length")
    assert page.text(".question") == evil and not page.evaluate("document.querySelector('#turns img, #turns b')")
    assert page.evaluate("turns[0].messages[0]") == {"role": "system", "content": evil}
    assert page.errors == []
    page.close()


def test_the_token_is_asked_for_and_errors_are_shown(chromium: Browser, chat: ChatModel, tmp_path: Path) -> None:
    running = Running(chat, tmp_path / "p.jsonl", token="a-token-of-many-letters", host="0.0.0.0")
    try:
        page = opened(chromium, running, width=390)
        assert "asks for its token" in page.text("#notice")
        page.type("#token", "wrong")
        page.press("Enter")
        page.wait_for("at('notice').textContent == 'That is not the token.'")
        page.type("#token", "a-token-of-many-letters")
        page.press("Enter")
        page.wait_for("about && at('door').hidden")
        greedy(page)
        ask(page, "What is 3?")
        page.wait_for(DONE)
        assert said(page) == [LETTERS, PLAIN]
        page.click("[data-verdict=left]")
        page.wait_for("document.querySelector('.better')")
        ask(page, "What is it? " * 100)
        page.wait_for("running === null && at('notice').textContent.includes('leaves no room')")
        assert page.evaluate("turns.length") == 1 and "What is it?" in page.evaluate("at('question').value")
        page.close()
    finally:
        running.server.stop()
