"""The application: its parts, what goes around every request, and what runs beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import ModuleType

import structlog
from aiohttp import web

from agent.errors import DataError, RecognizerError
from ota.server import (
    artifacts,
    catalogue,
    ddi,
    events,
    health,
    management_devices,
    management_releases,
    management_rollouts,
    management_users,
    openapi,
    pages,
)
from ota.server.auth import authorise
from ota.server.bodies import MAX_BODY
from ota.server.services import SERVICES, Services
from ota.store.errors import ClosedError, ConflictError, LimitError, MissingError

_log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
STARTED = web.RequestKey("started", float)
PARTS: tuple[ModuleType, ...] = (
    ddi, artifacts, catalogue, management_devices, management_releases, management_rollouts,
    management_users, events, health, openapi, pages,
)  # fmt: skip
"""Each has `routes` or `add_routes(app)`; one with `async def run(services)` has that running beside the requests."""
_STATUS: dict[type[RecognizerError], int] = {
    MissingError: 404, ConflictError: 409, ClosedError: 410, LimitError: 403, DataError: 400,
}  # fmt: skip
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_KEPT_HEADERS = ("Allow", "Retry-After", "WWW-Authenticate")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(services: Services, parts: tuple[ModuleType, ...] = PARTS) -> web.Application:
    """The application over an open store."""
    app = web.Application(middlewares=[_translate_errors, authorise], client_max_size=MAX_BODY)
    app[SERVICES] = services
    app.on_response_prepare.append(_before_answer)
    for part in parts:
        if hasattr(part, "routes"):
            app.add_routes(part.routes)
        if hasattr(part, "add_routes"):
            part.add_routes(app)
    app.on_shutdown.append(_end_feeds)
    app.cleanup_ctx.append(_beside(parts))
    return app


async def _end_feeds(app: web.Application) -> None:
    app[SERVICES].feed.close()


def _beside(parts: tuple[ModuleType, ...]) -> Callable[[web.Application], AsyncGenerator[None, None]]:
    async def beside(app: web.Application) -> AsyncGenerator[None, None]:
        services = app[SERVICES]
        runs = {part.__name__.rpartition(".")[2]: part.run for part in parts if hasattr(part, "run")}
        tasks = [asyncio.create_task(run(services), name=f"fleet-{name}") for name, run in runs.items()]
        tasks.append(asyncio.create_task(services.heard.run(), name="fleet-heard"))
        tasks.append(asyncio.create_task(services.readers.run(), name="fleet-readers"))
        services.tasks = tuple(tasks)
        yield
        for task in tasks:
            task.cancel()
        for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            if isinstance(result, Exception):
                _log.error("fleet_task_failed", task=task.get_name(), exc_info=result)

    return beside


@web.middleware
async def _translate_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[STARTED] = time.perf_counter()
    try:
        if "%00" in request.raw_path:  # no name holds it, and PostgreSQL would choke on it
            raise web.HTTPBadRequest(reason="the address holds the character U+0000")
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
        return web.json_response({"error": error.reason}, status=error.status, headers=kept)
    except DataError as error:
        status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
        return web.json_response({"error": str(error)}, status=status)
    except RecognizerError as error:
        _log.error("request_failed", path=request.path, error=str(error))
        return web.json_response({"error": "not possible at the moment"}, status=503, headers={"Retry-After": "10"})


async def _before_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer passes here; a part may have set a header of these itself."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "recognizer-fleet"
    request.app[SERVICES].readers.note(request)
    if request.path.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "no-store")
    started = request.get(STARTED)
    if started is None:
        return
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unmatched"
    method = request.method if request.method in _METHODS else "other"
    figure = request.app[SERVICES].metrics.requests.labels(method, route, response.status)
    figure.observe(time.perf_counter() - started)
