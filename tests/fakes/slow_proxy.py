"""A TCP proxy that is far away and has a thin line: delay and bytes per second in each direction."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

_CHUNK = 256
_WINDOW = 4096


class SlowProxy:
    """Listens at `port` of 127.0.0.1 and forwards to `target_port`; an async context manager.

    delay_s: of each byte; bytes_per_s: of each direction and connection. What does not fit waits at its sender.
    """

    def __init__(self, target_port: int, delay_s: float, bytes_per_s: float) -> None:
        self.port = 0
        self.connections = 0
        self._target_port = target_port
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_WINDOW)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port, limit=_WINDOW)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._forward(reader, far_writer))
                tasks.create_task(self._forward(far_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Bytes leave at the line's speed and arrive later by the delay."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def arrive() -> None:
            while True:
                due_s, data = await line.get()
                await asyncio.sleep(due_s - loop.time())
                if not data:
                    with contextlib.suppress(OSError):
                        writer.close()
                    return
                writer.write(data)
                await writer.drain()

        arriving = asyncio.create_task(arrive())
        try:
            while True:
                data = await reader.read(_CHUNK)
                await asyncio.sleep(len(data) / self._bytes_per_s)
                line.put_nowait((loop.time() + self._delay_s, data))
                if not data:
                    await arriving
                    return
        finally:
            arriving.cancel()
            writer.close()
