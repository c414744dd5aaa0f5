"""The event feed as server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from agent.errors import StorageError
from ota.server.auth import allowed, user_of
from ota.server.feed import Event
from ota.server.management import moment
from ota.server.services import SERVICES
from ota.store.rows import Role

routes = web.RouteTableDef()
PING_S = 15.0
MAX_LISTENERS = 100


@routes.get("/api/v1/events")
@allowed(Role.VIEWER)
async def events(request: web.Request) -> web.StreamResponse:
    """From `Last-Event-ID` (or `?after=`) on. Event `reset`: some were missed, read everything again."""
    feed = request.app[SERVICES].feed
    if feed.listeners >= MAX_LISTENERS:
        raise web.HTTPServiceUnavailable(
            reason=f"there are {MAX_LISTENERS} event feeds already", headers={"Retry-After": "30"}
        )
    last = request.headers.get("Last-Event-ID", request.query.get("after", ""))
    last_id = int(last) if last.isascii() and last.isdecimal() and len(last) < 19 else None
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    async with aclosing(feed.listen(last_id)) as found:
        await response.prepare(request)
        await response.write(b"retry: 3000\n\n")
        await _send(request, response, found)
    return response


async def _send(request: web.Request, response: web.StreamResponse, found: AsyncGenerator[Event, None]) -> None:
    """Until the listener leaves, the server stops, or the token is worth nothing any more."""
    clock_s = asyncio.get_running_loop().time
    look_at_s = clock_s() + PING_S
    following = asyncio.ensure_future(anext(found))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=max(0.0, look_at_s - clock_s()))
            if clock_s() >= look_at_s:
                if await user_of(request) is None:
                    return
                look_at_s = clock_s() + PING_S
            if not done:
                await response.write(b": still here\n\n")
                continue
            await response.write(encode(following.result()))
            following = asyncio.ensure_future(anext(found))
    except (ConnectionError, StopAsyncIteration, StorageError):
        pass  # the listener left, the server stops, or nobody can say who listens: he comes again
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def encode(event: Event) -> bytes:
    told = {"kind": event.kind, "subject": event.subject, "at": moment(event.at_ms), **event.fields}
    data = json.dumps(told, ensure_ascii=False)
    head = f"id: {event.id}\n" if event.id else ""
    return f"{head}event: {event.kind}\ndata: {data}\n\n".encode()
