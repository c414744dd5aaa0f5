"""One inference thread behind an async face, with dynamic batching over whoever submits."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from agent.errors import DeviceMemoryError, FatalError, ModelError, RecognizerError

In = TypeVar("In")
Out = TypeVar("Out")


class BatchWorker(Generic[In, Out]):
    """Runs `function` on batches, on a thread of its own.

    function: list of 1..max_batch inputs -> list of as many outputs; blocks, and should release the GIL.
    max_wait_s: how long the first of a batch may wait for company; nobody waits while fewer than two
    submitters are announced (`submitters`), nor longer than until each of them has an item in the batch.
    on_batch: called on the thread with (items, seconds) after each successful call.

    A batch that is too large for the device is halved, for good, and tried again. A batch that fails otherwise is
    tried item by item, so that one bad input costs only itself. FatalError is passed to every waiter at once.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[list[In]], Sequence[Out]],
        *,
        max_batch: int = 1,
        max_wait_s: float = 0.0,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.submitters = 1
        self._function = function
        self._max_wait_s = max_wait_s
        self._on_batch = on_batch
        self._queue: queue.SimpleQueue[tuple[In, asyncio.Future[Out]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; results arrive on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=f"infer-{self.name}", daemon=True)
        self._thread.start()

    def submit(self, item: In) -> asyncio.Future[Out]:
        """The future result of `item`. Raises RecognizerErrors of the function; cancelling skips work not begun."""
        if self._loop is None:
            raise RuntimeError(f"worker {self.name} is not started")
        future: asyncio.Future[Out] = self._loop.create_future()
        self._queue.put((item, future))
        return future

    async def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, closing = self._gather(first)
            self._serve([entry for entry in batch if not entry[1].cancelled()])
            if closing:
                return

    def _gather(self, first: tuple[In, asyncio.Future[Out]]) -> tuple[list[tuple[In, asyncio.Future[Out]]], bool]:
        """Everything queued up to a full batch; waits for the other submitters' items for a moment."""
        batch = [first]
        deadline = time.monotonic() + self._max_wait_s
        while len(batch) < self.max_batch:
            wait_s = deadline - time.monotonic() if len(batch) < self.submitters else 0.0
            try:
                entry = self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                return batch, True
            batch.append(entry)
        return batch, False

    def _serve(self, batch: list[tuple[In, asyncio.Future[Out]]]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        try:
            outputs = self._call([item for item, _ in batch])
        except RecognizerError as error:
            self._recover(batch, error)
        else:
            if self._on_batch is not None:
                self._on_batch(len(batch), time.perf_counter() - started)
            self._hand_over([(future, output, None) for (_, future), output in zip(batch, outputs, strict=True)])

    def _recover(self, batch: list[tuple[In, asyncio.Future[Out]]], error: RecognizerError) -> None:
        if len(batch) == 1 or isinstance(error, FatalError):
            self._hand_over([(future, None, error) for _, future in batch])
            return
        if isinstance(error, DeviceMemoryError):
            self.max_batch = len(batch) // 2
        while batch:  # max_batch may shrink further on the way
            size = self.max_batch if isinstance(error, DeviceMemoryError) else 1
            self._serve(batch[:size])
            batch = batch[size:]

    def _call(self, items: list[In]) -> Sequence[Out]:
        try:
            outputs = self._function(items)
            count = len(outputs)
        except RecognizerError:
            raise
        except Exception as error:  # a plug-in's bug must cost its frame, not the camera
            raise ModelError(f"{self.name} failed with {type(error).__name__}: {error}") from error
        if count != len(items):
            raise ModelError(f"{self.name} returned {count} results for {len(items)} inputs")
        return outputs

    def _hand_over(self, results: list[tuple[asyncio.Future[Out], Out | None, RecognizerError | None]]) -> None:
        if self._loop is None or self._loop.is_closed():  # the process is going down: nobody waits any more
            return
        self._loop.call_soon_threadsafe(_settle, results)


def _settle(results: list[tuple[asyncio.Future[Any], Any, RecognizerError | None]]) -> None:
    for future, output, error in results:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(output)
