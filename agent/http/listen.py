"""The listening socket, and what bounds those who connect to it: how many they are, and how long they may leave unread what is sent."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from aiohttp import web

_SEND_BUFFER_BYTES = 256 << 10
"""Of one connection: the kernel's own limit is megabytes, which viewers who do not read would fill."""
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\nRetry-After: 10\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """idle_s: how long a connection may ask for nothing, longer than reverse proxies keep theirs; unread_s: how long it may take nothing
    of what is sent. connections, viewers: most at once, and of live streams among them."""

    idle_s: float = 75.0
    unread_s: float = 30.0
    connections: int = 256
    viewers: int = 32


class _Refused(asyncio.Protocol):
    """A connection too many: told so and closed, before it has cost anything."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - of a stream
        transport.write(_FULL)
        transport.close()


async def listen(runner: web.AppRunner, host: str, port: int, limits: Limits) -> asyncio.Server:
    """As `web.TCPSite`, within `limits`; the caller closes it. Raises OSError."""
    serve = runner.server
    assert serve is not None  # noqa: S101 - it has been set up

    def connection() -> asyncio.Protocol:
        return serve() if len(serve.connections) < limits.connections else _Refused()

    server = await asyncio.get_running_loop().create_server(connection, host, port, backlog=128, start_serving=False)
    for listening in server.sockets:  # those that are accepted inherit both
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * limits.unread_s))
    await server.start_serving()
    return server
