"""Who takes an answer: one that hardly reads is let go, or it would hold its connection, and a file or a feed, for ever.

Requests need no such watch: their heads are bounded by the idle time of a connection, their bodies by `bodies.BODY_TIMEOUT_S`.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

_log = structlog.get_logger(__name__)
SLOW_S = 300.0
SLOW_BYTES = 1 << 17
"""Of what waits for a reader so much, or all if it is less, has to be taken in `SLOW_S`. A rate below that at which the agent's own
downloads give up, over long enough for one with a low `update.max_bytes_per_s`: it reads half a megabyte, and pauses."""
LOOK_EVERY_S = 5.0


@dataclass(slots=True)
class _Answer:
    """written, taken: bytes at the last mark, which was set at `at_s`; owed: bytes to be taken from there on, 0 = nothing waits."""

    writer: AbstractStreamWriter
    address: str
    at_s: float = 0.0
    written: int = -1
    taken: int = 0
    owed: int = 0


class Readers:
    """The latest answer of each connection. clock_s: monotonic seconds."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._answers: dict[asyncio.Transport, _Answer] = {}

    def note(self, request: web.Request) -> None:
        """An answer begins."""
        if request.transport is not None:
            self._answers[request.transport] = _Answer(request.writer, request.remote or "")

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Lets go of those who were too slow since they were looked at before."""
        for transport, answer in list(self._answers.items()):
            if not answer.owed and answer.written == answer.writer.output_size and not transport.is_closing():
                continue
            waiting = _waiting(transport)
            if self._is_slow(answer, waiting):
                _log.info("fleet_reader_let_go", address=answer.address, waiting_bytes=waiting)
                _abort(transport)
                del self._answers[transport]
            elif transport.is_closing() and not waiting:
                del self._answers[transport]

    def _is_slow(self, answer: _Answer, waiting: int) -> bool:
        now_s, written = self._clock_s(), answer.writer.output_size
        taken = written - waiting
        if waiting and answer.owed and taken - answer.taken < answer.owed:
            return now_s - answer.at_s >= SLOW_S
        answer.at_s, answer.written, answer.taken, answer.owed = now_s, written, taken, min(waiting, SLOW_BYTES)
        return False


def _waiting(transport: asyncio.Transport) -> int:
    """Bytes that were written and that the other side has not acknowledged: here and in the kernel."""
    queued = 0
    if not transport.is_closing():  # afterwards the descriptor may be another's
        with suppress(OSError):
            found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            (queued,) = struct.unpack("i", found)
    try:
        return transport.get_write_buffer_size() + queued
    except AttributeError:  # asyncio's of TLS once it was closed for good
        return 0


def _abort(transport: asyncio.Transport) -> None:
    """With a reset: the kernel keeps nothing for who takes nothing."""
    if not transport.is_closing():
        with suppress(OSError):
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
