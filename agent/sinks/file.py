"""Alarms and events as lines of a file; the disk's waits are a thread's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.errors import TransientError
from agent.sinks.lines import LineFile
from agent.types import OutboxRecord

_BATCH_BYTES = 1_048_576


class FileSink:
    """Implements `EventSink`: one line for each event, its payload; one fsync for each batch.

    path, max_bytes, keep_files: see `LineFile`. A disk that is full or fails is a TransientError.
    """

    max_batch = 256

    def __init__(self, path: Path, *, max_bytes: int, keep_files: int) -> None:
        self._path = path
        self._batch_bytes = min(_BATCH_BYTES, max_bytes)
        self._file = LineFile(path, max_bytes=max_bytes, keep_files=keep_files)
        self._thread: ThreadPoolExecutor | None = None

    async def deliver(self, records: Sequence[OutboxRecord]) -> int:
        """As in `EventSink`."""
        lines: list[bytes] = []
        size = 0
        for record in records:
            line = b" ".join(record.payload.splitlines())  # line ends stand only between the tokens of JSON
            size += len(line) + 1
            if lines and size > self._batch_bytes:
                break
            lines.append(line)
        if self._thread is None:  # one thread, so that a write that was given up on ends before the next begins
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sink-file")
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._thread, self._file.append, lines, records[0].sequence or 0
            )
        except OSError as error:
            raise TransientError(f"{self._path}: {error.strerror or error}") from error
        return len(lines)

    async def close(self) -> None:
        """As in `EventSink`."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(self._file.close)
            thread.shutdown(wait=False)
