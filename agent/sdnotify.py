"""The sd_notify protocol: readiness, status and watchdog messages to systemd.

One datagram per message to the socket named by `NOTIFY_SOCKET`. Without it (not under systemd) every call does nothing.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

_log = structlog.get_logger(__name__)
_US_PER_S = 1_000_000


class Notifier:
    """Sends notifications. Each method returns whether the message left; a lost one is never an error.

    socket_path: as in `NOTIFY_SOCKET`: an absolute path, or `@name` for the abstract name space; empty = do nothing.
    watchdog_s: the service manager's watchdog time-out, None when it is off.
    """

    def __init__(
        self,
        socket_path: str = "",
        watchdog_s: float | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if socket_path and socket_path[0] not in "/@":
            _log.warning("notify_socket_unsupported", socket=socket_path)
            socket_path = ""
        self._address = "\0" + socket_path[1:] if socket_path.startswith("@") else socket_path
        self._monotonic_ns = monotonic_ns
        self._socket: socket.socket | None = None
        self.watchdog_s = watchdog_s if socket_path else None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` of the process."""
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        meant_for_us = not pid or pid == str(os.getpid())
        watchdog_s = int(usec) / _US_PER_S if usec.isdecimal() and int(usec) > 0 and meant_for_us else None
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_s)

    @property
    def enabled(self) -> bool:
        """True under a service manager that listens."""
        return bool(self._address)

    @property
    def feed_interval_s(self) -> float | None:
        """How often to call `watchdog`: a third of the time-out, so that one late feed is forgiven. None = off."""
        return None if self.watchdog_s is None else self.watchdog_s / 3

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is complete."""
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(*_status(text))

    def watchdog(self) -> bool:
        """Still making progress."""
        return self._send("WATCHDOG=1")

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> bool:
        """The stop has begun."""
        return self._send("STOPPING=1", *_status(status))

    def extend_timeout(self, seconds: float) -> bool:
        """Starting or stopping needs at least `seconds` more from now (an engine build, a drain)."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * _US_PER_S)}")

    def close(self) -> None:
        """Release the socket; later messages open it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if not self._address:
            return False
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)  # a full queue must not stop the loop
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.debug("notify_lost", lines=lines, error=str(error))
            return False
        return True


@contextmanager
def patience(notifier: Notifier, *, most_s: float, step_s: float = 60.0) -> Iterator[None]:
    """While inside, the service manager's time-out does not end a start: a database of gigabytes is checked, or models load, on
    slow flash. After `most_s` it may again. An event loop that is stuck asks for nothing; to be entered on it.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + most_s
    again: asyncio.Handle

    def ask() -> None:
        nonlocal again
        if loop.time() < end_s:
            notifier.extend_timeout(2 * step_s)
            again = loop.call_later(step_s, ask)

    again = loop.call_soon(ask)
    try:
        yield
    finally:
        again.cancel()


def _status(text: str) -> tuple[str, ...]:
    line = " ".join(text.split())  # a line break would start another assignment
    return (f"STATUS={line}",) if line else ()
