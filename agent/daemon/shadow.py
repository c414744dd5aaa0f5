"""A candidate beside the running model: the same input, on a thread of its own that gives way to everything."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from agent.errors import FatalError, RecognizerError

In = TypeVar("In")
Out = TypeVar("Out")

DUTY = 0.25
"""Share of the time in which the candidate computes; the rest it leaves to the machine."""
MAX_REST_S = 10.0
_LOWEST_PRIORITY = 19
_JOIN_S = 30.0


class Shadow(Generic[In, Out]):
    """Runs `function` on what the running model has just answered, and shows both answers to `compare`.

    function: as that of a `BatchWorker`, given one item at a time; must compute on the thread that calls it. depth: items that
    wait; a newer one takes the place of the oldest. worth: whether there is something to compare in an answer of the running model,
    from any thread; it is asked while `sparing`, and the others are left alone. `offer` is the tap of the running model's worker.
    samples, failures: so far; dead: nothing works any more (FatalError), and it has ended.
    """

    def __init__(
        self,
        function: Callable[[list[In]], Sequence[Out]],
        compare: Callable[[Out, Out], None],
        *,
        depth: int = 1,
        duty: float = DUTY,
        worth: Callable[[Out], object] = lambda _: True,
    ) -> None:
        self._function = function
        self._compare = compare
        self._duty = duty
        self._worth = worth
        self._waiting: deque[tuple[In, Out]] = deque(maxlen=depth)
        self._stopping = threading.Event()
        self._news = threading.Condition()
        self._turn = 0
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self.sparing = False
        self.samples = 0
        self.failures = 0
        self.dead = False
        self.last_error = ""
        self.seconds = 0.0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def offer(self, items: Sequence[In], outputs: Sequence[Out]) -> None:
        """One batch that the running model has answered; of several items each gets its turn. From any thread; takes no time."""
        self._turn += 1
        index = self._turn % len(items)
        if self.sparing and not self._worth(outputs[index]):
            return
        with self._news:
            self._waiting.append((items[index], outputs[index]))
            self._news.notify()

    def stop(self) -> bool:
        """End; blocks until what is under way is done. False: it does not end, and what it uses must not be freed."""
        self._stopping.set()
        with self._news:
            self._waiting.clear()
            self._news.notify()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        return not self._thread.is_alive()

    def _work(self) -> None:
        with suppress(OSError):  # where it may not, its duty alone has to do
            os.setpriority(
                os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY
            )  # on Linux of this thread alone
        while not self.dead and (pair := self._next()) is not None:
            item, answer = pair
            started_s = time.perf_counter()
            try:
                (other,) = self._function([item])
                self._compare(answer, other)
                self.samples += 1
            except RecognizerError as error:
                self.dead = isinstance(error, FatalError)
                self._failed(str(error))
            except Exception as error:  # noqa: BLE001 - a candidate's bug is a finding, not the agent's end
                self._failed(f"{type(error).__name__}: {error}")
            spent_s = time.perf_counter() - started_s
            self.seconds += spent_s
            self._stopping.wait(min(MAX_REST_S, spent_s * (1 / self._duty - 1)))

    def _failed(self, text: str) -> None:
        self.failures += 1
        self.last_error = text

    def _next(self) -> tuple[In, Out] | None:
        with self._news:
            self._news.wait_for(lambda: self._stopping.is_set() or self._waiting)
            return None if self._stopping.is_set() else self._waiting.pop()
