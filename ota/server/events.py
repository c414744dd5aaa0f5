"""The event feed as server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from ota.server.auth import allowed
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
        await _send(response, found)
    return response


async def _send(response: web.StreamResponse, found: AsyncGenerator[Event, None]) -> None:
    following = asyncio.ensure_future(anext(found))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=PING_S)
            if not done:
                await response.write(b": still here\n\n")
                continue
            await response.write(encode(following.result()))
            following = asyncio.ensure_future(anext(found))
    except (ConnectionError, StopAsyncIteration):
        pass  # the listener left, or the server stops
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def encode(event: Event) -> bytes:
    told = {"kind": event.kind, "subject": event.subject, "at": moment(event.at_ms), **event.fields}
    data = json.dumps(told, ensure_ascii=False)
    head = f"id: {event.id}\n" if event.id else ""
    return f"{head}event: {event.kind}\ndata: {data}\n\n".encode()
