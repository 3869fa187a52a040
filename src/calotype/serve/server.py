"""The application: routes behind a gate; and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import h11
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from calotype.escaping import plain
from calotype.places import DISK_FULL, HINTS, NOT_WRITABLE
from calotype.serve.actions import CHANGES
from calotype.serve.answers import KEPT, RefusedRequest, json_response, refusal, static_files, without_folders
from calotype.serve.api import edits, generations, models
from calotype.serve.events import job_events, run_events
from calotype.serve.launching import Launcher
from calotype.serve.library import Library
from calotype.serve.openapi import api_description
from calotype.serve.safety import Gate, Guarded
from calotype.serve.sampling import Queue
from calotype.serve.views import DATA, PAGES
from calotype.types import UserError

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
MOST_CONNECTIONS, MOST_HEADER_BYTES, QUIET_SECONDS = 600, 2**15, 30
HEADER_SECONDS = 10.0
"""In which the headers of a request must have arrived, from its first byte or from the connection on."""


def application(folder: Path, gate: Gate, device: str = "auto") -> Guarded:
    """The routes for the runs in a folder, behind a gate."""
    queue = Queue(devices_of(device))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=app.state.library.summaries, daemon=True).start()  # so that the first list is there
        async with queue.serving():
            yield

    handlers = {
        RefusedRequest: answer_refused, UserError: answer_damaged, HTTPException: answer_http,
        OSError: answer_system, Exception: answer_mistake,
    }  # fmt: skip
    app = Starlette(routes=routes(), lifespan=lifespan, exception_handlers=handlers)  # type: ignore[arg-type]
    app.state.library, app.state.launcher, app.state.queue = Library(folder), Launcher(folder), queue
    app.state.device, app.state.listeners, app.state.tasks = device, 0, set()
    return Guarded(app, gate, queue.stop)


def routes() -> list[Route]:
    made = [Route(path, endpoint) for path, endpoint in {**PAGES, **DATA}.items()]
    made += [Route(path, endpoint, methods=[method]) for (method, path), endpoint in CHANGES.items()]
    return [
        *made,
        Route("/v1/models", models),
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/runs/{run}/events", run_events),
        Route("/api/jobs/{job}/events", job_events),
        Route("/openapi.json", openapi),
        Route("/static/{name}", static),
    ]


def devices_of(device: str) -> Sequence[str]:
    """One for each sampling process: all GPUs where any is meant."""
    if device == "auto" and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [device]


def openapi(request: Request) -> Response:
    return json_response(api_description())


def static(request: Request) -> Response:
    """A file under the name that has the hash of its content in it, so that browsers ask for it once."""
    name = request.path_params["name"]
    content = {address.rpartition("/")[2]: content for address, content in static_files().values()}.get(name)
    if content is None:
        raise RefusedRequest(404, "there is no such file")
    return Response(content, 200, KEPT, TYPES[name.rpartition(".")[2]])


def answer_refused(request: Request, error: RefusedRequest) -> Response:
    return refusal(request.scope, error.status, error.reason, error.field, error.retry_after, error.retry)


def answer_damaged(request: Request, error: UserError) -> Response:
    """A run that cannot be read, without the path that leads to it."""
    return refusal(request.scope, 409, without_folders(str(error), request.app.state.library.folder), retry=False)


def answer_http(request: Request, error: HTTPException) -> Response:
    reason = {404: "there is nothing at this address", 405: "this address takes another method"}.get(error.status_code)
    return refusal(request.scope, error.status_code, reason or error.detail)


def answer_system(request: Request, error: OSError) -> Response:
    """What the disk or the system refuses, with what to do, as on the command line. Other errors are our mistake."""
    if error.errno not in HINTS:
        raise error
    place = f" at {error.filename}" if error.filename else ""
    why = without_folders(plain(f"{error.strerror}{place}"), request.app.state.library.folder)
    status = 507 if error.errno in DISK_FULL else 409 if error.errno in NOT_WRITABLE else 500
    return refusal(request.scope, status, f"{why}; {HINTS[error.errno]}", retry=False)


def answer_mistake(request: Request, error: Exception) -> Response:
    why = without_folders(plain(str(error)), request.app.state.library.folder)
    return refusal(request.scope, 500, f"{type(error).__name__}: {why[:200]} (this is a bug in Calotype)", retry=False)


class Server(uvicorn.Server):
    """Ends what it is answering before it waits for that: streams, and requests for pictures."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if isinstance(app := self.config.app, Guarded):
            app.at_end()
        await super().shutdown(sockets)


class Protocol(H11Protocol):
    """Closes connections whose headers come too slowly, and those that still send after they were answered.

    So nobody without the token keeps one of the places for long.
    """

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does so only for sockets with a protocol number; else the second packet of an answer waits for 40 ms
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answered = self.cycle is not None and self.cycle.response_complete
        if self.conn.their_state is not h11.IDLE and not answered:
            self._disarm()
        elif self.deadline is None:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self.deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _disarm(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def server(app: Guarded, host: str, port: int) -> uvicorn.Server:
    """It writes no log of requests: addresses may have the token in them."""
    config = uvicorn.Config(
        app, host, port, log_level="warning", access_log=False, server_header=False, date_header=False, ws="none",
        proxy_headers=False, limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=QUIET_SECONDS,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES, timeout_graceful_shutdown=2, http=Protocol,
    )  # fmt: skip
    return Server(config)
