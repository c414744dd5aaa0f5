"""Frames from one decoder thread to one asyncio consumer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

from agent.types import Frame

_BATCH_WAIT_S = 0.01


class Handover:
    """A bounded queue with a thread at one end and a coroutine at the other.

    `put_newest` (live) keeps one frame and never waits; `put_all` (files) loses none and waits for room. Waking the
    other side costs ten times what an append does (a write to the loop's pipe, a fight for the interpreter lock). So
    the loop is woken at most once per wait of the consumer; frames of a file wake it in batches, no later than
    `_BATCH_WAIT_S`; and a full queue is refilled only once it is half empty.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, look_ahead: int = 8) -> None:
        self._loop = loop
        self._capacity = look_ahead
        self._low_water = look_ahead // 2
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None
        self._wake_by_s = 0.0
        self._finished = False
        self._error: BaseException | None = None
        self.dropped = 0
        """Frames replaced by a newer one before anybody took them."""

    def put_newest(self, frame: Frame) -> None:
        """Offer a frame; one that still waits is dropped and counted."""
        with self._changed:
            if self._frames:
                self._frames.clear()
                self.dropped += 1
            self._frames.append(frame)
            waiter, self._waiter = self._waiter, None
        self._wake(waiter)

    def put_all(self, frame: Frame) -> bool:
        """Wait for room, then add a frame; False when the consumer has gone or `finish` was called."""
        with self._changed:
            if len(self._frames) >= self._capacity:
                self._changed.wait_for(lambda: self._finished or len(self._frames) <= self._low_water)
            if self._finished:
                return False
            now_s = time.monotonic()
            if not self._frames:
                self._wake_by_s = now_s + _BATCH_WAIT_S
            self._frames.append(frame)
            if len(self._frames) < self._low_water and now_s < self._wake_by_s:
                return True
            waiter, self._waiter = self._waiter, None
        self._wake(waiter)
        return True

    def flush(self) -> None:
        """Wake the consumer for what is queued: the producer pauses."""
        with self._changed:
            waiter, self._waiter = (self._waiter, None) if self._frames else (None, self._waiter)
        self._wake(waiter)

    def finish(self, error: BaseException | None = None) -> None:
        """No more frames: what is queued is still delivered, then `error` is raised or the stream ends. Idempotent."""
        with self._changed:
            if not self._finished:
                self._finished, self._error = True, error
            self._changed.notify_all()
            waiter, self._waiter = self._waiter, None
        self._wake(waiter)

    def discard(self) -> None:
        """Drop what is queued: nobody will take it."""
        with self._changed:
            self._frames.clear()
            self._changed.notify_all()

    async def get(self) -> Frame | None:
        """The next frame; None after the last one. Raises the error given to `finish`. For one consumer at a time."""
        while True:
            with self._changed:
                if self._frames:
                    frame = self._frames.popleft()
                    if len(self._frames) == self._low_water:
                        self._changed.notify()
                    return frame
                if self._finished:
                    if self._error is not None:
                        raise self._error
                    return None
                waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                with self._changed:
                    if self._waiter is waiter:  # cancelled: nobody waits any more
                        self._waiter = None

    def _wake(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is None:
            return
        try:
            self._loop.call_soon_threadsafe(_resolve, waiter)
        except RuntimeError:  # the loop was closed between two frames: nobody is left to be told
            self.finish()


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
