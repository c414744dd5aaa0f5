"""The HTTP face: health and metrics for machines, state and events as JSON, the live page for people."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import re
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent.config.schema import HttpConfig
from agent.errors import ConfigError, ConfigProblem, DataError, RecognizerError
from agent.http.listen import Limits, listen
from agent.http.openapi import document

_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STARTED = web.RequestKey("started", float)
MODES = ("full", "skeleton", "minimal", "debug", "raw")
MAX_EVENTS = 1000
_FILTERS = frozenset({"limit", "since", "until", "kind", "camera"})
_LIMITS = Limits()
_PAGE = {
    "": ("index.html", "text/html"),
    "live.css": ("live.css", "text/css"),
    "live.js": ("live.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "recognizer-agent",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A request line may name any method; only these become metric labels."""
_HINTS = {
    errno.EADDRINUSE: "another program uses it; choose another port or http.enabled: false",
    errno.EACCES: "ports below 1024 need a privilege; choose a higher one",
}


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether it tells of more than a request that is none: that is its sender's fault, who gets an answer."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


_protocol_log = logging.getLogger("agent.http.protocol")
_protocol_log.addFilter(_is_ours)


def own_names() -> frozenset[str]:
    """Under which this machine may be asked for in any network."""
    name = socket.gethostname().lower()
    return frozenset({"localhost", name, f"{name}.local"})


def is_known_host(host: str, names: Collection[str]) -> bool:
    """Whether the header `Host` holds an IP address, or one of `names`, whatever the port.

    A page that lets its own name lead here (DNS rebinding) cannot ask by address: it would be another origin then.
    """
    name = re.sub(r":\d*$", "", host).lower().removesuffix(".")
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name in {known.lower() for known in names}
    return True


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Query of `/api/v1/events`, unchecked beyond its types. Times are ISO 8601 text, empty = open."""

    limit: int
    since: str
    until: str
    kind: str
    camera: str


class AgentView(Protocol):
    """What the pages show. All on the loop."""

    def health(self) -> dict[str, Any]:
        """`level` and `reasons`, as in the MQTT `health` topic."""
        ...

    def ready(self) -> bool: ...

    def state(self) -> dict[str, Any]: ...

    def metrics(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        ...

    def camera_ids(self) -> list[str]: ...

    async def events(self, query: EventFilter) -> list[dict[str, Any]]:
        """Newest first. Raises DataError for a time that is none."""
        ...

    async def picture(self, camera_id: str, mode: str) -> bytes | None: ...

    def pictures(self, camera_id: str, mode: str) -> AsyncGenerator[bytes, None]: ...

    def request_done(self, method: str, route: str, status: int, seconds: float) -> None:
        """The head of an answer is about to be sent; seconds: since the request."""
        ...

    def session(self, change: int) -> None:
        """A live stream began (+1) or ended (-1)."""
        ...


class HttpServer:
    """Serves until cancelled. `port` is known once `started` is set."""

    def __init__(self, config: HttpConfig, view: AgentView, *, limits: Limits = _LIMITS) -> None:
        self._config = config
        self._view = view
        self._limits = limits
        self._own_names = own_names()
        self._viewers = 0
        self.port = 0
        self.started = asyncio.Event()

    async def run(self) -> None:
        """Raises ConfigError when the address cannot be had (port in use, not permitted)."""
        runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=1.0, handler_cancellation=True,
            keepalive_timeout=self._limits.idle_s, logger=_protocol_log,
        )  # fmt: skip
        await runner.setup()
        server: asyncio.Server | None = None
        try:
            server = await listen(runner, self._config.host, self._config.port, self._limits)
            self.port = int(server.sockets[0].getsockname()[1])
            _log.info("http_listening", host=self._config.host, port=self.port)
            self.started.set()
            await asyncio.Event().wait()
        except OSError as error:
            where = f"{self._config.host}:{self._config.port}"
            problem = ConfigProblem(
                f"cannot listen on {where}: {error.strerror or error}", path="http.port",
                hint=_HINTS.get(error.errno or 0, "http.host must be an address of this machine"),
            )  # fmt: skip
            raise ConfigError([problem]) from error
        finally:
            self.started.clear()
            if server is not None:
                server.close()
            await runner.cleanup()

    def reconfigure(self, config: HttpConfig) -> None:
        """Apply the keys that may change while running."""
        self._config = config

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._translate_errors], client_max_size=1 << 16)
        app.on_response_prepare.append(self._before_answer)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/api/v1/openapi.json", self._openapi)
        app.router.add_get("/api/v1/state", self._state)
        app.router.add_get("/api/v1/events", self._events)
        app.router.add_get("/api/v1/cameras/{camera}/snapshot.jpg", self._snapshot)
        app.router.add_get("/api/v1/cameras/{camera}/live.mjpg", self._live)
        for path in _PAGE:
            app.router.add_get(f"/{path}", self._page)
        return app

    @web.middleware
    async def _translate_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[_STARTED] = time.perf_counter()
        host = request.headers.get("Host")
        if host is not None and not is_known_host(host, self._own_names | {self._config.host, *self._config.hosts}):
            hint = "if that is a name of this agent, add it to http.hosts in its configuration"
            return web.json_response({"error": f"nothing is served here as {host[:100]!r}; {hint}"}, status=421)
        try:
            return await handler(request)
        except web.HTTPException as error:
            allow = {name: value for name, value in error.headers.items() if name == "Allow"}
            return web.json_response({"error": error.reason}, status=error.status, headers=allow)
        except DataError as error:
            return web.json_response({"error": str(error)}, status=400)
        except RecognizerError as error:
            return web.json_response({"error": str(error)}, status=503)

    async def _before_answer(self, request: web.Request, response: web.StreamResponse) -> None:
        """Every answer passes here, a stream when it begins: its hours of length are no response time."""
        response.headers.update(_HEADERS)
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unmatched"
        method = request.method if request.method in _METHODS else "other"
        now_s = time.perf_counter()
        seconds = now_s - request.get(_STARTED, now_s)  # none: it got as far as no handler
        self._view.request_done(method, route, response.status, seconds)

    # --- machines -----------------------------------------------------------------------------------------------------

    async def _health(self, _: web.Request) -> web.Response:
        health = self._view.health()
        return web.json_response(health, status=503 if health["level"] == "failed" else 200)

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self._view.ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        body, content_type = self._view.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.json_response(document())

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response(self._view.state())

    async def _events(self, request: web.Request) -> web.Response:
        query = request.query
        if unknown := sorted(query.keys() - _FILTERS):
            raise DataError(f"unknown parameters: {', '.join(unknown)[:200]} (known: {', '.join(sorted(_FILTERS))})")
        try:
            limit = int(query.get("limit", "100"))
        except ValueError:
            raise web.HTTPBadRequest(reason="limit must be a whole number") from None
        if not 1 <= limit <= MAX_EVENTS:
            raise web.HTTPBadRequest(reason=f"limit must be 1 to {MAX_EVENTS}")
        texts = {name: query.get(name, "") for name in ("since", "until", "kind", "camera")}
        return web.json_response({"events": await self._view.events(EventFilter(limit=limit, **texts))})

    # --- people -------------------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.Response:
        name, content_type = _PAGE[request.path.lstrip("/")]
        text = files("agent.http").joinpath("static", name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=content_type)

    async def _snapshot(self, request: web.Request) -> web.Response:
        camera, mode = self._camera_and_mode(request)
        picture = await self._view.picture(camera, mode)
        if picture is None:
            raise web.HTTPNotFound(reason=f"camera {camera} has delivered no picture yet")
        return web.Response(body=picture, content_type="image/jpeg")

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """MJPEG: every browser plays it in an <img>."""
        camera, mode = self._camera_and_mode(request)
        if self._viewers >= self._limits.viewers:
            raise web.HTTPServiceUnavailable(
                reason=f"{self._viewers} live streams are being watched, no more are served"
            )
        response = web.StreamResponse(headers={"Content-Type": "multipart/x-mixed-replace; boundary=frame"})
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        self._viewers += 1
        self._view.session(+1)
        try:
            await response.prepare(request)
            await response.write(b"--frame\r\n")
            async with aclosing(self._view.pictures(camera, mode)) as pictures:
                async for picture in pictures:
                    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    # The boundary right after the picture: browsers show a part once the next one begins.
                    await response.write(head.encode() + picture + b"\r\n--frame\r\n")
        except ConnectionError:
            pass  # the viewer left
        finally:
            self._viewers -= 1
            self._view.session(-1)
        return response

    def _camera_and_mode(self, request: web.Request) -> tuple[str, str]:
        camera, mode = request.match_info["camera"], request.query.get("mode", "full")
        if camera not in self._view.camera_ids():
            raise web.HTTPNotFound(reason="there is no such camera")  # its name may hold anything, reasons may not
        if mode not in MODES:
            raise web.HTTPBadRequest(reason=f"mode must be one of {', '.join(MODES)}")
        return camera, mode


def describe(state: Mapping[str, Any]) -> str:
    """One line for `systemctl status`."""
    cameras = state.get("cameras", [])
    streaming = sum(camera["state"] == "streaming" for camera in cameras)
    return f"{state['health']['level']}; {streaming} of {len(cameras)} cameras streaming"
