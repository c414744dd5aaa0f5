"""Rows that no agent wrote: a bit that flipped where SQLite does not look, or somebody with a tool. They must not stop the others."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.commands import events as events_command
from agent.config.delivery import OutboxConfig
from agent.config.sections import BackoffConfig
from agent.errors import RejectedError, TransientError
from agent.outbox.history import EventArchive, EventQuery
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Envelope, Message
from agent.types import Lane

CONFIG = OutboxConfig(reserve_bytes=0)
COLUMNS = (
    "sequence", "event_id", "topic", "payload", "content_type", "retain", "kind", "phase", "camera_id", "t_event_us",
    "t_created_us",
)  # fmt: skip

values = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False), st.binary(max_size=40), st.text(max_size=20),
    st.sampled_from([0, -1, 1 << 62, "", b"", b"\xff\xfe", "\x00", "a/+/#", b'{"a":' * 3000]),
)  # fmt: skip
changes = st.lists(st.tuples(st.integers(1, 6), st.sampled_from(COLUMNS), values), min_size=1, max_size=6)


class Link:
    """Accepts what MQTT can carry."""

    connected = True
    receive_maximum = 10

    def __init__(self) -> None:
        self.accepted: list[bytes] = []

    async def wait_connected(self) -> None:
        raise TransientError("never asked")

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, envelope: Envelope | None = None
    ) -> None:
        assert isinstance(topic, str)
        assert isinstance(payload, bytes)
        await asyncio.sleep(0)
        if not topic or any(sign in topic for sign in "+#\x00"):
            raise RejectedError("no topic", 0x90)
        self.accepted.append(payload)


def spoil(path: Path, wanted: list[tuple[int, str, Any]]) -> None:
    """Write the values where SQLite lets them in."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for row_id, column, value in wanted:
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute(f"UPDATE messages SET {column} = ? WHERE message_id = ?", (value, row_id))


@settings(max_examples=40, deadline=None)
@given(changes)
def test_spoilt_rows_stop_nothing(wanted: list[tuple[int, str, Any]]) -> None:
    async def main(path: Path) -> None:
        store = await OutboxStore.open(path, CONFIG)
        for n in range(6):
            await store.put(Message(Lane.ALARM if n % 2 else Lane.EVENT, f"id-{n}", "t", lambda _: b"{}", kind="fight"))
        await store.close()
        spoil(path, wanted)
        store = await OutboxStore.open(path, CONFIG)
        await store.keep_sinks(["sink"])
        link = Link()
        relay = Relay(store, link, backoff=BackoffConfig(initial_s=0.001, max_s=0.002))
        task = asyncio.create_task(relay.run())
        await store.put(Message(Lane.ALARM, "last", "t", lambda _: b"last"))
        async with asyncio.timeout(10):
            while any(depth.rows for depth in (await store.depth()).values()):
                assert not task.done(), task
                await asyncio.sleep(0.002)
        assert b"last" in link.accepted
        await store.events(EventQuery(limit=None))
        assert (await store.fetch_after("sink", 10))[-1].event_id == "last"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await store.close()
        with EventArchive(path) as archive:
            rows = list(archive.events(EventQuery()))
            archive.export(EventQuery(), io.StringIO(), "jsonl")
            archive.export(EventQuery(), io.StringIO(), "csv")
        for row in rows:
            with contextlib.redirect_stdout(io.StringIO()):
                events_command._list([row], path.parent, as_json=False)
                events_command._list([row], path.parent, as_json=True)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder) / "events.db"))


@pytest.mark.parametrize("value", [b"\xff", 7, "text"])
def test_a_payload_that_is_not_bytes_arrives_as_bytes(tmp_path: Path, value: object) -> None:
    async def main() -> list[Any]:
        store = await OutboxStore.open(tmp_path / "events.db", CONFIG)
        await store.put(Message(Lane.EVENT, "id", "t", lambda _: b"{}"))
        await store.close()
        spoil(tmp_path / "events.db", [(1, "payload", value)])
        store = await OutboxStore.open(tmp_path / "events.db", CONFIG)
        records = await store.fetch(Lane.EVENT, 10)
        await store.close()
        return list(records)

    (record,) = asyncio.run(main())
    assert record.payload == (value if isinstance(value, bytes) else str(value).encode())
