"""The desk over a real store: recorded before it is done, done once, answered where the sender listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.delivery import CommandsConfig, OutboxConfig
from agent.daemon.commands import CommandDesk
from agent.errors import DataError, RejectedError, StorageError, TransientError
from agent.mqtt.commands import Client, Command, sign_command
from agent.mqtt.topics import Topics
from agent.outbox.audit import CommandEntry, select_commands
from agent.outbox.store import OutboxStore
from agent.ports import Envelope, Received

KEY = b"k" * 32
TOPICS = Topics("recognizer", "box")


class Out:
    """Keeps what is published; the first publishes meet what `faults` says."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any], bytes]] = []
        self.faults: list[Exception] = []
        self.news = asyncio.Event()

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, envelope: Envelope | None = None
    ) -> None:
        assert not retain
        if self.faults:
            raise self.faults.pop(0)
        self.sent.append((topic, json.loads(payload), envelope.correlation_data if envelope else b""))
        self.news.set()

    async def answer(self) -> dict[str, Any]:
        """The next one."""
        async with asyncio.timeout(10):
            await self.news.wait()
        self.news.clear()
        return self.sent[-1][1]


class Office:
    """A desk with a store and three commands: `count` counts, `fail` fails, `break` has a bug."""

    def __init__(self, store: OutboxStore, config: CommandsConfig) -> None:
        self.store = store
        self.out = Out()
        self.counted: list[dict[str, Any]] = []
        self.broken = 0
        self.refuse_records = False
        handlers = {"count": self._count, "fail": self._fail, "break": self._break}
        clients = {"desk": Client("operator", KEY)}
        self.desk = CommandDesk(config, topics=TOPICS, store=self, out=self.out, handlers=handlers, clients=clients)

    async def _count(self, arguments: dict[str, Any], _command: Command) -> dict[str, Any]:
        self.counted.append(arguments)
        return {"count": len(self.counted)}

    async def _fail(self, _arguments: dict[str, Any], _command: Command) -> dict[str, Any]:
        raise DataError("not today")

    async def _break(self, _arguments: dict[str, Any], _command: Command) -> dict[str, Any]:
        self.broken += 1
        raise KeyError("no such thing")

    async def accept_command(
        self, command_id: str, name: str, client: str, role: str, arguments: str
    ) -> CommandEntry | None:
        return await self.store.accept_command(command_id, name, client, role, arguments)

    async def finish_command(self, command_id: str, state: str, answer: bytes) -> None:
        if self.refuse_records:
            raise StorageError("no room left on the disk")
        await self.store.finish_command(command_id, state, answer)

    async def ask(self, name: str, command_id: str, **more: Any) -> dict[str, Any]:
        self.desk.receive(message(name, command_id, **more))
        return await self.out.answer()

    async def record(self) -> list[CommandEntry]:
        return await self.store._ask(lambda tables: select_commands(tables.connection, 100))


def message(
    name: str,
    command_id: str,
    *,
    response_topic: str = "",
    correlation: bytes = b"",
    key: bytes = KEY,
    retain: bool = False,
) -> Received:
    expires = datetime.now(UTC) + timedelta(minutes=5)
    payload = sign_command(name, command_id, {"n": 1}, device="box", client="desk", key=key, expires_utc=expires)
    return Received(TOPICS.command(name), payload, 1, retain, response_topic, correlation)


CONFIG = CommandsConfig.model_validate(
    {"enabled": True, "roles": {"viewer": [], "operator": ["count", "fail", "break", "unknown"], "admin": []}}
)


@contextlib.asynccontextmanager
async def opened(path: Path, config: CommandsConfig = CONFIG) -> AsyncIterator[Office]:
    store = await OutboxStore.open(path, OutboxConfig(reserve_bytes=0))
    office = Office(store, config)
    work = asyncio.create_task(office.desk.run())
    try:
        yield office
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


async def test_a_command_is_carried_out_recorded_and_answered(path: Path) -> None:
    async with opened(path) as office:
        assert await office.ask("count", "a") == {"id": "a", "state": "done", "detail": "", "result": {"count": 1}}
        assert office.counted == [{"n": 1}]
        (entry,) = await office.record()
        assert (entry.command_id, entry.name, entry.client, entry.role) == ("a", "count", "desk", "operator")
        assert (entry.state, json.loads(entry.arguments)) == ("done", {"n": 1})
        assert office.out.sent[0][0] == "recognizer/box/cmd/count/result"


async def test_the_same_id_is_answered_again_and_not_done_again_also_after_a_restart(path: Path) -> None:
    async with opened(path) as office:
        first = await office.ask("count", "a")
        assert await office.ask("count", "a") == first
        assert len(office.counted) == 1
    async with opened(path) as office:
        assert await office.ask("count", "a") == first
        assert office.counted == []
        assert (await office.ask("fail", "a"))["state"] == "refused"  # the id of another command


async def test_a_command_that_a_crash_interrupted_is_done_when_it_comes_again(path: Path) -> None:
    async with opened(path) as office:
        await office.store.accept_command("a", "count", "desk", "operator", "{}")
        assert (await office.ask("count", "a"))["result"] == {"count": 1}


async def test_failure_is_an_answer(path: Path) -> None:
    async with opened(path) as office:
        assert await office.ask("fail", "a") == {"id": "a", "state": "failed", "detail": "not today"}
        assert (await office.record())[0].state == "failed"


async def test_what_is_refused_is_recorded_and_does_not_use_up_the_id(path: Path) -> None:
    async with opened(path) as office:
        office.desk.receive(message("count", "a", key=b"x" * 32))  # nobody knows whom to answer
        assert (await office.ask("unknown", "b"))["state"] == "refused"
        assert [entry.state for entry in await office.record()] == ["refused", "refused"]
        assert (await office.ask("count", "b"))["state"] == "done"


async def test_what_is_refused_is_on_record_with_its_sender_as_far_as_that_is_known(path: Path) -> None:
    expires = datetime.now(UTC) + timedelta(minutes=5)
    before = expires - timedelta(hours=1)
    late = sign_command("count", "late", {"n": 2}, device="box", client="desk", key=KEY, expires_utc=before)
    plain = json.dumps({"id": "plain", "expires": expires.isoformat(), "arguments": {"n": 3}}).encode()
    async with opened(path) as office:
        office.desk.receive(message("count", "forged", key=b"x" * 32))
        office.desk.receive(Received(TOPICS.command("count"), message("fail", "for another").payload, 1, retain=False))
        office.desk.receive(message("other", "other"))
        office.desk.receive(Received(TOPICS.command("count"), late, 1, retain=False))
        office.desk.receive(Received(TOPICS.command("count"), plain, 1, retain=False))
        while (await office.out.answer())["id"] != "plain":
            pass
        record = sorted(await office.record(), key=lambda entry: entry.t_utc)
    assert [
        (entry.command_id, entry.client, entry.role, json.loads(entry.arguments), entry.state) for entry in record
    ] == [
        ("", "", "", {}, "refused"),
        ("", "desk", "operator", {"n": 1}, "refused"),
        ("other", "desk", "operator", {"n": 1}, "refused"),
        ("late", "desk", "operator", {"n": 2}, "expired"),
        ("plain", "", "none", {}, "refused"),
    ]
    reasons = [json.loads(entry.answer or b"")["detail"] for entry in record]
    for said, reason in zip(
        ("Signature", "for the command 'fail'", "unknown command", "expired at", "may not"), reasons, strict=True
    ):
        assert said in reason


async def test_a_refused_command_of_a_known_client_is_never_taken_for_an_accepted_one(path: Path) -> None:
    async with opened(path) as office:
        assert (await office.ask("other", "a"))["state"] == "refused"
        assert (await office.ask("other", "a"))["state"] == "refused"
        first = await office.ask("count", "a")
        assert first["state"] == "done"
        assert (await office.ask("other", "a"))["state"] == "refused"
        assert await office.ask("count", "a") == first
        states = [(entry.command_id, entry.state) for entry in await office.record()]
    assert sorted(states) == [("a", "done"), ("a", "refused"), ("a", "refused"), ("a", "refused")]


async def test_answers_go_to_the_response_topic_with_its_data(path: Path) -> None:
    async with opened(path) as office:
        await office.ask("count", "a", response_topic="desk/answers", correlation=b"7")
        assert office.out.sent[-1][0] == "desk/answers"
        assert office.out.sent[-1][2] == b"7"


@pytest.mark.parametrize(
    "topic",
    ["recognizer/box/cmd/count", "recognizer/box/status", "recognizer/box/events/door/fight", "$SYS/x", "a/+/b", "#"],
)
async def test_a_response_topic_that_would_do_harm_is_not_used(path: Path, topic: str) -> None:
    async with opened(path) as office:
        await office.ask("count", "a", response_topic=topic)
        assert office.out.sent[-1][0] == "recognizer/box/cmd/count/result"


async def test_an_answer_is_sent_once_the_broker_is_back(path: Path) -> None:
    async with opened(path) as office:
        office.out.faults = [TransientError("offline")]
        assert (await office.ask("count", "a"))["state"] == "done"


async def test_an_answer_that_the_broker_refuses_holds_nobody_up(path: Path) -> None:
    async with opened(path) as office:
        office.out.faults = [RejectedError("not authorised", 0x87)]
        office.desk.receive(message("count", "a"))
        assert (await office.ask("count", "b"))["result"] == {"count": 2}


async def test_an_answer_for_which_the_broker_refuses_the_response_topic_goes_to_our_own(path: Path) -> None:
    async with opened(path) as office:
        office.out.faults = [RejectedError("not authorised", 0x87)]
        await office.ask("count", "a", response_topic="desk/answers", correlation=b"7")
        assert office.out.sent == [("recognizer/box/cmd/count/result", office.out.sent[0][1], b"7")]
        office.out.faults = [RejectedError("not authorised", 0x87)] * 2
        office.desk.receive(message("count", "b", response_topic="desk/answers"))
        assert (await office.ask("count", "c"))["result"] == {"count": 3}


async def test_a_retained_command_is_none(path: Path) -> None:
    async with opened(path) as office:
        office.desk.receive(message("count", "a", retain=True))
        assert (await office.ask("count", "b"))["result"] == {"count": 1}


async def test_a_flood_is_dropped_and_counted(path: Path) -> None:
    config = CONFIG.model_copy(update={"max_per_minute": 5})
    async with opened(path, config) as office:
        for n in range(50):
            office.desk.receive(message("count", f"c{n}"))
        async with asyncio.timeout(10):
            while len(office.out.sent) < 5:
                await asyncio.sleep(0.01)
        assert len(office.counted) == 5
        assert office.desk.dropped == 45


payloads = st.binary(max_size=200) | st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=140) | st.integers(),
        "expires": st.just((datetime.now(UTC) + timedelta(hours=1)).isoformat()) | st.text(max_size=20) | st.floats(),
        "arguments": st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.floats() | st.none(), max_size=3),
    },
).map(lambda members: json.dumps(members).encode())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["count", "fail", "other", "+", ""]), payloads), max_size=12))
def test_whatever_is_sent_the_desk_goes_on(commands: list[tuple[str, bytes]]) -> None:
    """A new store for each example: a file that remembers would make them depend on each other."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = CONFIG.model_copy(update={"unsigned_role": "operator", "max_per_minute": 1000})
            async with opened(Path(folder) / "events.db", config) as office:
                for name, payload in commands:
                    office.desk.receive(Received(f"recognizer/box/cmd/{name}", payload, 1, retain=False))
                office.out.news.clear()
                office.desk.receive(message("count", "the last"))
                async with asyncio.timeout(10):
                    while not office.out.sent or office.out.sent[-1][1]["id"] != "the last":
                        await asyncio.sleep(0.001)
                assert {answer["state"] for _, answer, _ in office.out.sent} <= {"done", "refused", "expired", "failed"}

    asyncio.run(main())


# --- whatever comes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expires", ["9999-12-31T23:59:59Z", 253_402_300_799, "0001-01-01T00:00:00Z"])
async def test_the_end_of_time_is_only_a_refusal(path: Path, expires: object) -> None:
    payload = json.dumps({"id": "a", "expires": expires}).encode()
    async with opened(path) as office:
        office.desk.receive(Received(TOPICS.command("count"), payload, 1, retain=False))
        assert (await office.out.answer())["state"] in {"refused", "expired"}
        assert (await office.ask("count", "b"))["state"] == "done"


async def test_a_bug_in_one_command_is_answered_and_stops_no_other(path: Path) -> None:
    async with opened(path) as office:
        assert (await office.ask("break", "a")) == {
            "id": "a", "state": "failed", "detail": "an error of the agent: KeyError",
        }  # fmt: skip
        assert (await office.ask("break", "a"))["state"] == "failed"
        assert office.broken == 1
        assert (await office.ask("count", "b"))["state"] == "done"


async def test_what_was_done_and_could_not_be_recorded_is_answered_as_done(path: Path) -> None:
    async with opened(path) as office:
        office.refuse_records = True
        assert (await office.ask("count", "a"))["state"] == "done"
        office.refuse_records = False
        assert (await office.ask("count", "b"))["state"] == "done"


async def test_what_is_refused_takes_little_room(path: Path) -> None:
    async with opened(path) as office:
        payload = json.dumps({"id": "a", "x" * 60_000: 1, "expires": "2026-01-01T00:00:00Z"}).encode()
        office.desk.receive(Received(f"recognizer/box/cmd/{'n' * 60_000}", payload, 1, retain=False))
        assert len((await office.out.answer())["detail"]) <= 500
        (entry,) = await office.record()
        assert len(entry.name) + len(entry.answer or b"") < 1000


async def test_an_answer_never_looks_like_a_command(path: Path) -> None:
    async with opened(path) as office:
        await office.ask("count", "a", response_topic="recognizer/box/cmd/result")
        assert office.out.sent[-1][0] == "recognizer/box/cmd/count/result"
