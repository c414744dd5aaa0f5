"""Clients that send or take a byte now and then: none holds a connection for ever, and the slow but honest one gets its file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from fakes import fleet_store
from fakes.authority import SERVER, Authority
from fakes.fleet_server import FleetServer, Repository, fleet_server
from sqlalchemy import Connection
from structlog.testing import capture_logs

from ota.server import events, readers, run

ESTABLISHED = 1
LISTENERS = 1
"""To the feed: the server's own."""
CONTENT = bytes(range(256)) * 4096


@asynccontextmanager
async def asking(
    fleet: FleetServer, path: str, headers: dict[str, str], *, buffer_bytes: int = 4096
) -> AsyncIterator[socket.socket]:
    """A request by somebody whose kernel takes next to nothing, or `buffer_bytes`, on its own."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", fleet.port))
        lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
        await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode())
        yield sock


def is_connected(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


async def read(sock: socket.socket, size: int, pause_s: float) -> int:
    """How many bytes came, `size` at a time, before the other side ended the connection."""
    loop, have = asyncio.get_running_loop(), 0
    with suppress(ConnectionError):
        while piece := await loop.sock_recv(sock, size):
            have += len(piece)
            await asyncio.sleep(pause_s)
    return have


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 KiB in half a second."""
    monkeypatch.setattr(readers, "SLOW_S", 0.5)
    monkeypatch.setattr(readers, "SLOW_BYTES", 1 << 14)
    monkeypatch.setattr(readers, "LOOK_EVERY_S", 0.05)


def put(fleet: FleetServer, content: bytes) -> str:
    """A file that anybody may fetch."""
    assert fleet.repository is not None
    folder = fleet.repository.folder / "targets"
    folder.mkdir(exist_ok=True)
    (folder / "big").write_bytes(content)
    return "/repository/targets/big"


def many(connection: Connection) -> None:
    fleet_store.add_devices(connection, [f"box-{n:03}" for n in range(300)], attributes={"note": "x" * 1000})


@pytest.mark.parametrize("what", ["file", "list", "feed"])
async def test_who_takes_a_byte_now_and_then_is_let_go(
    quick: None, fleet: FleetServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(events, "PING_S", 1.0)
    await fleet.services.store.write(many)
    path = {"file": put(fleet, CONTENT * 8), "list": "/api/v1/devices?limit=1000", "feed": "/api/v1/events"}[what]
    async with asyncio.timeout(20), asking(fleet, path, {"Authorization": f"Bearer {fleet.admin}"}) as sock:
        while what == "feed" and fleet.services.feed.listeners == LISTENERS:
            await asyncio.sleep(0.01)
        for n in range(1000):
            fleet.services.feed.tell("device", f"box-{n}", note="x" * 1000)
        reading = asyncio.create_task(read(sock, 1, 0.02))
        while is_connected(sock):
            await asyncio.sleep(0.05)
        while fleet.services.feed.listeners > LISTENERS:
            await asyncio.sleep(0.05)
        reading.cancel()
    assert (await fleet.ask("GET", "/health")).status == 200
    assert not [record for record in caplog.records if record.exc_info]


async def test_over_tls_who_takes_nothing_is_let_go_as_well(quick: None, tmp_path: Path) -> None:
    own = Authority(tmp_path / "own")
    pair = own.issue("server", names=("localhost",), usage=SERVER)
    site = Repository(tmp_path / "repository")
    async with fleet_server(tmp_path, repository=site, tls={"cert": pair.cert, "key": pair.key}) as fleet:
        path = put(fleet, CONTENT * 8)
        sock = socket.create_connection(("127.0.0.1", fleet.port))
        _, writer = await asyncio.open_connection(
            sock=sock, ssl=ssl.create_default_context(cafile=own.ca), server_hostname="localhost", limit=4096
        )
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with asyncio.timeout(20):
            while is_connected(sock):
                await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.2)  # it looks a few times more
        assert not [task for task in fleet.services.tasks if task.get_name() == "fleet-readers" and task.done()]


async def test_a_file_that_becomes_shorter_breaks_the_connection_off(
    fleet: FleetServer, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(fleet, CONTENT * 8)
    assert fleet.repository is not None
    with capture_logs() as logs:
        async with asyncio.timeout(20), asking(fleet, path, {}) as sock:
            assert await asyncio.get_running_loop().sock_recv(sock, 1)
            os.truncate(fleet.repository.folder / "targets" / "big", 0)
            assert await read(sock, 1 << 16, 0) < len(CONTENT) * 8
    assert [log["event"] for log in logs] == ["fleet_file_became_shorter"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_slow_but_steady_reader_gets_all_of_its_file(quick: None, fleet: FleetServer) -> None:
    """Ten times as fast as is asked for."""
    size = 3_500_000
    path = put(fleet, (CONTENT * 4)[:size])
    async with (
        asyncio.timeout(60),
        asking(fleet, path, {"Connection": "close"}, buffer_bytes=1 << 16) as sock,
    ):
        assert await read(sock, 10_000, 0.02) > size


async def test_a_reader_with_pauses_shorter_than_the_limit_gets_its_feed(quick: None, fleet: FleetServer) -> None:
    """Who has taken all that there was is not slow, however long nothing comes."""
    headers = {"Authorization": f"Bearer {fleet.admin}"}
    async with asyncio.timeout(20), asking(fleet, "/api/v1/events", headers) as sock:
        for n in range(3):
            while fleet.services.feed.listeners == LISTENERS:
                await asyncio.sleep(0.01)
            fleet.services.feed.tell("device", f"box-{n}")
            told = b""
            while f"box-{n}".encode() not in told:
                piece = await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
                assert piece
                told += piece
            await asyncio.sleep(0.8)
        assert is_connected(sock)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_head_that_comes_byte_by_byte_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """On a new connection, and on one that has had an answer."""
    monkeypatch.setattr(run, "_IDLE_S", 0.5)
    async with fleet_server(tmp_path) as fleet, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        writer.write(sent + b"GET /health HTTP/1.1\r\nX: ")
        came = bytearray()

        async def read() -> None:
            with contextlib.suppress(ConnectionResetError):  # a byte that meets the closed connection
                while piece := await reader.read(1 << 16):
                    came.extend(piece)

        ended = asyncio.create_task(read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.05)
        assert came.count(b"200 OK") == bool(sent)
        writer.close()
