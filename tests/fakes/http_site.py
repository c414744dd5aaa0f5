"""A real HTTP server over a view of plain values, and a client for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import cv2
import numpy as np

from agent.config.schema import HttpConfig
from agent.http.listen import Limits
from agent.http.server import EventFilter, HttpServer

_LIMITS = Limits(idle_s=60.0)
JPEG = bytes(cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1])


class PlainView:
    """An AgentView of plain values; notes what the server tells it."""

    def __init__(self) -> None:
        self.level = "ok"
        self.is_ready = True
        self.fault: Exception | None = None
        self.queries: list[EventFilter] = []
        self.requests: list[tuple[str, str, int]] = []
        self.sessions = 0
        self.streams = 0
        self.slowest_s = 0.0
        self.jpeg = JPEG

    def health(self) -> dict[str, Any]:
        return {"level": self.level, "reasons": []}

    def ready(self) -> bool:
        return self.is_ready

    def state(self) -> dict[str, Any]:
        return {"device": "<script>alert(1)</script>"}

    def metrics(self) -> tuple[bytes, str]:
        return b"up 1\n", "text/plain; version=0.0.4"

    def camera_ids(self) -> list[str]:
        return ["cam", "dark"]

    async def events(self, query: EventFilter) -> list[dict[str, Any]]:
        self.queries.append(query)
        if self.fault is not None:
            raise self.fault
        return [{"id": "e1"}]

    async def picture(self, camera_id: str, mode: str) -> bytes | None:
        return self.jpeg if camera_id == "cam" else None

    async def pictures(self, camera_id: str, mode: str) -> AsyncGenerator[bytes, None]:
        self.streams += 1
        try:
            while True:
                if camera_id == "cam":
                    yield self.jpeg
                await asyncio.sleep(0.01)
        finally:
            self.streams -= 1

    def request_done(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests.append((method, route, status))
        self.slowest_s = max(self.slowest_s, seconds)

    def session(self, change: int) -> None:
        self.sessions += change


class Site:
    """A running server and a client for it."""

    def __init__(self, client: aiohttp.ClientSession, view: PlainView, server: HttpServer) -> None:
        self.client = client
        self.view = view
        self.server = server
        self.port = server.port

    async def get(self, path: str, method: str = "GET") -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, body (decoded where it is JSON) and response."""
        async with self.client.request(method, path) as response:
            body = await response.read()
            is_json = body and response.content_type == "application/json"
            return response.status, json.loads(body) if is_json else body, response


@asynccontextmanager
async def serving(view: PlainView, *, limits: Limits = _LIMITS, **settings: Any) -> AsyncIterator[Site]:
    """settings: of the section `http`."""
    server = HttpServer(HttpConfig(port=0, **settings), view, limits=limits)
    task = asyncio.create_task(server.run())
    try:
        await asyncio.wait_for(server.started.wait(), 10)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
            yield Site(client, view, server)
    finally:
        task.cancel()
        await asyncio.wait([task])
