"""A receiver of webhooks that can misbehave, and a check of signatures that shares nothing with the agent's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def verify(headers: Mapping[str, str], body: bytes, secret: str, now_s: float, tolerance_s: float = 300.0) -> bool:
    """As standardwebhooks.com describes it, with HMAC written out as in RFC 2104."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    assert len(key) <= 64
    key = key.ljust(64, b"\0")
    moment = int(headers["webhook-timestamp"])
    if abs(now_s - moment) > tolerance_s:
        return False
    signed = headers["webhook-id"].encode() + b"." + str(moment).encode() + b"." + body
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + signed).digest()
    expected = base64.b64encode(hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()).decode()
    versions = [signature.split(",", 1) for signature in headers["webhook-signature"].split(" ")]
    return any(version == "v1" and value == expected for version, value in versions)


def code(status: int, **headers: str) -> Answer:
    """Answer with `status`; underscores in header names stand for hyphens."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, headers=named, text="a secret of the receiver")

    return answer


async def hang(_: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.sleep(3600)
    raise AssertionError


async def reset(request: web.Request) -> web.StreamResponse:
    """Cut the connection."""
    assert request.transport is not None
    request.transport.abort()
    await asyncio.sleep(0)
    return web.Response()


async def garbage(request: web.Request) -> web.StreamResponse:
    """Not HTTP."""
    assert request.transport is not None
    request.transport.write(b"\x16\x03\x01 whatever\r\n\r\n")  # type: ignore[attr-defined]
    request.transport.close()
    await asyncio.sleep(0.05)
    return web.Response()


async def slow_body(request: web.Request) -> web.StreamResponse:
    """Good at once, and then an endless trickle."""
    response = web.StreamResponse(status=200)
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b".")
            await asyncio.sleep(0.05)
    return response


async def slow_headers(request: web.Request) -> web.StreamResponse:
    """A header line every now and then, for ever."""
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\n")  # type: ignore[attr-defined]
    for number in range(1000):
        request.transport.write(f"X-{number}: x\r\n".encode())  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
    raise AssertionError


@dataclass(slots=True)
class Receiver:
    """An HTTP server: `answers` are used up one request each, then it takes everything.

    seen: headers and body of every request; taken: ids of those that it answered well; refused: ids that it will not have.
    """

    answers: deque[Answer] = field(default_factory=deque)
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    always: Answer | None = None
    tls: ssl.SSLContext | None = None
    port: int = 0
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; on the same port as before, if there was one."""
        application = web.Application(client_max_size=10_000_000)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close everything at once."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """Where to post; the path is as secret as some services make it."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/hook/T0KEN-in-the-path?key=K3Y"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(({name.lower(): value for name, value in request.headers.items()}, body))
        answer = self.answers.popleft() if self.answers else self.always
        if answer is not None:
            return await answer(request)
        if request.headers["webhook-id"] in self.refused:
            return web.Response(status=413)
        self.taken.append(request.headers["webhook-id"])
        return web.Response(status=204)


@contextlib.asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver that runs."""
    receiver = Receiver(tls=tls)
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()
