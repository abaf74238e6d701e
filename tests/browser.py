"""A headless Chromium for tests of pages: open, look, click, type, take a picture. The standard library is enough.

    with browser() as chromium:
        page = chromium.open(path.as_uri(), width=390, dark=True)
        assert page.evaluate("document.title") == "…"
        page.screenshot(SCREENSHOTS / "report-phone-dark.png")
        assert page.requests == [page.url] and page.errors == []

It speaks the DevTools protocol over a pipe, so no port is opened. Nothing but this machine's own addresses and files
can be reached from it, and its profile is an empty folder that goes when it ends.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).resolve().parent.parent / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIME_LIMIT = 60.0
"""Seconds that one answer may take: a busy machine of two cores starts Chromium in up to twenty."""
TALLEST = 16_000
"""CSS pixels of a page that a picture shows; Chromium draws no more than 16,384."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--disable-domain-reliability", "--disable-breakpad",
    "--metrics-recording-only", "--no-pings", "--mute-audio", "--hide-scrollbars", "--password-store=basic",
    "--remote-debugging-pipe", "--proxy-server=127.0.0.1:9",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser's program, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium here (apt-get install chromium): pages are not looked at"
)


class BrowserError(Exception):
    """Chromium did not answer, or answered with an error."""


class Page:
    """One tab. requests: every address it asked for, its own first; errors: of its console, scripts and loads."""

    def __init__(self, chromium: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = chromium, session, target
        self.url = ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loaded = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, for this tab."""
        return self._browser.call(method, params, self._session)

    def go(self, url: str) -> None:
        """Load an address (file: or http://127.0.0.1) and wait until it and all that it names are there."""
        self.url, self._loaded = url, False
        self.requests.clear()
        self.errors.clear()
        found = self.call("Page.navigate", url=url)
        if found.get("errorText"):
            raise BrowserError(f"{url}: {found['errorText']}")
        self._browser.read_until(lambda: self._loaded, f"{url} is not loaded")
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, of a promise once it is kept. Raises BrowserError where it throws."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if problem := found.get("exceptionDetails"):
            raise BrowserError(str(problem.get("exception", {}).get("description") or problem["text"]))
        return found["result"].get("value")

    def wait_for(self, condition: str, *, seconds: float = 20.0) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise BrowserError(f"not true after {seconds:g} s: {condition}")
            time.sleep(0.05)

    def text(self, selector: str = "body") -> str:
        """What is to be read in the first element that the CSS selector names."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click the middle of the first such element, as a mouse does: what lies over it gets the click."""
        at = self.evaluate(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center', behavior: 'instant'}); const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Write into a field, at its cursor."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key where the focus is: Tab, Enter, Escape, ArrowDown."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40}
        typed = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = typed if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **more)

    def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Be so wide (CSS pixels; under 600 a phone) and light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """A PNG of the page: the whole of it (to TALLEST), or what is in view. Makes the folder."""
        clip = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            area = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], TALLEST), "scale": 1}
            clip = {"clip": area, "captureBeyondViewport": True}
        taken = self.call("Page.captureScreenshot", format="png", **clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})
        del self._browser.pages[self._session]

    def heard(self, method: str, params: dict[str, Any]) -> None:
        """Take note of one event of this tab."""
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith(("data:", "blob:")):
                self.requests.append(address)
        elif method == "Runtime.exceptionThrown":
            found = params["exceptionDetails"]
            self.errors.append(str(found.get("exception", {}).get("description") or found["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            said = " ".join(str(part.get("value", part.get("description"))) for part in params["args"])
            self.errors.append(f"console: {said}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())


class Browser:
    """A running Chromium; `browser()` makes one."""

    def __init__(self, ask: int, hear: int) -> None:
        self._ask, self._hear = ask, hear
        self._rest = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.pages: dict[str, Page] = {}

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A new tab with an address loaded, so wide and light or dark."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.look(width=width, height=height, dark=dark)
        page.go(url)
        return page

    def call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._ask, content) :]
        self.read_until(lambda: number in self._answers, f"no answer to {method}")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def read_until(self, done: Any, problem: str) -> None:
        """Take messages in until `done()`; raises BrowserError with the problem after TIME_LIMIT."""
        end = time.monotonic() + TIME_LIMIT
        while not done():
            ready, _, _ = select.select([self._hear], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._hear, 1 << 20) if ready else b""
            if not piece:
                raise BrowserError(f"{problem}: " + ("Chromium has ended" if ready else f"{TIME_LIMIT:g} s passed"))
            *messages, self._rest = (self._rest + piece).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers[message["id"]] = message
                elif page := self.pages.get(message.get("sessionId", "")):
                    page.heard(message["method"], message["params"])


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, and end it and its helpers whatever happens."""
    program = find_chromium()
    assert program is not None, "mark the test with needs_chromium"
    home = Path(tempfile.mkdtemp(prefix="chromium-"))
    reads, asks = _pipe()
    hears, writes = _pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, str(home / "out.txt"), os.O_WRONLY | os.O_CREAT, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, reads, 3),  # where Chromium looks for commands, and writes its answers
        (os.POSIX_SPAWN_DUP2, writes, 4),
    ]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TZ": "UTC"}
    command = [program, *FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"]
    process = os.posix_spawn(program, command, env, file_actions=actions, setpgroup=0)
    os.close(reads)
    os.close(writes)
    chromium = Browser(asks, hears)
    try:
        yield chromium
        with suppress(BrowserError, BrokenPipeError):
            chromium.call("Browser.close", {})
    finally:
        os.close(asks)
        os.close(hears)
        _end(process)
        shutil.rmtree(home, ignore_errors=True)


def _pipe() -> tuple[int, int]:
    """Both ends of a pipe, at numbers that 3 and 4 do not stand in the way of."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]


def _end(process: int) -> None:
    """Wait a little for a process that was asked to go, then end it with all of its group."""
    for _ in range(40):
        if os.waitpid(process, os.WNOHANG)[0]:
            break
        time.sleep(0.05)
    else:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # its helpers, where one is slower to go
