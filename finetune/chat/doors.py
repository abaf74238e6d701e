"""Who may ask: checks of a request's headers, before anything of it is read.

On loopback every page that a browser has open could try to speak to us: by its own address (Origin), or by a name of
its own that it lets point here (Host). Neither gets through, and no answer is ever readable for another page (no CORS).
Beyond loopback a token is needed; with one the name does not matter, for a page that lies about its name has none.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlsplit

from finetune.chat.openai_requests import RequestError

TOKEN_VARIABLE = "FINETUNE_SERVE_TOKEN"
LEAST_TOKEN = 16
"""Letters that a token of the user's own needs."""
_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Door:
    """host: what the server is bound to. token: what has to be shown, None = nothing (loopback alone)."""

    host: str
    token: str | None

    def check_address(self, headers: Message) -> None:
        """Raises RequestError for what another page in a browser sends."""
        host = headers.get("Host") or ""
        if self.token is None and _name(host) not in _LOOPBACK_NAMES | {self.host}:
            raise RequestError(403, "this server answers to localhost and 127.0.0.1 only", code="wrong_host")
        origin = headers.get("Origin")
        if origin is not None and _place(origin) != host.lower():
            raise RequestError(403, "pages of other addresses may not ask this server", code="wrong_origin")

    def check_token(self, headers: Message) -> None:
        """Raises RequestError."""
        if self.token is None:
            return
        shown = headers.get("Authorization") or ""
        if not hmac.compare_digest(shown.encode(), f"Bearer {self.token}".encode()):
            why = "a token is needed" if not shown else "that is not the token"
            raise RequestError(
                401, f"{why}: send `Authorization: Bearer TOKEN` with the one of this server", code="invalid_api_key"
            )


def _place(origin: str) -> str:
    """The name and port of an Origin header; nothing where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """The name in a Host header, without its port and the brackets of IPv6."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
