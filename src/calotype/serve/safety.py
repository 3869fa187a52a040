"""Who may ask: exact hosts, equal origins, a token; what may be sent, and what a page may load. An ASGI middleware."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_hex, token_urlsafe
from urllib.parse import parse_qsl, urlencode

import psutil
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calotype.serve.answers import RefusedRequest, refusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE_METHODS = ("GET", "HEAD")
POLICY_HEADER = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY_HEADER,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
MAX_JSON, MAX_EDIT, MAX_UPLOAD = 2**20, 2**25, 2**26
"""Bytes of a body: of a request, of a form with a picture, of a file."""
BODY_SECONDS = 60.0
"""In which a body must have arrived."""
MAX_ADDRESS = 4096
"""Letters of a path, or of a query."""


@dataclass(frozen=True)
class Gate:
    """The hosts by whose names the server may be called, and the token that opens it."""

    hosts: frozenset[str]
    port: int
    own_name: str = ""
    """A name that leads to this machine and that no other server has; empty where the network is let in.

    Browsers give a cookie to all ports of a host: under 127.0.0.1, any other server on this machine would get ours.
    """
    token: str = field(default_factory=lambda: token_urlsafe(32), repr=False)

    @property
    def cookie(self) -> str:
        """Its name; browsers share cookies between the ports of a host."""
        return f"calotype-{self.port}"

    def knows(self, host: str) -> bool:
        return host.lower() in self.hosts

    def opens(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())

    def bearer(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.opens(token.strip())

    def cookie_opens(self, headers: Headers) -> bool:
        """Cookies of other servers at this host come along, in any form, and some may have our name."""
        pairs = (pair.partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
        return any(self.opens(value.strip()) for name, _, value in pairs if name.strip() == self.cookie)


def gate_for(host: str, port: int) -> Gate:
    """For a server that listens at `host`: its own names alone, so that no name that leads here by DNS is one."""
    own_name = f"{token_hex(8)}.localhost" if host in LOOPBACK else ""
    names = (*LOOPBACK, own_name) if own_name else (*LOOPBACK, *own_names(host))
    shown = {f"[{name}]" if ":" in name else name for name in names}
    bare = shown if port == 80 else set()
    return Gate(frozenset(f"{name}:{port}".lower() for name in shown) | frozenset(bare), port, own_name)


def own_names(host: str) -> list[str]:
    """The name or address that was asked for; where that is all of this machine's, all of them."""
    if host not in ("0.0.0.0", "::", ""):
        return [host]
    addresses = [each.address.partition("%")[0] for given in psutil.net_if_addrs().values() for each in given
                 if each.family in (socket.AF_INET, socket.AF_INET6)]  # fmt: skip
    return [socket.gethostname(), *addresses]


# -- The middleware ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guarded:
    """An application behind a gate. Refuses before a route sees anything, and adds the headers to every answer."""

    app: ASGIApp
    gate: Gate
    at_end: Callable[[], None] = lambda: None
    """Is called before the server waits for the requests that it is answering."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                harden(MutableHeaders(scope=message))
            await send(message)

        if (refused := self.refused(scope)) is not None:
            await refused(scope, receive, hardened)
        else:
            await self.app(scope, bounded(scope, receive), hardened)

    def refused(self, scope: Scope) -> Response | None:
        """The answer to who may not ask; None for who may."""
        if (problem := self.misdirected(scope)) is not None:
            return refusal(scope, *problem)
        if (redirect := self._entrance(scope)) is not None:
            return redirect
        return None if (problem := self.unproven(scope)) is None else refusal(scope, *problem)

    def misdirected(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason where a request names another server, or comes from the page of another one."""
        hosts, origins = (Headers(scope=scope).getlist(name) for name in ("host", "origin"))
        if len(hosts) != 1 or not self.gate.knows(hosts[0]):
            named = f"the Host header is {', '.join(hosts)!r:.80}, which is no name of this server"
            return 421, f"{named}; open the address that calotype serve has printed"
        if origins not in ([], [f"http://{hosts[0]}"]):
            return 403, f"the Origin header is {', '.join(origins)!r:.80}, but only pages of this server may ask it"
        if max(len(scope["path"]), len(scope["query_string"])) > MAX_ADDRESS:
            return 414, f"the address has a path or query of more than {MAX_ADDRESS:,} letters"
        return None

    def unproven(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason where a request lacks the token, or where another page may have sent it."""
        headers = Headers(scope=scope)
        if scope["path"].startswith("/static/") or self.gate.bearer(headers):
            return None
        if not self.gate.cookie_opens(headers):
            where = "open the address that calotype serve has printed, or send the header Authorization: Bearer TOKEN"
            return 401, f"this server needs its token: {where}"
        if scope["method"] not in SAFE_METHODS and "origin" not in headers:
            return 403, "a request that changes something needs an Origin header, or a bearer token"
        return None

    def _entrance(self, scope: Scope) -> Response | None:
        """The answer to the address with the token in it: a cookie, and the way to the same page without the token."""
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in given if name == "token"]
        if scope["method"] != "GET" or len(tokens) != 1 or not self.gate.opens(tokens[0]):
            return None
        rest = urlencode([(name, value) for name, value in given if name != "token"])
        place = "/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else "")
        answer = RedirectResponse(place, 303, {"Cache-Control": "no-store"})
        answer.set_cookie(self.gate.cookie, self.gate.token, httponly=True, samesite="strict", path="/")
        return answer


def harden(headers: MutableHeaders) -> None:
    for name, value in SECURITY_HEADERS.items():
        headers[name] = value
    headers.setdefault("Cache-Control", "no-store")


# -- Bodies ------------------------------------------------------------------------------------------------------------


def limit_of(path: str, kind: str) -> int:
    """Bytes of a body, by where it goes and its content type."""
    if path.startswith("/api/uploads/"):
        return MAX_UPLOAD
    form = kind.startswith("multipart/form-data") and path.endswith(("/edits", "/samples"))
    return MAX_EDIT if form else MAX_JSON


def bounded(scope: Scope, receive: Receive) -> Receive:
    """As `receive`, but raises `RefusedRequest` for a body that is too large or too slow."""
    headers = Headers(scope=scope)
    most, got = limit_of(scope["path"], headers.get("content-type", "").lower()), 0
    length, whole, end = headers.get("content-length", "0"), False, asyncio.get_running_loop().time() + BODY_SECONDS
    too_large = RefusedRequest(413, f"the body has more than {most:,} bytes, which is the limit")

    async def receive_some() -> Message:
        nonlocal got, whole
        if whole:
            return await receive()
        if length.isdecimal() and int(length) > most:
            raise too_large
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            raise RefusedRequest(408, f"the body has not arrived within {BODY_SECONDS:.0f} seconds") from None
        got += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if got > most:
            raise too_large
        return message

    return receive_some
