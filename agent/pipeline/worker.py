"""One inference thread behind an async face, with dynamic batching over whoever submits."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from agent.batch_size import BatchSize
from agent.errors import DeviceMemoryError, FatalError, ModelError, RecognizerError

In = TypeVar("In")
Out = TypeVar("Out")


class _Wake:
    """In the queue: there is something to do that is no item."""


@dataclass(slots=True)
class _Replacement(Generic[In, Out]):
    """What is to run from the next batch on; done: the functions before it run no more."""

    function: Callable[[list[In]], Sequence[Out]]
    max_batch: int
    done: list[asyncio.Future[None]]


class BatchWorker(Generic[In, Out]):
    """Runs `function` on batches, on a thread of its own.

    function: list of 1..max_batch inputs -> list of as many outputs; blocks, and should release the GIL.
    max_wait_s: how long the first of a batch may wait for company; nobody waits while fewer than two
    submitters are announced (`submitters`), nor longer than until each of them has an item in the batch.
    on_batch: called on the thread with (items, seconds) after each successful call.

    A batch that is too large for the device is halved and tried again; how large the next ones are, and `patience`: see
    `BatchSize`. A batch that fails otherwise is tried item by item, so that one bad input costs only itself. FatalError is
    passed to every waiter at once.

    tap: called on the thread with (inputs, outputs) after each successful call, when the results are on their way; must be
    quick, and must not change what it is given. What it raises is counted in `tap_errors` and costs no result.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[list[In]], Sequence[Out]],
        *,
        max_batch: int = 1,
        max_wait_s: float = 0.0,
        on_batch: Callable[[int, float], None] | None = None,
        patience: int = 500,
    ) -> None:
        self.name = name
        self._size = BatchSize(max_batch, patience)
        self.submitters = 1
        self.tap: Callable[[Sequence[In], Sequence[Out]], None] | None = None
        self.tap_errors = 0
        self._function = function
        self._next: _Replacement[In, Out] | None = None
        self._lock = threading.Lock()
        self._running = False
        self._patience = patience
        self._max_wait_s = max_wait_s
        self._on_batch = on_batch
        self._queue: queue.SimpleQueue[tuple[In, asyncio.Future[Out]] | _Wake | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def max_batch(self) -> int:
        """How many inputs `function` gets at most at present."""
        return self._size.now

    def start(self) -> None:
        """Start the thread; results arrive on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._thread = threading.Thread(target=self._work, name=f"infer-{self.name}", daemon=True)
        self._thread.start()

    def submit(self, item: In) -> asyncio.Future[Out]:
        """The future result of `item`. Raises RecognizerErrors of the function; cancelling skips work not begun."""
        if self._loop is None:
            raise RuntimeError(f"worker {self.name} is not started")
        future: asyncio.Future[Out] = self._loop.create_future()
        self._queue.put((item, future))
        return future

    def replace(self, function: Callable[[list[In]], Sequence[Out]], *, max_batch: int) -> asyncio.Future[None]:
        """Let `function` take the place of the present one between two batches; what waits in the queue goes to the new one.

        At once, on the running loop. The returned future is done when the old function runs no more; cancelling it changes
        nothing about the exchange. A later call before that takes the place of this one, and both are done together.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            earlier = self._next.done if self._next is not None else []
            self._next = _Replacement(function, max_batch, [*earlier, done])
            running = self._running
        if running:
            self._queue.put(_Wake())  # an idle thread has no batch after which to look
        else:
            self._exchange()
        return done

    async def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _work(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                self._exchange()
                if isinstance(first, _Wake):
                    continue
                batch, closing = self._gather(first)
                self._serve([entry for entry in batch if not entry[1].cancelled()])
                if closing:
                    return
        finally:
            with self._lock:
                self._running = False
            self._exchange()  # whoever waits for the old function may go on

    def _exchange(self) -> None:
        with self._lock:
            replacement, self._next = self._next, None
        if replacement is None:
            return
        self._function = replacement.function
        self._size = BatchSize(replacement.max_batch, self._patience)
        for done in replacement.done:
            loop = done.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, done)

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
            if isinstance(entry, _Wake):
                continue  # the exchange comes before the next batch
            if entry is None:
                return batch, True
            batch.append(entry)
        return batch, False

    def _serve(self, batch: list[tuple[In, asyncio.Future[Out]]]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        items = [item for item, _ in batch]
        try:
            outputs = self._call(items)
        except RecognizerError as error:
            self._recover(batch, error)
        else:
            self._size.note_success()
            if self._on_batch is not None:
                self._on_batch(len(batch), time.perf_counter() - started)
            self._hand_over([(future, output, None) for (_, future), output in zip(batch, outputs, strict=True)])
            if (tap := self.tap) is not None:
                self._show(tap, items, outputs)

    def _show(
        self, tap: Callable[[Sequence[In], Sequence[Out]], None], items: Sequence[In], outputs: Sequence[Out]
    ) -> None:
        try:
            tap(items, outputs)
        except Exception:  # noqa: BLE001 - an onlooker's bug is no reason to lose frames
            self.tap_errors += 1

    def _recover(self, batch: list[tuple[In, asyncio.Future[Out]]], error: RecognizerError) -> None:
        if len(batch) == 1 or isinstance(error, FatalError):
            self._hand_over([(future, None, error) for _, future in batch])
            return
        if isinstance(error, DeviceMemoryError):
            self._size.halve(len(batch))
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
        except BaseException as error:  # a plug-in's bug, or its `sys.exit`, must cost its frame, not the camera
            raise ModelError(f"{self.name} failed with {type(error).__name__}: {error}") from error
        if count != len(items):
            raise ModelError(f"{self.name} returned {count} results for {len(items)} inputs")
        return outputs

    def _hand_over(self, results: list[tuple[asyncio.Future[Out], Out | None, RecognizerError | None]]) -> None:
        if self._loop is None or self._loop.is_closed():  # the process is going down: nobody waits any more
            return
        self._loop.call_soon_threadsafe(_settle, results)


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _settle(results: list[tuple[asyncio.Future[Any], Any, RecognizerError | None]]) -> None:
    for future, output, error in results:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(output)
