"""sd_notify over real datagram sockets, and through systemd-notify's own parsing where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.sdnotify import Notifier, patience


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The service manager's end of the socket, and the value of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        if request.param == "path":
            name = str(tmp_path / "notify")
            server.bind(name)
        else:
            name = "@recognizer-test-" + secrets.token_hex(8)
            server.bind("\0" + name[1:])
        server.settimeout(5)
        yield server, name


def test_messages_arrive_as_systemd_expects_them(manager: tuple[socket.socket, str]) -> None:
    server, name = manager
    notifier = Notifier(name, monotonic_ns=lambda: 1_234_567_890)
    sent = [
        notifier.ready("2 cameras"),
        notifier.status("step 1\nFDSTORE=1"),
        notifier.watchdog(),
        notifier.reloading(),
        notifier.stopping("drain"),
        notifier.extend_timeout(2.5),
    ]
    got = [server.recv(4096).decode() for _ in sent]
    notifier.close()
    assert all(sent)
    assert got == [
        "READY=1\nSTATUS=2 cameras",
        "STATUS=step 1 FDSTORE=1",
        "WATCHDOG=1",
        "RELOADING=1\nMONOTONIC_USEC=1234567",
        "STOPPING=1\nSTATUS=drain",
        "EXTEND_TIMEOUT_USEC=2500000",
    ]


async def test_a_long_start_asks_for_more_time_and_not_for_ever(manager: tuple[socket.socket, str]) -> None:
    server, name = manager
    server.setblocking(False)
    notifier = Notifier(name)

    def asked() -> int:
        count = 0
        with contextlib.suppress(BlockingIOError):
            while server.recv(4096) == b"EXTEND_TIMEOUT_USEC=40000":
                count += 1
        return count

    with patience(notifier, most_s=0.1, step_s=0.02):
        await asyncio.sleep(0.3)
    assert 2 <= asked() <= 6
    with patience(notifier, most_s=10, step_s=0.02):
        await asyncio.sleep(0)
    asked()
    await asyncio.sleep(0.1)
    assert asked() == 0
    notifier.close()


def test_without_a_socket_nothing_happens() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "30000000"})
    assert not notifier.enabled
    assert notifier.feed_interval_s is None
    assert notifier.ready() is False


def test_watchdog_interval_is_a_third_of_the_timeout() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(environ).feed_interval_s == pytest.approx(10)


@pytest.mark.parametrize(
    "extra", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}]
)
def test_watchdog_is_off_when_it_is_not_meant_for_us(extra: dict[str, str]) -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", **extra}
    assert Notifier.from_environment(environ).watchdog_s is None


def test_a_manager_that_went_away_is_no_error(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    assert notifier.watchdog() is False
    notifier.close()


def test_a_full_queue_does_not_block(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        notifier = Notifier(path)
        assert not all(notifier.watchdog() for _ in range(100_000))
        notifier.close()


def test_a_vsock_address_is_left_alone() -> None:
    assert not Notifier("vsock:2:1234").enabled
