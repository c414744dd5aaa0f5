"""Tells Home Assistant what there is: when the agent starts, when its cameras change, when Home Assistant comes back."""

from __future__ import annotations

import asyncio
import json
import random

import structlog

from agent import __version__
from agent.config.schema import AgentConfig
from agent.mqtt.client import MqttClient
from agent.mqtt.discovery import announced, discovery_document, discovery_topic
from agent.mqtt.topics import Topics
from agent.ports import Received

_log = structlog.get_logger(__name__)

SPREAD_S = 3.0
"""After Home Assistant's start each device waits at random up to this long: all of them hear of it at once."""


class HomeAssistant:
    """Made before the client runs. Entities of the message that an earlier run left at the broker, and that are gone, are taken back."""

    def __init__(self, config: AgentConfig, topics: Topics, mqtt: MqttClient) -> None:
        self._config = config
        self._topics = topics
        self._mqtt = mqtt
        self._topic = discovery_topic(config.mqtt.discovery.prefix, topics)
        self._removed: dict[str, str] = {}
        mqtt.subscribe(self._topic, self._on_own_message)
        mqtt.subscribe(f"{config.mqtt.discovery.prefix}/status", self._on_status)
        mqtt.on_subscribed(self._announce)  # not before: what lies there would be gone unread

    def reconfigure(self, config: AgentConfig) -> None:
        """Cameras and services are others now."""
        before = self._document()["components"]
        self._config = config
        self._take_back({entity_id: entity["platform"] for entity_id, entity in before.items()})
        self._announce()

    def _document(self) -> dict[str, dict[str, dict[str, str]]]:
        return discovery_document(self._config, self._topics, __version__, self._removed)

    def _announce(self) -> None:
        self._mqtt.retain(self._topic, json.dumps(self._document(), ensure_ascii=False).encode())

    def _on_own_message(self, message: Received) -> None:
        if self._take_back(announced(message.payload)):
            self._announce()

    def _take_back(self, entities: dict[str, str]) -> bool:
        """Remember those that are gone; whether there are new ones among them."""
        wanted = self._document()["components"]
        gone = {entity_id: platform for entity_id, platform in entities.items() if entity_id not in wanted}
        if gone:
            _log.info("homeassistant_entities_removed", entities=sorted(gone))
            self._removed |= gone
        return bool(gone)

    def _on_status(self, message: Received) -> None:
        if message.payload == b"online" and not message.retain:
            loop = asyncio.get_running_loop()
            loop.call_later(random.uniform(0, SPREAD_S), self._mqtt.renew, self._topic)  # noqa: S311 - jitter, not a secret
