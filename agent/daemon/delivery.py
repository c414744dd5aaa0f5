"""Everything between the event database and the broker: the client, the relay, commands, Home Assistant, and the last words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from agent.config.delivery import OutboxConfig
from agent.config.schema import AgentConfig
from agent.daemon.commands import CommandDesk, Handler
from agent.daemon.homeassistant import HomeAssistant
from agent.daemon.monitor import as_payload, camera_report
from agent.errors import RejectedError, TransientError
from agent.health.reasons import HealthState, Reason
from agent.mqtt.client import MqttClient
from agent.mqtt.commands import load_clients
from agent.mqtt.seal import Seal
from agent.mqtt.topics import Topics
from agent.observe.metrics import Metrics
from agent.outbox.doubts import Doubts
from agent.outbox.limits import max_age_us
from agent.outbox.relay import Relay, RelayStats
from agent.outbox.store import OutboxStore
from agent.ports import Envelope
from agent.throttle import Throttle
from agent.types import CameraPhase, CameraStatus, Lane

_log = structlog.get_logger(__name__)

GOODBYE_S = 1.5

Start = Callable[[str, Callable[[], Any]], asyncio.Task[None]]
"""Runs a part under a name, supervised."""


class Delivery:
    """Made before anything else is opened, so that unusable keys and certificates are found at once. Raises ConfigError."""

    def __init__(self, config: AgentConfig, topics: Topics, *, metrics: Metrics, health: HealthState) -> None:
        self._config = config
        self._topics = topics
        self._metrics = metrics
        self._health = health
        self._throttle = Throttle(config.mqtt.max_bytes_per_s, time.monotonic)
        self._seal = Seal.of(config.mqtt, config.device_id)
        self._clients = load_clients(config.commands)
        self._mqtt = MqttClient(config.mqtt, topics, self._throttle)
        self._homeassistant = HomeAssistant(config, topics, self._mqtt) if config.mqtt.discovery.enabled else None
        self._relay: Relay
        self._task: asyncio.Task[None]

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, start: Start, store: OutboxStore, handlers: Mapping[str, Handler]) -> None:
        """handlers: of the commands, by name."""
        config = self._config
        self._mqtt.on_connected(self._on_connected)
        self._mqtt.on_disconnected(self._on_disconnected)
        self._mqtt.on_subscribed(self._on_subscribed)
        self._relay = Relay(
            store, self._mqtt, max_in_flight=config.mqtt.max_in_flight, backoff=config.mqtt.reconnect,
            throttle=self._throttle, doubts=Doubts(config.mqtt.give_up_after, config.mqtt.give_up_after_s),
            max_age_s=_max_ages_s(config.outbox), seal=self._seal,
        )  # fmt: skip
        if config.commands.enabled:
            desk = CommandDesk(
                config.commands,
                topics=self._topics,
                store=store,
                out=self._mqtt,
                handlers=handlers,
                clients=self._clients,
            )
            self._mqtt.subscribe(self._topics.commands, desk.receive)
            start("commands", desk.run)
        self._task = start("mqtt", self._mqtt.run)
        start("relay", self._relay.run)

    def reconfigure(self, config: AgentConfig) -> None:
        """Apply the keys that may change while running."""
        self._config = config
        self._throttle.reconfigure(config.mqtt.max_bytes_per_s)
        self._relay.max_age_s = _max_ages_s(config.outbox)
        if self._homeassistant is not None:
            self._homeassistant.reconfigure(config)

    async def say_goodbye(self, waiting: Callable[[], Any]) -> None:
        """Let the broker take what is waiting, for a moment; the rest is delivered after the next start.

        waiting: awaited, whether something waits.
        """
        await self._announce_cameras_offline()
        deadline = asyncio.get_running_loop().time() + GOODBYE_S
        while self._mqtt.connected and await waiting():
            if asyncio.get_running_loop().time() > deadline:
                _log.warning("stopped_with_messages_waiting")
                break
            await asyncio.sleep(0.05)
        self._task.cancel()  # says `offline` on its way out
        await asyncio.wait([self._task])

    async def _announce_cameras_offline(self) -> None:
        for camera in self._config.cameras:
            status = CameraStatus(camera.id, CameraPhase.OFFLINE, 0.0, 0, 0, 0, 0, 0, "the agent has stopped")
            try:
                async with asyncio.timeout(GOODBYE_S / 2):
                    payload = as_payload(camera_report(status))
                    await self._mqtt.publish(self._topics.camera_state(camera.id), payload, retain=True)
            except (TimeoutError, TransientError, RejectedError):
                return

    # --- for the others -----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._mqtt.connected

    @property
    def stats(self) -> RelayStats:
        """Of the relay."""
        return self._relay.stats

    def put_state(self, topic: str, document: dict[str, Any]) -> None:
        """State is worth nothing once it is old: the newest is kept in memory for the next connection, not in the outbox."""
        self._mqtt.retain(topic, as_payload(document))

    async def publish(self, topic: str, payload: bytes, envelope: Envelope) -> None:
        """Now or never. Raises TransientError, RejectedError."""
        await self._mqtt.publish(topic, payload, envelope=envelope)

    def turn_back(self, lowest: Mapping[Lane, int]) -> None:
        """See `Relay.turn_back`."""
        self._relay.turn_back(lowest)

    # --- what the client tells ----------------------------------------------------------------------------------------

    def _on_connected(self) -> None:
        self._metrics.set_mqtt_connected(connected=True)
        self._health.clear_reason(Reason.MQTT_OFFLINE)

    def _on_disconnected(self) -> None:
        self._metrics.set_mqtt_connected(connected=False)
        self._health.raise_reason(Reason.MQTT_OFFLINE, self._mqtt.status().error)

    def _on_subscribed(self) -> None:
        refused = self._mqtt.status().refused
        detail = ", ".join(f"{name}: {why}" for name, why in refused.items())
        self._health.set_reason(Reason.MQTT_SUBSCRIPTION, bool(refused), detail)


async def discard(store: OutboxStore) -> None:
    """Without a broker the history is kept and nothing is queued for delivery."""
    committed = asyncio.Event()
    store.on_commit(committed.set)
    while True:
        committed.clear()
        for lane in Lane:
            while records := await store.fetch(lane, 256):
                await store.delete([record.row_id for record in records])
        await committed.wait()


def _max_ages_s(config: OutboxConfig) -> dict[Lane, float]:
    """How long a message of each lane is worth keeping."""
    return {lane: max_age_us(config, lane) / 1e6 for lane in Lane}
