"""The thread that owns the database connection: gathers jobs, commits them together, answers afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from agent.config.schema import OutboxConfig
from agent.errors import StorageError
from agent.outbox.database import open_database, sole_owner
from agent.outbox.faults import is_broken_connection, storage_error
from agent.outbox.jobs import Answer, Ask, Jobs, Outcome, Put
from agent.outbox.sequence import SequenceReserve
from agent.outbox.tables import SEQUENCED, Row, Tables, message_row
from agent.types import Lane

log = structlog.get_logger(__name__)

_MAINTENANCE_EVERY_S = 60.0
_MAINTENANCE_ROWS = 1000
_US_PER_S = 1_000_000
_US_PER_DAY = 86_400 * _US_PER_S


class Writer:
    """One thread, one connection.

    post: called on this thread with each Outcome; hands it to the event loop.
    clock_us: wall clock, microseconds since 1970 UTC.
    """

    def __init__(
        self, path: Path, config: OutboxConfig, post: Callable[[Outcome], None], clock_us: Callable[[], int]
    ) -> None:
        self.config = config
        self._path = path
        self._post = post
        self._clock_us = clock_us
        self._queue: queue.SimpleQueue[Jobs] = queue.SimpleQueue()
        self._reserve = SequenceReserve(path.with_name(path.name + ".sequence"))
        self._tables: Tables | None = None
        self._next_id = 1
        self._next_sequence = 1
        self._company = 1  # puts in the last commit: as many are likely to come again
        self._forget: set[int] = set()
        self._attempts: list[int] = []
        self._purged_to = 0
        self._maintenance_due = time.monotonic() + _MAINTENANCE_EVERY_S
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
                self._open(outcome)
            except StorageError as error:
                self._post(Outcome(failure=error, stopped=True))
                return
            self._post(outcome)
            stopping = False
            while not stopping:
                jobs = self._gather()
                stopping = jobs.stop
                self._post(self._handle(jobs))
                if time.monotonic() >= self._maintenance_due:
                    self._maintain()
        self._post(Outcome(stopped=True))

    def _gather(self) -> Jobs:
        """Everything queued, and a moment's wait for the producers that shared the last commit."""
        jobs = Jobs()
        with contextlib.suppress(queue.Empty):
            jobs.add(self._queue.get(timeout=max(0.0, self._maintenance_due - time.monotonic())))
        deadline = time.monotonic() + self.config.commit_max_wait_ms / 1000
        while len(jobs.puts) < self.config.commit_max_rows and not jobs.stop:
            waits = 0 < len(jobs.puts) < self._company and not jobs.asks
            try:
                jobs.add(self._queue.get(waits, max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return jobs

    def _handle(self, jobs: Jobs) -> Outcome:
        self._forget.update(jobs.forget)
        self._attempts += jobs.attempts
        outcome = Outcome()
        changes = [ask for ask in jobs.asks if ask.writes]
        size = self.config.commit_max_rows
        for start in range(0, max(1, len(jobs.puts)), size):
            self._commit(jobs.puts[start : start + size], changes if start == 0 else [], outcome)
        for ask in jobs.asks:
            if not ask.writes:
                self._read(ask, outcome)
        return outcome

    def _commit(self, puts: list[Put], changes: list[Ask], outcome: Outcome) -> None:
        """One transaction: all of it or nothing, and the answers that belong to it."""
        if not (puts or changes or self._forget or self._attempts):
            return
        self._company = max(1, len(puts))
        answers: list[Answer] = []
        try:
            tables = self._open(outcome)
            tables.connection.execute("BEGIN IMMEDIATE")
            rows, next_sequence = self._rows(puts, answers)
            if rows:
                self._reserve.cover(self._next_sequence, next_sequence)
                tables.insert(rows, next_sequence)
            answers += [Answer(ask.reply, ask.function(tables)) for ask in changes]
            tables.delete(self._forget)
            tables.count_attempts(self._attempts)
            tables.connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the thread must live on and those who wait must hear of it
            problem = self._roll_back(error)
            outcome.answers += [Answer(put.reply, error=problem) for put in puts]
            outcome.answers += [Answer(ask.reply, error=problem) for ask in changes]
            return
        self._forget.clear()
        self._attempts.clear()
        if rows:
            self._next_sequence = next_sequence
            self._next_id = rows[-1][0] + 1
            outcome.newest.update({Lane(row[1]): row[0] for row in rows})
        outcome.answers += answers

    def _rows(self, puts: list[Put], answers: list[Answer]) -> tuple[list[Row], int]:
        """The rows to insert and the sequence after them. A payload that fails is its producer's error and costs no number."""
        rows: list[Row] = []
        sequence, now_us = self._next_sequence, self._clock_us()
        for put in puts:
            number = sequence if put.message.lane in SEQUENCED else None
            try:
                payload = put.message.payload(number)
                rows.append(message_row(put.message, self._next_id + len(rows), number, payload, now_us))
            except Exception as error:  # noqa: BLE001 - whatever the producer's own function raises goes back to the producer
                answers.append(Answer(put.reply, error=error))
                continue
            answers.append(Answer(put.reply, number))
            sequence += number is not None
        return rows, sequence

    def _read(self, ask: Ask, outcome: Outcome) -> None:
        try:
            outcome.answers.append(Answer(ask.reply, ask.function(self._open(outcome))))
        except Exception as error:  # noqa: BLE001 - as in `_commit`
            outcome.answers.append(Answer(ask.reply, error=self._roll_back(error)))

    def _roll_back(self, error: Exception) -> Exception:
        """Undo the open transaction; returns what to tell those who wait.

        A connection that cannot be trusted any more is closed and opened anew by the next job.
        """
        problem = storage_error(error, self._path) if isinstance(error, sqlite3.Error | OSError) else error
        log.warning("outbox_write_failed", error=str(problem))
        if self._tables is not None:
            try:
                if self._tables.connection.in_transaction:
                    self._tables.connection.execute("ROLLBACK")
                self._tables.recount()
            except sqlite3.Error:
                self._close()
        if isinstance(error, sqlite3.Error) and is_broken_connection(error):
            self._close()
        return problem

    # --- connection ---------------------------------------------------------------------------------------------------

    def _open(self, outcome: Outcome) -> Tables:
        """The tables, opened if need be. Row ids and sequences only rise, also across a new file."""
        if self._tables is None:
            connection, report = open_database(self._path, self._reserve)
            try:
                tables = Tables(connection, self._clock_us)
                self._next_id = max(self._next_id, tables.max_row_id() + 1)
                self._next_sequence = max(self._next_sequence, report.next_sequence)
                outcome.newest.update(tables.newest())
            except sqlite3.Error as error:
                connection.close()
                raise storage_error(error, self._path) from error
            self._tables = tables
            self._purged_to = 0
            outcome.opened = dataclasses.replace(report, next_sequence=self._next_sequence)
        return self._tables

    def _close(self) -> None:
        """Closing checkpoints the log, as the last connection."""
        if self._tables is not None:
            with contextlib.suppress(sqlite3.Error):
                self._tables.connection.close()
            self._tables = None

    def _maintain(self) -> None:
        """Drop what is too old, a slice at a time so that no commit waits long; soon again when there is more."""
        self._maintenance_due = time.monotonic() + _MAINTENANCE_EVERY_S
        if self._tables is None:
            return
        try:
            self._tables.connection.execute("BEGIN IMMEDIATE")
            more = self._drop_old(self._tables)
            self._tables.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(error)
            return
        if more:
            self._maintenance_due = time.monotonic() + 1.0

    def _drop_old(self, tables: Tables) -> bool:
        now_us, more = self._clock_us(), False
        for lane, max_age_s in (
            (Lane.STATE, self.config.state_max_age_s),
            (Lane.TELEMETRY, self.config.telemetry_max_age_s),
        ):
            before_us = now_us - int(max_age_s * _US_PER_S)
            more |= tables.expire(lane, before_us, _MAINTENANCE_ROWS) == _MAINTENANCE_ROWS
        before_us = now_us - int(self.config.history_days * _US_PER_DAY)
        last = tables.purge_history(before_us, _MAINTENANCE_ROWS, self._purged_to)
        self._purged_to = last or 0
        return more or last is not None


def age_limit_us(config: OutboxConfig, lane: Lane, now_us: int) -> int:
    """Rows of `lane` committed before this are too old to be sent; 0 where there is no limit."""
    limits: dict[Lane, Any] = {Lane.STATE: config.state_max_age_s, Lane.TELEMETRY: config.telemetry_max_age_s}
    return now_us - int(limits[lane] * _US_PER_S) if lane in limits else 0
