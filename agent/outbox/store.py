"""The event database's async face: what is put is on disk when `put` returns, and is kept until it is delivered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import structlog

from agent.config.delivery import CommandsConfig, OutboxConfig
from agent.errors import StorageError
from agent.outbox.audit import CommandEntry
from agent.outbox.clock import SteadyClock
from agent.outbox.cursors import SinkDepth
from agent.outbox.database import OpenReport
from agent.outbox.history import EventQuery, EventRow, select_events
from agent.outbox.jobs import Answer, Ask, Jobs, Outcome
from agent.outbox.limits import max_age_us
from agent.outbox.tables import SEQUENCED, DeadLetter, LaneDepth, Requeued, Tables, select_dead_letters
from agent.outbox.writer import Announce, Writer
from agent.ports import Message
from agent.types import Lane, Loss, LossReason, OutboxRecord

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ANY_TIME_US = -(1 << 63)  # what SQLite can hold: a damaged time may be of before 1970
_FORGET_WAIT_S = 0.05
"""How long acknowledgements gather when no commit takes them along; one that is lost to a crash is only a duplicate."""


def wall_clock_us() -> int:
    """Microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def monotonic_clock_us() -> int:
    """Microseconds since some moment, never jumping."""
    return time.monotonic_ns() // 1000


class OutboxStore:
    """SQLite in WAL mode with FULL synchronisation, written by one thread in group commits. Implements `EventStore`.

    Everything runs on the event loop that opened it. Sequences run without gaps over the alarm and event lanes; the state
    lane keeps the newest row of each topic.
    """

    def __init__(
        self, path: Path, config: OutboxConfig, clock: SteadyClock, announce: Announce | None, commands: CommandsConfig
    ) -> None:
        """Use `open`; this only prepares."""
        self._path = path.absolute()
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._writer = Writer(self._path, config, self._post, clock, announce, commands=commands)
        self._config = config
        self._opened: asyncio.Future[OpenReport] = self._loop.create_future()
        self._stopped = asyncio.Event()
        self._closing = False
        self._jobs = Jobs()
        self._flush_soon = False
        self._flush_later: asyncio.TimerHandle | None = None
        self._newest = dict.fromkeys(Lane, 0)
        self._on_commit: list[Callable[[], None]] = []
        self._on_reopened: list[Callable[[OpenReport], None]] = []
        self._on_loss: list[Callable[[Loss], None]] = []
        self._room = True
        self._on_room: list[Callable[[bool], None]] = []
        self._first_losses: list[Loss] = []  # until somebody listens

    @classmethod
    async def open(
        cls,
        path: Path,
        config: OutboxConfig,
        clock_us: Callable[[], int] = wall_clock_us,
        announce: Announce | None = None,
        monotonic_us: Callable[[], int] | None = None,
        *,
        commands: CommandsConfig | None = None,
    ) -> Self:
        """Open or create the database at `path` and start its thread; `report` says what was found.

        clock_us: wall clock, microseconds since 1970 UTC; monotonic_us: tells its jumps from the passing of time, by default the
        system's, or for another wall clock that one, which then never jumps. announce: makes the message for subscribers of a Loss with sequences,
        which is committed together with the loss; called on the store's thread. Without it losses are only told to `on_loss`.
        commands: says how many there may be, and for how long one may be sent again; by default the defaults.
        Raises StorageFullError, StorageError.
        """
        if monotonic_us is None:
            monotonic_us = monotonic_clock_us if clock_us is wall_clock_us else clock_us
        store = cls(path, config, SteadyClock(clock_us, monotonic_us), announce, commands or CommandsConfig())
        store._writer.start()
        await asyncio.shield(store._opened)
        return store

    @property
    def report(self) -> OpenReport:
        """What the latest opening found."""
        return self._opened.result()

    @property
    def series(self) -> str:
        """What the sequences count in: another one where they began again at 1. Safe to ask on the store's thread."""
        return self._writer.series

    @property
    def newest(self) -> Mapping[Lane, int]:
        """Highest row id ever pending in each lane, 0 for none. A row id above the last one fetched means more to fetch."""
        return self._newest

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop after each commit that made new rows pending."""
        self._on_commit.append(callback)

    def on_reopened(self, callback: Callable[[OpenReport], None]) -> None:
        """Have `callback` called when the database had to be opened again after an I/O error, perhaps as a new file."""
        self._on_reopened.append(callback)

    def on_loss(self, callback: Callable[[Loss], None]) -> None:
        """Have `callback` called for everything that was given up, once that is on disk; at once for what opening found."""
        self._on_loss.append(callback)
        for loss in self._first_losses:
            callback(loss)
        self._first_losses.clear()

    def reconfigure(self, config: OutboxConfig) -> None:
        """Apply the keys that may change while running: history and limits."""
        self._config = self._writer.config = config

    # --- the port -----------------------------------------------------------------------------------------------------

    async def put(self, message: Message) -> int | None:
        """Commit `message`; returns its sequence (None in the state and telemetry lanes) once it is on disk.

        Raises StorageFullError, StorageError (nothing was kept, no number was used; a later put may succeed), and
        whatever `message.payload` raises.
        """
        self._refuse_when_closing()
        reply: asyncio.Future[int | None] = self._loop.create_future()
        self._jobs.puts.append((message, reply))
        self._flush_this_turn()
        return await reply

    def give_up(self, lane: Lane, reason: LossReason) -> None:
        """One message of `lane` will not be put any more. With the next commit that works it is announced under a number of its own."""
        self._jobs.lost.append((lane, reason))
        self._flush_in_a_while()

    def on_room(self, callback: Callable[[bool], None]) -> None:
        """Have `callback` called on the event loop: False when the disk is full, also while what is put fits into the reserve (at once
        where that is so already); True by the round of upkeep that finds the reserve held again and can commit.
        """
        self._on_room.append(callback)
        if not self._room:
            callback(self._room)

    # --- the relay's side ---------------------------------------------------------------------------------------------

    async def fetch(self, lane: Lane, limit: int, after: int = 0) -> list[OutboxRecord]:
        """Pending rows of `lane` with a row id above `after`, at most `limit`, in order of commit.

        States and telemetry that are too old are left out; alarms and events wait until they are given up and announced.
        """

        def work(
            tables: Tables,
        ) -> list[OutboxRecord]:  # its thread is the one that moves rows when the clock has jumped
            not_before_us = _ANY_TIME_US if lane in SEQUENCED else self._clock() - max_age_us(self._config, lane)
            return tables.fetch(lane, limit, after, not_before_us)

        return await self._ask(work)

    def forget(self, row_ids: Iterable[int]) -> None:
        """Delete delivered rows with one of the next commits. Tried again until it works; unknown ids are fine."""
        self._jobs.forget.extend(row_ids)
        self._flush_in_a_while()

    def mark_attempt(self, row_ids: Iterable[int]) -> None:
        """Count a failed attempt for each of `row_ids` with one of the next commits."""
        self._jobs.attempts.extend(row_ids)
        self._flush_in_a_while()

    async def delete(self, row_ids: Iterable[int]) -> None:
        """Delete delivered rows; returns when that is on disk. Raises StorageError."""
        ids = list(row_ids)
        await self._ask(lambda tables: tables.delete(ids), writes=True)

    async def dead_letter(self, row_id: int, reason: str) -> bool:
        """Take a row out of delivery for good and keep it for inspection; False when it was not pending."""
        return await self._ask(lambda tables: tables.bury(row_id, reason), writes=True)

    async def requeue(
        self, first: int, last: int, *, turn_back: Callable[[Mapping[Lane, int]], None] = lambda _: None
    ) -> Requeued:
        """Have alarms and events with sequences `first` to `last` delivered again, a step and a commit after the other.

        turn_back: of the relay, told after each step: what was committed before a step failed, or before nobody waited any more,
        is sent all the same. Raises StorageError.
        """

        def stepped(reply: asyncio.Future[tuple[Requeued, int | None, dict[Lane, int]]]) -> None:
            if reply.cancelled() or reply.exception() is not None:
                return
            step, _, newest = reply.result()
            for lane, row_id in newest.items():  # rows of before this start, which nobody has seen pending
                self._newest[lane] = max(self._newest[lane], row_id)
            turn_back(step.lowest)

        done = Requeued(0, (), {})
        begin: int | None = first
        while begin is not None:
            reply = self._asked(partial(_requeue, begin, last), writes=True)
            reply.add_done_callback(stepped)
            step, begin, _ = await asyncio.shield(reply)
            done = done.and_then(step)
        return done

    # --- further sinks ------------------------------------------------------------------------------------------------

    async def keep_sinks(self, names: Collection[str]) -> None:
        """Have a place in the history for exactly these sinks; a new one begins with the next message. Raises StorageError.

        Where opening found something missing it begins with the announcement of that: it may be old, and the database new.
        """
        self._writer.sinks = frozenset(names)
        begin = self.report.next_sequence if self.report.losses else None
        await self._ask(lambda tables: tables.cursors.keep(names, begin), writes=True)

    async def fetch_after(self, sink: str, limit: int) -> list[OutboxRecord]:
        """The next alarms and events for `sink`, in order of sequence; those it is done with count from `sink_done` on."""
        return await self._ask(lambda tables: tables.fetch_after(sink, limit))

    def sink_done(self, sink: str, sequence: int) -> None:
        """`sink` is done with everything up to `sequence`; on disk with one of the next commits."""
        self._jobs.done[sink] = sequence
        self._flush_in_a_while()

    async def sink_refused(self, sink: str, record: OutboxRecord, reason: str) -> None:
        """`sink` will never take `record`: announced, and passed over. Raises StorageError."""
        await self._ask(lambda tables: tables.pass_over(sink, record, reason), writes=True)

    async def sink_failed(self, sink: str) -> None:
        """Count a failed attempt for the next message of `sink`. Raises StorageError."""
        await self._ask(lambda tables: tables.cursors.count_attempt(sink), writes=True)

    async def sink_depth(self) -> dict[str, SinkDepth]:
        """How far each sink is behind."""
        return await self._ask(lambda tables: tables.cursors.depth(self._clock()))

    # --- commands -----------------------------------------------------------------------------------------------------

    async def accept_command(
        self, command_id: str, name: str, client: str, role: str, arguments: str
    ) -> CommandEntry | None:
        """Record a command before it is carried out; the earlier entry when its id is known. Raises StorageError."""
        return await self._ask(
            lambda tables: tables.commands.accept(command_id, name, client, role, arguments), writes=True
        )

    async def finish_command(self, command_id: str, state: str, answer: bytes) -> None:
        """Record the answer to a command. Raises StorageError."""
        await self._ask(lambda tables: tables.commands.finish(command_id, state, answer), writes=True)

    # --- inspection ---------------------------------------------------------------------------------------------------

    async def depth(self) -> dict[Lane, LaneDepth]:
        """What waits, per lane."""
        return await self._ask(Tables.depth)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The latest refused messages, newest first."""
        return await self._ask(lambda tables: select_dead_letters(tables.connection, limit))

    async def events(self, query: EventQuery) -> list[EventRow]:
        """The history of the alarm and event lanes; `query.limit` bounds how long commits wait for it."""
        return await self._ask(lambda tables: select_events(tables.connection, query))

    # --- life ---------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Commit what was put, checkpoint, close. May be called twice."""
        if not self._closing:
            self._closing = True
            self._jobs.stop = True
            self._flush()
        await self._stopped.wait()

    async def _ask(self, function: Callable[[Tables], T], *, writes: bool = False) -> T:
        return await self._asked(function, writes=writes)

    def _asked(self, function: Callable[[Tables], T], *, writes: bool = False) -> asyncio.Future[T]:
        self._refuse_when_closing()
        reply: asyncio.Future[T] = self._loop.create_future()
        self._jobs.asks.append(Ask(function, reply, writes))
        self._flush_this_turn()
        return reply

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise StorageError(f"{self._path}: closed")

    def _flush_this_turn(self) -> None:
        """Producers that run in the same turn of the event loop share a commit."""
        if not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self._flush)

    def _flush_in_a_while(self) -> None:
        if self._closing:
            self._flush_this_turn()
        elif not self._flush_soon and self._flush_later is None:
            self._flush_later = self._loop.call_later(_FORGET_WAIT_S, self._flush)

    def _flush(self) -> None:
        self._flush_soon = False
        if self._flush_later is not None:
            self._flush_later.cancel()
            self._flush_later = None
        if self._jobs:
            jobs, self._jobs = self._jobs, Jobs()
            self._writer.submit(jobs)

    def _post(self, outcome: Outcome) -> None:
        """On the writer thread."""
        try:
            self._loop.call_soon_threadsafe(self._settle, outcome)
        except RuntimeError:
            log.debug("outbox_loop_is_gone")  # the process is ending without close(); what was put is on disk

    def _settle(self, outcome: Outcome) -> None:
        if outcome.opened is not None:
            self._note_opened(outcome.opened)
        _give(outcome.answers)
        self._tell_losses(outcome.losses)
        if outcome.newest:
            for lane, row_id in outcome.newest.items():
                self._newest[lane] = max(self._newest[lane], row_id)
            for callback in self._on_commit:
                callback()
        if outcome.room is not None and outcome.room != self._room:
            self._tell_room(outcome.room)
        if outcome.stopped:
            self._closing = True
            self._stopped.set()
        if outcome.failure is not None:
            self._opened.set_exception(outcome.failure)

    def _tell_room(self, room: bool) -> None:
        self._room = room
        for callback in self._on_room:
            callback(room)

    def _tell_losses(self, losses: list[Loss]) -> None:
        for loss in losses:
            log.error(
                "messages_lost", reason=loss.reason.value, lane=loss.lane.name.lower() if loss.lane is not None else "",
                lost=loss.lost, first=loss.ranges and loss.ranges[0][0], last=loss.ranges and loss.ranges[-1][1], detail=loss.detail,
            )  # fmt: skip
        if not self._on_loss:
            self._first_losses += losses
        for callback in self._on_loss:
            for loss in losses:
                callback(loss)

    def _note_opened(self, report: OpenReport) -> None:
        if report.damage:
            log.error(
                "outbox_damaged", set_aside=report.set_aside and str(report.set_aside), damage=report.damage, skipped=report.skipped,
                sequence_known=report.sequence_known,
            )  # fmt: skip
        elif report.skipped is not None:
            log.error("outbox_sequence_skipped", skipped=report.skipped)
        if not self._opened.done():
            self._opened.set_result(report)
            return
        self._opened = self._loop.create_future()
        self._opened.set_result(report)
        for callback in self._on_reopened:
            callback(report)


def _give(answers: list[Answer]) -> None:
    for reply, result, error in answers:
        if reply is None or reply.done():  # nobody waits, or its caller was cancelled
            continue
        if error is None:
            reply.set_result(result)
        else:
            reply.set_exception(error)


def _requeue(first: int, last: int, tables: Tables) -> tuple[Requeued, int | None, dict[Lane, int]]:
    return *tables.requeue(first, last), tables.waiting.newest()
