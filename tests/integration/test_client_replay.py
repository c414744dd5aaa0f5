"""A subscriber whose session the broker forgot gets everything from the agent's own history: store, relay, commands, client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fakes.brokers import Mosquitto
from fakes.event_agent import message

from agent.client import ReceivedEvent, Subscription, subscribe
from agent.config.delivery import CommandsConfig, MqttConfig, OutboxConfig
from agent.config.sections import BackoffConfig
from agent.daemon.commands import CommandDesk
from agent.mqtt.client import MqttClient
from agent.mqtt.commands import Command, load_clients
from agent.mqtt.topics import Topics
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.types import Lane

pytestmark = pytest.mark.mosquitto

TOPICS = Topics("recognizer", "box")
FAST = BackoffConfig(initial_s=0.05, max_s=0.2)


class Box:
    """An agent's way out and its command `replay-events`. The relay is started anew after it: it then begins with the oldest."""

    def __init__(self, store: OutboxStore, mqtt: MqttClient, config: CommandsConfig) -> None:
        self.store = store
        self._mqtt = mqtt
        self._relay: asyncio.Task[None] | None = None
        self.desk = CommandDesk(
            config, topics=TOPICS, store=store, out=mqtt, handlers={"replay-events": self._replay},
            clients=load_clients(config),
        )  # fmt: skip
        mqtt.subscribe(TOPICS.commands, self.desk.receive)

    async def start_relay(self) -> None:
        await self.stop_relay()
        self._relay = asyncio.create_task(Relay(self.store, self._mqtt, backoff=FAST).run())

    async def stop_relay(self) -> None:
        if self._relay is not None:
            self._relay.cancel()
            await asyncio.wait([self._relay])

    async def _replay(self, arguments: dict[str, Any], _command: Command) -> dict[str, Any]:
        done = await self.store.requeue(arguments["first"], arguments["last"])
        await self.start_relay()
        return {"sent": done.found, "missing": [list(run) for run in done.missing]}

    async def put(self, count: int) -> None:
        for n in range(count):
            await self.store.put(message(TOPICS, Lane.ALARM if n % 3 == 0 else Lane.EVENT))
        async with asyncio.timeout(20):
            while any(depth.rows for depth in (await self.store.depth()).values()):
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(path: Path, broker: Mosquitto, config: CommandsConfig) -> AsyncIterator[Box]:
    store = await OutboxStore.open(path, OutboxConfig())
    mqtt = MqttClient(MqttConfig(port=broker.port, reconnect=FAST), TOPICS)
    box = Box(store, mqtt, config)
    tasks = [asyncio.create_task(mqtt.run()), asyncio.create_task(box.desk.run())]
    try:
        await mqtt.wait_connected()
        await box.start_relay()
        yield box
    finally:
        await box.stop_relay()
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait([task])
        await store.close()


async def sequences(events: Subscription, count: int) -> list[int]:
    found = []
    async with asyncio.timeout(20):
        while len(found) < count:
            item = await anext(events)
            assert isinstance(item, ReceivedEvent), item
            found.append(item.sequence)
    await events.handled()
    return found


async def connected(events: Subscription) -> None:
    async with asyncio.timeout(10):
        while not events.connected:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("signed", [True, False])
async def test_what_nobody_kept_for_the_subscriber_comes_from_the_device(
    mosquitto: Mosquitto, tmp_path: Path, signed: bool
) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 64)
    key.chmod(0o600)
    name = {"command_client": "archive", "command_key_file": key} if signed else {}
    clients = {"archive": {"role": "operator", "key_file": str(key)}}
    config = CommandsConfig.model_validate(
        {"enabled": True, "clients": clients, "unsigned_role": "none" if signed else "operator"}
    )
    options: dict[str, Any] = {
        "state_file": tmp_path / "state.json", "session_expiry_s": 1, "grace_s": 0.3, "replay": True, **name,
    }  # fmt: skip
    address = f"mqtt://127.0.0.1:{mosquitto.port}"
    async with running(tmp_path / "events.db", mosquitto, config) as box:
        async with subscribe(address, **options) as events:
            await connected(events)
            await box.put(5)
            assert sorted(await sequences(events, 5)) == [1, 2, 3, 4, 5]
        await asyncio.sleep(2.5)  # the broker forgets its session
        await box.put(20)
        async with subscribe(address, **options) as events:
            await connected(events)
            await box.put(1)
            assert (await sequences(events, 1)) == [26]
            assert sorted(await sequences(events, 20)) == list(range(6, 26))
            answer = await events.replay("box", 20, 30)
            assert (answer.state, answer.sent, answer.missing) == ("done", 7, ((27, 30),))
            with pytest.raises(TimeoutError):  # they came before
                async with asyncio.timeout(1.0):
                    pytest.fail(f"unexpected: {await anext(events)}")


async def test_many_holes_at_once_do_not_meet_the_limits_of_the_device(mosquitto: Mosquitto, tmp_path: Path) -> None:
    path, address = tmp_path / "state.json", f"mqtt://127.0.0.1:{mosquitto.port}"
    config = CommandsConfig(enabled=True, unsigned_role="operator")
    async with running(tmp_path / "events.db", mosquitto, config) as box:
        async with subscribe(address, state_file=path) as events:
            await connected(events)
            await box.put(120)
            await sequences(events, 120)
        state = json.loads(path.read_bytes())
        state["devices"]["box"]["holes"] = [[number, number, "open"] for number in range(2, 121, 2)]
        path.write_text(json.dumps(state))  # as if every second one had been lost on the way
        async with subscribe(address, state_file=path, grace_s=2.0, replay=True) as events:
            assert sorted(await sequences(events, 60)) == list(range(2, 121, 2))
        assert box.desk.dropped == 0


async def test_who_may_not_ask_is_told_so(mosquitto: Mosquitto, tmp_path: Path) -> None:
    async with running(tmp_path / "events.db", mosquitto, CommandsConfig(enabled=True)) as box:
        await box.put(5)
        address = f"mqtt://127.0.0.1:{mosquitto.port}"
        async with subscribe(address, client_id="archive", grace_s=0.3, replay=True) as events:
            await connected(events)
            await box.put(1)
            await sequences(events, 1)
            answer = await events.replay("box", 1, 5)
            assert answer.state == "refused"
            assert "may not" in answer.detail
