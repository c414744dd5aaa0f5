"""The store against a model of it: whatever is put, fetched, deleted, buried, crashed and reopened in any order."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.config.delivery import OutboxConfig
from agent.outbox.history import EventQuery
from agent.outbox.store import OutboxStore
from agent.outbox.tables import SEQUENCED
from agent.ports import Message
from agent.types import Lane

T = TypeVar("T")


@dataclass
class Row:
    """A message as the model knows it."""

    row_id: int
    lane: Lane
    sequence: int | None
    name: str
    topic: str
    attempts: int = 0


class OutboxMachine(RuleBasedStateMachine):
    """A crash is a copy of the files while the store is open: what a killed process leaves behind."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.generation = 0
        self.pending: list[Row] = []
        self.delivered: list[Row] = []
        self.dead: list[Row] = []
        self.next_sequence = 1
        self.names = 0
        self.store = self.run(OutboxStore.open(self.path, OutboxConfig(commit_max_rows=4)))

    @property
    def path(self) -> Path:
        return self.folder / str(self.generation) / "events.db"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def message(self, lane: Lane, topic: str, *, fails: bool = False) -> Message:
        self.names += 1
        name = f"m{self.names}"

        def payload(sequence: int | None) -> bytes:
            if fails:
                raise ValueError(name)
            return f"{name} {sequence}".encode()

        return Message(lane, name, topic, payload)

    @rule(
        batch=st.lists(st.tuples(st.sampled_from(Lane), st.sampled_from("abc"), st.booleans()), min_size=1, max_size=9)
    )
    def put(self, batch: list[tuple[Lane, str, bool]]) -> None:
        messages = [(self.message(lane, topic, fails=fails), fails) for lane, topic, fails in batch]

        async def put_all() -> list[int | BaseException | None]:
            return await asyncio.gather(*(self.store.put(message) for message, _ in messages), return_exceptions=True)

        for (message, fails), result in zip(messages, self.run(put_all()), strict=True):
            if fails:
                assert isinstance(result, ValueError)
                continue
            expected = self.next_sequence if message.lane in SEQUENCED else None
            assert result == expected
            self.next_sequence += expected is not None
            if message.lane is Lane.STATE:
                self.pending = [row for row in self.pending if (row.lane, row.topic) != (Lane.STATE, message.topic)]
            self.pending.append(Row(0, message.lane, expected, message.event_id, message.topic))
        self.learn_row_ids()

    def learn_row_ids(self) -> None:
        found = {record.event_id: record for lane in Lane for record in self.run(self.store.fetch(lane, 10_000))}
        assert set(found) == {row.name for row in self.pending}
        for row in self.pending:
            row.row_id = found[row.name].row_id

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), wait=st.booleans())
    def delete(self, data: st.DataObject, wait: bool) -> None:
        rows = data.draw(st.lists(st.sampled_from(self.pending), unique_by=id, max_size=5))
        ids = [row.row_id for row in rows]
        if wait:
            self.run(self.store.delete(ids))
        else:
            self.run(self.forget(ids))
        self.pending = [row for row in self.pending if row not in rows]
        self.delivered += rows

    async def forget(self, ids: list[int]) -> None:
        self.store.forget(ids)
        await self.store.delete([])  # takes the forgotten along

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.pending))
        assert self.run(self.store.dead_letter(row.row_id, "refused"))
        assert not self.run(self.store.dead_letter(row.row_id, "refused"))
        self.pending.remove(row)
        self.dead.append(row)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def fail_an_attempt(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.pending))
        row.attempts += 1

        async def mark() -> None:
            self.store.mark_attempt([row.row_id])
            await self.store.delete([])

        self.run(mark())

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        before = self.path.parent
        self.generation += 1
        if crash:
            shutil.copytree(before, self.path.parent)
            self.run(self.store.close())
        else:
            self.run(self.store.close())
            shutil.copytree(before, self.path.parent)
        shutil.rmtree(before)
        self.store = self.run(OutboxStore.open(self.path, OutboxConfig(commit_max_rows=4)))
        assert self.store.report.next_sequence == self.next_sequence
        assert not self.store.report.created
        assert self.store.report.skipped is None

    @invariant()
    def outbox_holds_what_is_pending(self) -> None:
        for lane in Lane:
            records = self.run(self.store.fetch(lane, 10_000))
            rows = [row for row in self.pending if row.lane is lane]
            assert [(r.row_id, r.sequence, r.event_id, r.attempts) for r in records] == [
                (row.row_id, row.sequence, row.name, row.attempts) for row in rows
            ]
            assert all(record.payload == f"{record.event_id} {record.sequence}".encode() for record in records)
            assert self.store.newest[lane] >= max((row.row_id for row in rows), default=0)

    @invariant()
    def depth_counts_it(self) -> None:
        depth = self.run(self.store.depth())
        for lane in Lane:
            rows = [row for row in self.pending if row.lane is lane]
            assert depth[lane].rows == len(rows)
            assert depth[lane].size_bytes == sum(len(f"{row.name} {row.sequence}") for row in rows)

    @invariant()
    def history_has_every_sequence_once(self) -> None:
        rows = self.run(self.store.events(EventQuery(limit=None)))
        assert [row.sequence for row in rows] == list(range(1, self.next_sequence))
        fate = {row.name: "pending" for row in self.pending}
        fate |= {row.name: "delivered" for row in self.delivered} | {row.name: "dead" for row in self.dead}
        assert all(fate[row.event_id] == row.delivery for row in rows)
        assert {letter.event_id for letter in self.run(self.store.dead_letters(10_000))} == {
            row.name for row in self.dead
        }

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        shutil.rmtree(self.folder)


QUICK = settings(max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=150, stateful_step_count=40)

TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = QUICK


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestOutboxAtLength(OutboxMachine.TestCase):  # type: ignore[name-defined,misc]
    """The same with thousands of steps."""

    settings = LONG
