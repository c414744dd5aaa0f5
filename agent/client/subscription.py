"""`subscribe`: events of one or all devices as an asynchronous iterator that loses none, repeats none and tells what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from agent.backoff import full_jitter
from agent.client import state as state_file
from agent.client.clocks import DeviceClocks
from agent.client.items import Item
from agent.client.ledger import Ledger
from agent.client.options import OptionNames, SubscribeOptions
from agent.client.replay import ReplayAnswer, Replays, joined, new_id
from agent.client.tracker import Range, SequenceTracker
from agent.client.transport import Broker, Link, RefusedError
from agent.errors import DataError, StorageError, TransientError

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_ASK_TIMES = 2
"""A device that has too much to do drops a command without an answer."""
_STABLE_S = 5.0
"""A connection that lasted this long was a good one: the next wait is short again."""


class Subscription:
    """Made by `subscribe`. Asking for the next item says that the one before is dealt with: only then is it acknowledged.

    Use it with `async with`, so that it ends when its user does. Lives on one event loop; one task iterates.
    """

    def __init__(self, options: SubscribeOptions, broker: Broker, kept: state_file.SubscriberState) -> None:
        """Use `subscribe`."""
        self._options = options
        self._broker = broker
        self._kept = kept
        self._loop = asyncio.get_running_loop()
        self._clocks = DeviceClocks()
        self._ledger = Ledger(
            lambda: SequenceTracker(grace_s=options.grace_s, max_holes=options.max_holes, max_ids=options.max_ids),
            self._time_s,
        )
        self._came: deque[_Delivery | _Asked] = deque()
        try:
            self._ledger.load({name: one for name, one in kept.devices.items() if options.device in ("+", name)})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{options.state_file}: not the state of a subscriber: {error}") from error
        self._replays = Replays(options.base_topic, timeout_s=options.replay_timeout_s, signer=options.signer())
        self._ready: deque[tuple[Item, _Delivery | None]] = deque()
        self._current: tuple[Item, _Delivery | None] | None = None
        self._asking: set[str] = set()
        self._touched: set[str] = set()
        self._uncovered: list[_Delivery] = []
        self._settled: list[_Delivery] = []
        self._wake = asyncio.Event()
        self._unkept = asyncio.Event()
        self._keeping = asyncio.Lock()
        self._look_s = 0.0
        self._link: Link | None = None
        self._group: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None
        self.error = ""
        """Why there is no connection; empty while there is one."""

    @property
    def connected(self) -> bool:
        """Whether messages can come now."""
        return self._link is not None

    # --- iterating ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        self._start()
        return self

    async def __anext__(self) -> Item:
        """The next item. Raises StorageError when the state file cannot be written; reconnects for ever."""
        self._settle_current()
        while not self._ready:
            if self._task is None:
                raise StopAsyncIteration
            self._raise_if_over()
            self._wake.clear()
            self._look_at_the_clock()
            if not self._ready:  # an event is never among missing ranges: it is settled as soon as it is dealt with
                self._take_what_came()
            if not self._ready:
                await self._sleep()
        self._current = self._ready.popleft()
        return self._current[0]

    async def handled(self) -> None:
        """The latest item is dealt with: returns once that is on disk and acknowledged. Raises StorageError."""
        self._settle_current()
        self._raise_if_over()
        await self._keep()

    async def replay(self, device_id: str, first: int, last: int) -> ReplayAnswer:
        """Ask the device to send these numbers again. They come among the others, unless they came before.

        Raises TransientError: no connection, or no answer in time.
        """
        return await self._request(device_id, (first, last))

    async def aclose(self) -> None:
        """Disconnect. An item that was yielded last and not followed by another, or by `handled`, comes again next time."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # `__anext__` has raised it

    def _raise_if_over(self) -> None:
        if self._task is not None and self._task.done():
            try:
                self._task.result()
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None

    def _take_what_came(self) -> None:
        while self._came and not self._ready:
            came = self._came[0]  # it stays in its place while it is counted: see `_time_s`
            self._touched.add(came.device_id)
            if isinstance(came, _Asked):
                self._asking.discard(came.device_id)
                gone = self._ledger.asked(came.device_id, came.run, came.gone, came.detail)
                self._ready += [(item, None) for item in gone]
            else:
                items = self._ledger.receive(came.device_id, came.payload, came.problem)
                self._ready += [(item, None) for item in items[:-1]] + [(item, came) for item in items[-1:]]
                if not items:
                    self._settle(came)
            self._came.popleft()

    def _look_at_the_clock(self) -> None:
        if self._loop.time() < self._look_s:
            return
        self._look_s = self._loop.time() + min(_LOOK_EVERY_S, self._options.grace_s / 4)
        due = self._ledger.look(ask=self._options.replay)
        self._touched |= {missing.device_id for missing in due.missing}
        self._ready += [(missing, None) for missing in due.missing]
        for device_id, runs in due.ask:
            if self._group is not None and device_id not in self._asking:  # one command at a time: devices limit them
                self._asking.add(device_id)
                self._group.create_task(self._ask(device_id, joined(runs)), name="ask-again")

    def _time_s(self, device_id: str) -> float:
        """By the device's clock, when the first of what still waits here came: what came in time is not overdue. Else now."""
        for came in self._came:
            if came.device_id == device_id:
                return came.at_s
        return self._clocks.time_s(device_id, self._loop.time())

    async def _sleep(self) -> None:
        """Until something comes or a grace is over."""
        wait_s = self._ledger.wait_s(self._clocks.running)
        if wait_s is not None:
            wait_s = max(wait_s, self._look_s - self._loop.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    # --- what is dealt with -------------------------------------------------------------------------------------------

    def _settle_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            self._settle(current[1])

    def _settle(self, delivery: _Delivery | None) -> None:
        """To be acknowledged once it is on disk. What has been read but not yielded yet must not get there."""
        if delivery is not None:
            self._uncovered.append(delivery)
        if self._ready:
            return
        for device_id in self._touched & self._ledger.trackers.keys():
            self._kept.devices[device_id] = self._ledger.trackers[device_id].dump()
        self._touched.clear()
        self._settled += self._uncovered
        self._uncovered.clear()
        self._unkept.set()

    async def _keep(self) -> None:
        """Write the state file, then acknowledge what it covers. Raises StorageError."""
        async with self._keeping:
            self._unkept.clear()
            settled, self._settled = self._settled, []
            try:
                await self._write()
            except BaseException:
                self._settled[:0] = settled
                raise
            for delivery in settled:
                delivery.link.acknowledge(delivery.token)

    async def _write(self) -> None:
        """A write that has begun is waited for, also when cancelled: two at once would spoil the file."""
        if self._options.state_file is None:
            return
        work = asyncio.to_thread(state_file.save, Path(self._options.state_file), self._kept.as_json())
        writing = asyncio.ensure_future(work)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    async def _keep_always(self) -> None:
        while True:
            await self._unkept.wait()
            await self._keep()

    # --- the connection -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="subscription")
            self._task.add_done_callback(lambda _: self._wake.set())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._keep_always(), name="keep-state")
            await self._stay_connected()

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            since_s = self._loop.time()
            try:
                error = await self._connected_once()
            except TransientError as problem:
                error = problem
            failures = 1 if self._loop.time() - since_s >= _STABLE_S else failures + 1
            self.error = str(error)
            shortest_s, longest_s = self._options.reconnect_s
            wait_s = full_jitter(failures - 1, shortest_s, longest_s, random.random)
            if isinstance(error, RefusedError):
                wait_s = random.uniform(longest_s / 2, longest_s)  # noqa: S311 - jitter, not a secret
            log.warning("no connection to the broker: %s; trying again in %.1f s", error, wait_s)
            await asyncio.sleep(wait_s)

    async def _connected_once(self) -> TransientError:
        """One connection from its start to its end; returns why it ended."""
        early: list[tuple[str, bytes, str, int]] = []
        link: Link | None = None

        def on_message(topic: str, payload: bytes, problem: str, token: int) -> None:
            if link is None:  # the rest of a session comes before the subscription is confirmed
                early.append((topic, payload, problem, token))
            else:
                self._on_message(link, topic, payload, problem, token)

        filters, answers = self._filters()
        gone = sorted({*self._kept.filters} - {*filters, answers})
        if self._options.replay:
            link = await Link.open(self._broker, [*filters, answers], on_message, gone=gone)
        else:  # for `replay` by hand; who does not use it needs no right to read them
            link = await Link.open(self._broker, filters, on_message, optional=[answers], gone=gone)
        self._kept.filters = [*filters, answers]
        if link.session_present:  # what was not acknowledged comes again, if the broker still has it; kept once
            self._came = deque(dict.fromkeys(self._came))
        for message in early:
            self._on_message(link, *message)
        self._link, self.error = link, ""
        self._clocks.link(True, self._loop.time())
        self._wake.set()
        log.info("connected to the broker")
        try:
            return await link.wait_ended()
        finally:
            self._link = None
            self._clocks.link(False, self._loop.time())
            if link.open_now:
                with contextlib.suppress(StorageError):  # what is not acknowledged comes again
                    await self._keep()
                link.close()

    def _filters(self) -> tuple[list[str], str]:
        """Of what devices say by themselves, and of answers to commands."""
        root = f"{self._options.base_topic}/{self._options.device}"
        return [f"{root}/status", f"{root}/events/#"], self._replays.answer_topic(self._options.device)

    def _on_message(self, link: Link, topic: str, payload: bytes, problem: str, token: int) -> None:
        device_id, place = topic.removeprefix(f"{self._options.base_topic}/").split("/", 1)
        if place.startswith("events"):
            at_s = self._clocks.time_s(device_id, self._loop.time())
            self._came.append(_Delivery(link, token, at_s, device_id, payload, problem))
        else:
            if place == "status":
                self._clocks.device(device_id, payload != b"offline", self._loop.time())
            else:
                self._take_answer(payload)
            link.acknowledge(token)
        self._wake.set()

    def _take_answer(self, payload: bytes) -> None:
        try:
            self._replays.take(payload)
        except DataError as error:
            log.warning("%s", error)

    async def _request(self, device_id: str, run: Range, request_id: str = "") -> ReplayAnswer:
        if self._link is None:
            raise TransientError(f"not connected to the broker: {self.error}")
        return await self._replays.request(self._link, device_id, run, request_id)

    async def _ask(self, device_id: str, run: Range) -> None:
        """Ask for what is missing. What the answer does not explain is reported when its second grace is over."""
        gone: tuple[Range, ...] = ()
        detail, request_id = "", new_id()
        for _ in range(_ASK_TIMES):
            try:
                answer = await self._request(device_id, run, request_id)
            except TransientError as error:
                log.warning("%s: %d-%d could not be asked for: %s", device_id, *run, error)
                continue
            if answer.state == "done":
                gone, detail = answer.missing, answer.detail or "the device has it no more"
            else:
                gone, detail = (run,), f"{answer.state}: {answer.detail}"
            break
        at_s = self._clocks.time_s(device_id, self._loop.time())
        self._came.append(_Asked(at_s, device_id, run, tuple(_inside(run, one) for one in gone), detail))
        self._wake.set()


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A message on an event topic, to be acknowledged on the link that brought it. at_s: when it came, by the device's clock."""

    link: Link = field(compare=False)
    token: int = field(compare=False)
    at_s: float = field(compare=False)
    device_id: str
    payload: bytes
    problem: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """The device was asked for `run` and has answered, or not in time. gone: what it has no more; detail: its words."""

    at_s: float
    device_id: str
    run: Range
    gone: tuple[Range, ...]
    detail: str


def _inside(run: Range, part: Range) -> Range:
    return max(run[0], part[0]), min(run[1], part[1])


def subscribe(url: str, **options: Unpack[OptionNames]) -> Subscription:
    """Events of `device` (`+` = of all) from the broker at `url`, `mqtt://[user:password@]host[:port]` or `mqtts://...`.

    options: the fields of `SubscribeOptions`. Call it in a running event loop. With a `client_id` or a `state_file` the broker
    keeps what comes while the subscriber is away; with a `state_file` it also knows, after a restart, what had come before.

        async with subscribe("mqtt://broker.example", state_file=Path("archive.json")) as events:
            async for event in events:
                match event:
                    case Gap() | MissingRange(): ...
                    case ReceivedEvent(kind="fight", phase="detected"): ...

    Raises ValueError (an option or the address), OSError (TLS and key files), StorageError, DataError (the state file).
    """
    chosen = SubscribeOptions(**options)
    kept = state_file.load(Path(chosen.state_file)) if chosen.state_file is not None else state_file.SubscriberState()
    broker = chosen.broker(url, kept.client_id)
    kept.client_id = broker.client_id
    return Subscription(chosen, broker, kept)
