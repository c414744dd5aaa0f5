"""The thread that owns the database connection: gathers jobs, commits them together, answers afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from agent.config.delivery import CommandsConfig, OutboxConfig
from agent.errors import StorageError, StorageFullError
from agent.outbox.clock import SteadyClock
from agent.outbox.database import open_database, sole_owner
from agent.outbox.faults import is_broken_connection, is_damage, storage_error
from agent.outbox.jobs import Answer, Ask, Jobs, Outcome, Put
from agent.outbox.limits import SLACK, history_us, max_bytes, parts
from agent.outbox.room import Room
from agent.outbox.sequence import SequenceReserve
from agent.outbox.tables import SEQUENCED, Row, Tables, message_row
from agent.outbox.upkeep import Upkeep
from agent.ports import Message
from agent.types import Lane, Loss, LossReason

log = structlog.get_logger(__name__)

Announce = Callable[[Loss, str], Message]

_DAMAGE_BELIEVED = 2
"""After so many errors a database whose check finds nothing is damaged all the same; one may come from elsewhere."""
_LAST_SEQUENCED = int(max(SEQUENCED))  # a set would compute the hash of a lane for every message, in Python


@dataclass(slots=True)
class _Batch:
    """A transaction on its way. next_id, next_sequence: what the next row gets; newest: row ids by lane."""

    next_id: int
    next_sequence: int
    now_us: int
    rows: list[Row] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    newest: dict[Lane, int] = field(default_factory=dict)


class Writer:
    """One thread, one connection.

    post: called on this thread with each Outcome; hands it to the event loop. clock: time by which ages count.
    announce: makes the message that tells subscribers of a Loss; None = losses are only reported in the Outcome. commands: how many there may be.
    """

    def __init__(
        self,
        path: Path,
        config: OutboxConfig,
        post: Callable[[Outcome], None],
        clock: SteadyClock,
        announce: Announce | None,
        *,
        commands: CommandsConfig,
    ) -> None:
        self.config = config
        self.sinks: frozenset[str] | None = None  # whose places a new file must have; None = nobody has said
        self._path = path
        self._post = post
        self._clock = clock
        self._announce = announce
        self._queue: queue.SimpleQueue[Jobs] = queue.SimpleQueue()
        self._reserve = SequenceReserve(path.with_name(path.name + ".sequence"))
        self._room = Room(path.with_name(path.name + ".reserve"), config.reserve_bytes)
        self._upkeep = Upkeep(clock, commands)
        self._tables: Tables | None = None
        self._damage_met = 0  # errors of this file that its check at opening had not found
        self._next_id = 1
        self._first_id = 0  # of this process, once the database has been opened
        self._next_sequence = 1
        self.series = ""  # until the database has been opened
        self._generation = 0
        self._renewed_at = 0  # the next sequence when the generation rose
        self._company = 1  # puts in the last commit: as many are likely to come again
        self._forget: set[int] = set()
        self._attempts: list[int] = []
        self._done: dict[str, int] = {}
        self._losses: list[Loss] = []
        self._given_up: Counter[tuple[Lane, LossReason]] = Counter()
        self._thread = threading.Thread(target=self._main, name="outbox-writer", daemon=True)

    def start(self) -> None:
        """Start the thread; the first Outcome says how opening went."""
        self._thread.start()

    def submit(self, jobs: Jobs) -> None:
        """Queue `jobs`; from any thread."""
        self._queue.put(jobs)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        with contextlib.ExitStack() as stack:
            outcome = Outcome()
            try:
                stack.enter_context(sole_owner(self._path))
                stack.callback(self._close)
                self._open_at_start(outcome)
            except Exception as error:  # noqa: BLE001 - nobody else would hear of it, and `open` would wait for ever
                problem = error if isinstance(error, StorageError) else StorageError(f"{self._path}: {error!r}")
                stack.close()  # whoever hears of it may open the file at once
                self._post(Outcome(failure=problem, stopped=True))
                return
            self._commit([], [], outcome)  # what opening found missing is announced before anything else is committed
            self._post(outcome)
            stopping = False
            while not stopping:
                jobs = self._gather()
                stopping = jobs.stop
                self._post(self._handle(jobs))
                if time.monotonic() >= self._upkeep.due_s or self._clock.jump_us:
                    self._post(self._maintain())
        self._post(Outcome(stopped=True))

    def _gather(self) -> Jobs:
        """Everything queued, and a moment's wait for the producers that shared the last commit."""
        try:
            jobs = self._queue.get(timeout=max(0.0, self._upkeep.due_s - time.monotonic()))
        except queue.Empty:
            return Jobs()
        deadline_s = 0.0
        while len(jobs.puts) < self.config.commit_max_rows and not jobs.stop:
            if self._queue.empty():
                if not 0 < len(jobs.puts) < self._company or jobs.asks:
                    break
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + self.config.commit_max_wait_ms / 1000
                if now_s >= deadline_s:
                    break
            with contextlib.suppress(queue.Empty):
                jobs.add(self._queue.get(timeout=max(0.0, deadline_s - time.monotonic())))
        return jobs

    def _handle(self, jobs: Jobs) -> Outcome:
        self._forget.update(jobs.forget)
        self._attempts += jobs.attempts
        self._done |= jobs.done
        if jobs.lost:
            self._given_up.update(jobs.lost)
        outcome = Outcome()
        changes = [ask for ask in jobs.asks if ask.writes]
        size = self.config.commit_max_rows
        self._commit(jobs.puts[:size], changes, outcome)
        for start in range(size, len(jobs.puts), size):
            self._commit(jobs.puts[start : start + size], [], outcome)
        for ask in jobs.asks:
            if not ask.writes:
                self._read(ask, outcome)
        return outcome

    def _commit(self, puts: list[Put], changes: list[Ask], outcome: Outcome) -> None:
        """One transaction: all of it or nothing, and the answers that belong to it."""
        if not (puts or changes or self._waiting()):
            return
        self._company = max(1, len(puts))
        try:
            batch = self._transact_where_room_is(puts, changes, outcome)
        except Exception as error:  # noqa: BLE001 - the thread must live on and those who wait must hear of it
            problem = self._roll_back(error)
            outcome.answers += [(reply, None, problem) for _, reply in puts]
            outcome.answers += [(ask.reply, None, problem) for ask in changes]
        else:
            for gone_along in (self._forget, self._attempts, self._done, self._losses, self._given_up):
                gone_along.clear()
            self._note(batch, outcome)

    def _waiting(self) -> bool:
        """Whether there is something that goes along with the next commit."""
        return bool(self._forget or self._attempts or self._done or self._losses or self._given_up)

    def _transact_where_room_is(self, puts: list[Put], changes: list[Ask], outcome: Outcome) -> _Batch:
        """A full disk gets a second try with the reserve, and a third with the alarms alone: one large event must not stop them."""
        try:
            return self._transact(puts, changes, outcome)
        except Exception as error:
            if not isinstance(self._roll_back(error), StorageFullError):
                raise
        self._room.release()
        outcome.room = False
        self._room.claim(self._open(outcome))
        alarms = [put for put in puts if put[0].lane is Lane.ALARM]
        try:
            return self._transact(puts, changes, outcome)
        except Exception as error:
            full = self._roll_back(error)
            if not isinstance(full, StorageFullError) or len(alarms) in {0, len(puts)}:
                raise
        batch = self._transact(alarms, changes, outcome)
        batch.answers += [(reply, None, full) for message, reply in puts if message.lane is not Lane.ALARM]
        return batch

    def _transact(self, puts: list[Put], changes: list[Ask], outcome: Outcome) -> _Batch:
        tables = self._open(outcome)
        batch = _Batch(self._next_id, self._next_sequence, self._clock())
        tables.begin()
        self._add(batch, self._admit(tables, puts, batch))
        self._insert(tables, batch, batch.rows)
        if self._forget or self._attempts or self._done:  # before what is asked for, such as to have it delivered again
            tables.delete(self._forget)
            tables.waiting.count_attempts(self._attempts)
            tables.cursors.advance(self._done)
        batch.answers += [(ask.reply, ask.function(tables), None) for ask in changes]
        for lane in batch.newest:
            self._keep_limit(tables, lane)
        if self._losses:
            tables.settle()
        batch.losses = self._losses + self._number_given_up(batch) + tables.losses
        self._insert(tables, batch, self._announcements(batch))
        if batch.next_sequence > self._next_sequence:
            self._reserve.cover(self._next_sequence, batch.next_sequence)
        tables.commit(batch.next_sequence, self._reserve.bound)
        return batch

    @staticmethod
    def _insert(tables: Tables, batch: _Batch, rows: list[Row]) -> None:
        if rows:
            tables.insert(rows)
        for lane, row_id in {row[1]: row[0] for row in rows}.items():  # the last one of each lane
            batch.newest[Lane(lane)] = row_id

    def _note(self, batch: _Batch, outcome: Outcome) -> None:
        """The transaction is on disk."""
        self._next_id, self._next_sequence = batch.next_id, batch.next_sequence
        outcome.newest.update(batch.newest)
        outcome.answers += batch.answers
        outcome.losses += batch.losses

    def _add(self, batch: _Batch, puts: list[Put]) -> None:
        """A row for each. A payload that fails is its producer's error and costs no number."""
        row_id, following, now_us = batch.next_id, batch.next_sequence, batch.now_us
        for message, reply in puts:
            try:
                number = following if message.lane <= _LAST_SEQUENCED else None
                row = message_row(message, row_id, number, message.payload(number), now_us)
            except Exception as error:  # noqa: BLE001 - whatever the producer's own function raises goes back to the producer
                batch.answers.append((reply, None, error))
                continue
            batch.rows.append(row)
            batch.answers.append((reply, number, None))
            row_id += 1
            if number is not None:
                following += 1
        batch.next_id, batch.next_sequence = row_id, following

    def _read(self, ask: Ask, outcome: Outcome) -> None:
        try:
            outcome.answers.append((ask.reply, ask.function(self._open(outcome)), None))
        except Exception as error:  # noqa: BLE001 - as in `_commit`
            outcome.answers.append((ask.reply, None, self._roll_back(error)))

    def _roll_back(self, error: Exception) -> Exception:
        """Undo the open transaction; returns what to tell those who wait.

        A connection that cannot be trusted any more is closed and opened anew by the next job.
        """
        problem = storage_error(error, self._path) if isinstance(error, sqlite3.Error | OSError) else error
        log.warning("outbox_write_failed", error=str(problem))
        if self._tables is not None:
            try:
                self._tables.roll_back()
            except sqlite3.Error:
                self._close()
        if isinstance(error, sqlite3.Error) and is_broken_connection(error):
            self._damage_met += is_damage(error)
            self._close()
        return problem

    # --- losses -------------------------------------------------------------------------------------------------------

    def _admit(self, tables: Tables, puts: list[Put], batch: _Batch) -> list[Put]:
        """Those that may come in; on a full disk perhaps only the alarms."""
        if not self._room.tight:
            return puts
        alarms = [put for put in puts if put[0].lane is Lane.ALARM]
        if self._room.make(tables, len(alarms), len(puts) - len(alarms)):
            return puts
        full = StorageFullError(f"{self._path}: no room left on the disk, what there is is kept for alarms")
        batch.answers += [(reply, None, full) for message, reply in puts if message.lane is not Lane.ALARM]
        return alarms

    def _keep_limit(self, tables: Tables, lane: Lane) -> None:
        limit = max_bytes(self.config, lane)
        while (excess := tables.size_bytes(lane) - limit) > 0:
            if tables.drop_oldest(lane, excess + int(limit * SLACK), LossReason.BYTES) == 0:
                break

    def _number_given_up(self, batch: _Batch) -> list[Loss]:
        """What never came in gets numbers as well: a hole that subscribers see, and that is announced."""
        losses = []
        for (lane, reason), count in self._given_up.items():
            first = batch.next_sequence
            if lane in SEQUENCED:
                batch.next_sequence += count
            runs = ((first, first + count - 1),) if lane in SEQUENCED else ()
            losses.append(Loss(reason, lane, runs, count))
        return losses

    def _announcements(self, batch: _Batch) -> list[Row]:
        if self._announce is None or not batch.losses:
            return []
        rows = []
        for loss in batch.losses:
            for part in parts(loss) if loss.ranges else ():
                message, number = self._announce(part, self.series), batch.next_sequence
                rows.append(message_row(message, batch.next_id, number, message.payload(number), batch.now_us))
                batch.next_id += 1
                batch.next_sequence += 1
        return rows

    # --- connection ---------------------------------------------------------------------------------------------------

    def _open_at_start(self, outcome: Outcome) -> None:
        """A full disk must not keep the agent from starting."""
        self._room.fit()
        try:
            self._open(outcome)
        except StorageFullError:
            self._room.release()
            self._open(outcome)
        else:
            self._room.prepare()
        outcome.room = not self._room.tight

    def _open(self, outcome: Outcome) -> Tables:
        """The tables, opened if need be. Row ids and sequences only rise, also across a new file."""
        if self._tables is None:
            known = "damage that its check does not find" if self._damage_met >= _DAMAGE_BELIEVED else ""
            connection, report = open_database(self._path, self._reserve, known)
            self._damage_met = 0 if report.created else self._damage_met
            try:
                self._room.bound_log(connection)
                tables = Tables(connection, self._clock)
                if report.created and self.sinks is not None:
                    tables.cursors.keep(self.sinks)
                self._next_id = max(self._next_id, tables.max_row_id() + 1)
                self._next_sequence = max(self._next_sequence, report.next_sequence)
                outcome.newest.update(tables.waiting.newest())
            except sqlite3.Error as error:
                connection.close()
                raise storage_error(error, self._path) from error
            self._tables = tables
            self._first_id = self._first_id or self._next_id
            self._generation, self.series = report.generation, report.series
            self._losses = list(report.losses)  # also those of an opening before it that were not announced
            outcome.opened = dataclasses.replace(report, next_sequence=self._next_sequence)
        return self._tables

    def _close(self) -> None:
        """Closing checkpoints the log, as the last connection."""
        if self._tables is not None:
            with contextlib.suppress(sqlite3.Error):
                self._tables.connection.close()
            self._tables = None

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def _maintain(self) -> Outcome:
        """One slice of what is due; what it gives up is announced in the same transaction."""
        outcome = Outcome()
        if self._room.recover():
            log.info("outbox_disk_has_space_again")
        self._upkeep.begin(tight=self._room.tight)
        renewed = self._generation + 1 if self._next_sequence > self._renewed_at else 0

        jump_us = self._clock.jump_us

        def work(tables: Tables) -> None:
            if jump_us:
                tables.waiting.shift(self._first_id, jump_us, self._clock(), history_us(self.config))
            else:
                self._upkeep.give_up(tables, self.config, self._first_id)
            if renewed:
                tables.set_generation(renewed)

        self._commit([], [Ask(work, None, writes=True)], outcome)
        if any(error is not None for _, _, error in outcome.answers) or self._tables is None:
            return outcome
        outcome.room = not self._room.tight
        if jump_us:
            self._clock.take_over(jump_us)
            log.warning("outbox_clock_jumped", by_s=round(jump_us / 1e6, 1))
        try:
            if renewed:
                self._generation, self._renewed_at = renewed, self._next_sequence
                self._reserve.renew(renewed)
            if not self._room.tight:
                self._upkeep.shrink(self._tables)
        except (sqlite3.Error, OSError) as error:
            self._roll_back(error)
        return outcome
