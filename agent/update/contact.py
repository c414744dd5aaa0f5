"""The talk with the fleet server: asks, hears, reports, and keeps at it whatever the server or the network does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

import structlog

from agent.backoff import full_jitter
from agent.errors import AccessError, BusyError, ConfigError, DataError, TransientError
from agent.update.ddi import DdiClient, ForbiddenError, GoneError
from agent.update.ddi_documents import Deployment, Poll
from agent.update.machine import Report, report
from agent.update.orders import Orders
from agent.update.parts import Parts
from agent.update.records import About, Feedback
from agent.update.state import ServerView

_log = structlog.get_logger(__name__)

_JITTER = 0.1
_DEFAULT_SLEEP_S = 300.0
_GATHER_S = 0.05
"""What is said within it goes out together."""
_MOST_PROGRESS = 200
"""Words about the progress of one action: servers count them."""
_LOOK_S = 30.0
"""While we are not let in: between two looks whether tokens and certificates were renewed."""
_CHECK_S = 45.0
"""For what comes of being asked now: a connection that does not come about is given up before."""
Connect = Callable[[], AbstractAsyncContextManager[DdiClient]]
"""Reads tokens and certificates. Raises ConfigError."""


class Contact:
    """`run` for ever. kick: something waits to be told; check: ask the server now."""

    def __init__(self, parts: Parts, orders: Orders, connect: Connect, tell: Callable[[ServerView], None]) -> None:
        self._parts = parts
        self._orders = orders
        self._connect = connect
        self._tell = tell
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._kick = asyncio.Event()
        self._seen = asyncio.Event()
        self._sleep_s = _DEFAULT_SLEEP_S
        self._next_poll_s = 0.0
        self._failures = 0
        self._told_attributes: Mapping[str, str] = {}
        self._told_progress: tuple[str, float] = ("", 0.0)
        self._progress_of = ""
        self._progress_count = 0
        self.view = ServerView()

    def kick(self) -> None:
        """Something waits to be told."""
        self._kick.set()

    def check(self) -> None:
        """Ask the server now."""
        self._next_poll_s = 0.0
        self._failures = 0
        self._kick.set()

    async def checked(self) -> ServerView:
        """Ask the server now; how it takes us then. Raises TimeoutError."""
        self._seen.clear()
        self.check()
        async with asyncio.timeout(_CHECK_S):
            await self._seen.wait()
        return self.view

    async def run(self) -> None:
        """Never returns. Raises StorageError."""
        while True:
            try:
                async with self._connect() as ddi:
                    await self._talk(ddi)
            except ConfigError as error:
                self._see("denied", str(error))
                await self._rest(min(_LOOK_S, self._parts.config().poll_max_s))

    async def _talk(self, ddi: DdiClient) -> None:
        """As long as tokens and certificates are the same and nothing is wrong with them; they are read anew then."""
        while not ddi.outdated():
            try:
                wait_s = await self._round(ddi)
            except AccessError as error:
                self._see("denied", str(error))
                await self._rest(self._parts.config().poll_max_s, ddi.outdated)
                return
            except BusyError as error:
                wait_s = min(max(error.retry_after_s, self._backoff_s()), self._parts.config().poll_max_s)
                self._postpone(wait_s, "offline", error)
            except (TransientError, DataError) as error:
                wait_s = self._backoff_s()
                self._postpone(wait_s, "confused" if isinstance(error, DataError) else "offline", error)
            await self._rest(wait_s, ddi.outdated)

    async def _round(self, ddi: DdiClient) -> float:
        """One turn; returns the seconds until the next is due at the latest."""
        await self._deliver(ddi)
        if time.monotonic() >= self._next_poll_s:
            await self._poll(ddi)
            await self._deliver(ddi)
        await self._tell_attributes(ddi, required=False)
        progress_s = await self._tell_progress(ddi)
        self._failures = 0
        return min(max(self._next_poll_s - time.monotonic(), 0.0), progress_s)

    # --- telling ------------------------------------------------------------------------------------------------------

    async def _deliver(self, ddi: DdiClient) -> None:
        """Everything that waits, in its order; what the server will never take is recorded and dropped."""
        self._kick.clear()
        for feedback in await self._parts.disk.do(self._parts.journal.waiting):
            how = await self._deliver_one(ddi, feedback)
            await self._parts.disk.do(self._parts.journal.delivered, feedback, how)

    async def _deliver_one(self, ddi: DdiClient, feedback: Feedback) -> str:
        if feedback.about == "deployment" and self._orders.is_reused(feedback.action_id):
            return "not told: the server means another update by this id"
        try:
            await _feedback(ddi, feedback.about, feedback.action_id, feedback.report)
            if feedback.report.final:
                ddi.forget()  # whatever it offers next, offer it in full
        except GoneError:
            return "the server has closed it"
        except DataError as error:
            _log.error("update_feedback_refused", action=feedback.action_id, error=str(error))
            return f"refused: {error}"
        return "accepted"

    async def _tell_attributes(self, ddi: DdiClient, *, required: bool) -> None:
        attributes = self._parts.attributes()
        if required or (self._told_attributes and attributes != self._told_attributes):
            await ddi.tell_attributes(attributes)
            self._told_attributes = dict(attributes)

    async def _tell_progress(self, ddi: DdiClient) -> float:
        """How far it is, if that changed and the last word is some seconds old; returns when the next may be due."""
        progress, every_s = self._orders.progress_of_current(), self._parts.pace.progress_s
        if progress is None:
            return float("inf")
        action, phase, text = progress
        said, at_s = self._told_progress
        left_s = at_s + every_s - time.monotonic()
        if action != self._progress_of:
            self._progress_of, self._progress_count = action, 0
        if left_s > 0 or not text or text == said or self._progress_count >= _MOST_PROGRESS:
            return max(left_s, 0.0) or every_s
        self._progress_count += 1
        try:
            await _feedback(ddi, "deployment", action, report(phase, text=text))
        except DataError as error:  # what it will hear at the end counts
            _log.info("update_progress_refused", action=action, error=str(error))
        self._told_progress = (text, time.monotonic())
        return every_s

    # --- hearing ------------------------------------------------------------------------------------------------------

    async def _poll(self, ddi: DdiClient) -> None:
        config = self._parts.config()
        try:
            poll = await ddi.poll()
            if poll is not None:
                await self._follow(ddi, poll)
        except BaseException:
            ddi.forget()
            raise
        sleep_s = min(max(self._sleep_s, config.poll_min_s), config.poll_max_s)
        jittered_s = sleep_s * (1 + _JITTER * (2 * self._random.random() - 1))
        self._next_poll_s = time.monotonic() + min(max(jittered_s, config.poll_min_s), config.poll_max_s)
        self._see("ok", "")

    async def _follow(self, ddi: DdiClient, poll: Poll) -> None:
        self._sleep_s = poll.sleep_s if poll.sleep_s is not None else _DEFAULT_SLEEP_S
        if poll.config_data or not self._told_attributes:
            await self._tell_attributes(ddi, required=True)
        if poll.cancel is not None:
            await self._orders.cancel(*await ddi.cancel(poll.cancel))
        if poll.confirmation is not None:
            await self._confirm(ddi, await ddi.confirmation(poll.confirmation))
        if poll.deployment is not None:
            if not await self._orders.take(await ddi.deployment(poll.deployment)):
                ddi.forget()  # another one has to end before
                self._sleep_s = 0.0
        elif poll.cancel is None:
            await self._orders.nothing_offered()

    async def _confirm(self, ddi: DdiClient, deployment: Deployment) -> None:
        """A device that nobody sits at agrees to what it understands, and has every other safeguard still before it."""
        problem = self._orders.misunderstood(deployment)
        text = f"text: {problem or 'taken'}"
        answer = Report("rejected" if problem else "proceeding", "none", (text,))
        try:
            await ddi.feedback("confirmation", deployment.action_id, answer)
        except GoneError:
            return
        ddi.forget()

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _backoff_s(self) -> float:
        config = self._parts.config()
        self._failures += 1
        return max(full_jitter(self._failures - 1, config.poll_min_s, config.poll_max_s, self._random.random), 0.5)

    def _postpone(self, wait_s: float, state: str, error: Exception) -> None:
        self._next_poll_s = max(self._next_poll_s, time.monotonic() + wait_s)
        self._see(state, str(error))

    async def _rest(self, wait_s: float, outdated: Callable[[], bool] = lambda: False) -> None:
        """A kick ends it only when the server is well: else whatever waits would be tried in a row."""
        if self.view.state == "ok":
            try:
                async with asyncio.timeout(wait_s if wait_s != float("inf") else None):
                    await self._kick.wait()
            except TimeoutError:
                return
            await asyncio.sleep(_GATHER_S)
        else:
            await self._rest_in_trouble(wait_s, outdated)

    async def _rest_in_trouble(self, wait_s: float, outdated: Callable[[], bool]) -> None:
        """Only `check` cuts it short, and another token or certificate."""
        until_s = time.monotonic() + wait_s
        self._next_poll_s = max(self._next_poll_s, until_s)
        while (left_s := min(until_s, self._next_poll_s) - time.monotonic()) > 0:
            self._kick.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_S)):
                    await self._kick.wait()
            if outdated():
                self._next_poll_s = 0.0

    def _see(self, state: str, detail: str) -> None:
        polled_us = time.time_ns() // 1000 if state == "ok" else self.view.polled_us
        changed = (state, detail) != (self.view.state, self.view.detail)
        self.view = ServerView(state, detail, polled_us)  # type: ignore[arg-type]  # one of the words above
        if changed and state != "ok":
            _log.warning("update_server", state=state, detail=detail)
        self._seen.set()
        self._tell(self.view)


async def _feedback(ddi: DdiClient, about: About, action_id: str, told: Report) -> None:
    """A report that is forbidden to somebody who may ask is one too many, and no reason to be silent from then on. Raises DataError."""
    try:
        await ddi.feedback(about, action_id, told)
    except ForbiddenError as error:
        ddi.forget()
        try:
            await ddi.poll()
        except DataError:
            raise error from None
        ddi.forget()
        raise DataError(str(error)) from error
