"""The asyncio side of evidence: a bounded queue in front of the disk, retention, counters."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from agent.config.schema import EvidenceConfig
from agent.events.evidence import Clip
from agent.events.evidence_files import WriteResult, write_clip
from agent.events.retention import Pruned, lacking_bytes, prune, remove_leftovers, shift
from agent.memory import trim

PRUNE_EVERY_S = 3600.0
"""Retention runs this often when nothing is written: a quiet camera's evidence grows old all the same."""
JUMP_S = 3600.0
BELIEVED_AFTER_S = 86400.0
"""A wall clock that has jumped by more than `JUMP_S`, or that starts, may be wrong where that takes it back, or beyond the age limit
since it was last believed: nothing goes for its age until it has gone on from there for this long."""
DOUBTED = ".doubted"
"""Its modification time is when the clock began to be doubted: a box that is switched off daily is never on for so long."""


@dataclass(frozen=True, slots=True)
class EvidenceStats:
    """Counters since the start, and the state of the folder after the latest pruning.

    written: incidents on disk; failed: incidents that could not be written; incomplete: written without some part;
    dropped: the queue was full; pruned: removed by retention; errors of any kind leave their text in `last_error`.
    """

    written: int = 0
    failed: int = 0
    incomplete: int = 0
    dropped: int = 0
    pruned: int = 0
    stored: int = 0
    stored_bytes: int = 0
    last_error: str = ""


class EvidenceWriter:
    """Writes clips one after another on a thread, so that nothing upstream waits for the disk.

    root: `<state_dir>/evidence`; max_queued: clips that may wait (each holds its pictures in memory).
    """

    def __init__(
        self,
        root: Path,
        config: EvidenceConfig,
        *,
        max_queued: int = 8,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        prune_every_s: float = PRUNE_EVERY_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._config = config
        self._utc_now = utc_now
        self._prune_every_s = prune_every_s
        self._monotonic_s = monotonic_s
        self._offset_s: float | None = None  # of the wall clock from the monotonic one
        self._doubtful = False
        self._doubted_s: float | None = None  # where the wall clock began to be doubted, now or in a life before
        self._believed_s: float | None = None  # the last time of the wall clock that was not doubted
        self._queue: asyncio.Queue[Clip] = asyncio.Queue(max_queued)
        self._stats = EvidenceStats()

    @property
    def stats(self) -> EvidenceStats:
        """A snapshot of the counters."""
        return self._stats

    def update_config(self, config: EvidenceConfig) -> None:
        """New limits apply after the next write, within `PRUNE_EVERY_S` at the latest."""
        self._config = config

    def submit(self, clip: Clip) -> bool:
        """Queue `clip`; False (and counted) when the queue is full. Never waits."""
        try:
            self._queue.put_nowait(clip)
        except asyncio.QueueFull:
            self._stats = replace(self._stats, dropped=self._stats.dropped + 1, last_error="evidence queue full")
            return False
        return True

    async def run(self) -> None:
        """The writer's task, until cancelled. A write in progress is then finished by its thread or leaves no trace.

        One thread for all: each thread that has encoded keeps some of the memory it took.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evidence-files")
        on_thread = functools.partial(asyncio.get_running_loop().run_in_executor, thread)
        try:
            await on_thread(self._begin)
            self._count_pruned(await on_thread(self._prune))
            while True:
                try:
                    async with asyncio.timeout(self._prune_every_s):
                        clip = await self._queue.get()
                except TimeoutError:
                    self._count_pruned(await on_thread(self._prune))
                    continue
                try:
                    result = await on_thread(self._write, clip)
                    if result.full:
                        pruned = await on_thread(self._prune, _size_bytes(clip))
                        self._count_pruned(pruned)
                        if pruned.removed:
                            result = await on_thread(self._write, clip, result.folder)
                    self._count_written(result)
                    self._count_pruned(await on_thread(self._prune))
                finally:
                    self._queue.task_done()
        finally:
            thread.shutdown(wait=False)

    async def drain(self) -> None:
        """Wait until everything queued is written; the caller sets the time limit."""
        await self._queue.join()

    def _begin(self) -> None:
        with contextlib.suppress(OSError):
            self._believed_s = self._root.stat().st_mtime
            self._doubted_s = (self._root / DOUBTED).stat().st_mtime
        remove_leftovers(self._root)

    def _write(self, clip: Clip, incomplete: Path | None = None) -> WriteResult:
        """incomplete: what an attempt before has left."""
        if incomplete is not None:
            shutil.rmtree(incomplete, ignore_errors=True)
        result = write_clip(self._root, clip)
        trim()  # the encoder took tens of megabytes
        return result

    def _prune(self, room_bytes: int = 0) -> Pruned:
        """room_bytes: what is about to be written and found none."""
        config = self._config
        now_s, max_age_s = self._utc_now().timestamp(), config.max_age_days * 86400
        if self._doubts_clock(now_s, max_age_s):
            max_age_s = math.inf
        else:
            self._believed_s = now_s
        room_bytes = max(room_bytes, lacking_bytes(self._root))
        pruned = prune(self._root, max_age_s=max_age_s, max_bytes=config.max_bytes, now_s=now_s, room_bytes=room_bytes)
        with contextlib.suppress(OSError):  # where the next start finds it
            if self._doubted_s is None:
                (self._root / DOUBTED).unlink(missing_ok=True)
            else:
                (self._root / DOUBTED).touch()
                os.utime(self._root / DOUBTED, (self._doubted_s,) * 2)
        with contextlib.suppress(OSError):
            if self._believed_s is not None:
                os.utime(self._root, (self._believed_s,) * 2)
        return pruned

    def _doubts_clock(self, now_s: float, max_age_s: float) -> bool:
        monotonic_s = self._monotonic_s()
        before_s, self._offset_s = self._offset_s, now_s - monotonic_s
        by_s = 0.0 if before_s is None else self._offset_s - before_s
        if abs(by_s) > JUMP_S:
            shift(self._root, by_s=by_s, now_s=now_s - by_s)
        if before_s is None or abs(by_s) > JUMP_S:
            self._doubtful = self._believed_s is not None and not _follows(now_s, self._believed_s, max_age_s)
        since_s = self._doubted_s
        if since_s is None or not _follows(now_s, since_s, max_age_s + BELIEVED_AFTER_S):
            since_s = now_s
        if now_s - since_s >= BELIEVED_AFTER_S:
            self._doubtful = False
        # What a life before has doubted outlasts the start: a clock without a battery is put right a moment later.
        if before_s is not None or self._doubted_s is None:
            self._doubted_s = since_s if self._doubtful else None
        return self._doubtful

    def _count_written(self, result: WriteResult) -> None:
        stats = self._stats
        if result.folder is None:
            stats = replace(stats, failed=stats.failed + 1)
        else:
            stats = replace(stats, written=stats.written + 1, incomplete=stats.incomplete + bool(result.errors))
        self._stats = replace(stats, last_error="; ".join(result.errors) or stats.last_error)

    def _count_pruned(self, pruned: Pruned) -> None:
        self._stats = replace(
            self._stats,
            pruned=self._stats.pruned + len(pruned.removed),
            stored=pruned.kept,
            stored_bytes=pruned.kept_bytes,
            last_error="; ".join(pruned.errors) or self._stats.last_error,
        )


def _follows(now_s: float, then_s: float, within_s: float) -> bool:
    """Whether a clock may have gone on from `then_s` to `now_s`."""
    return -JUMP_S <= now_s - then_s <= within_s


def _size_bytes(clip: Clip) -> int:
    """About what it needs on disk, at least one byte: its pictures take more than the video made of them."""
    return 1 + sum(len(frame.jpeg) for frame in clip.frames)
