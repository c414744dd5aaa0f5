"""Home Assistant's device discovery: one retained message that says which entities this agent has. Pure; see docs/home-assistant.md.

Format: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from agent.config.schema import AgentConfig, CameraConfig, RulesConfig
from agent.mqtt.topics import Topics

Entity = dict[str, Any]

_PHASE = "{{ 'OFF' if value_json.data.phase == 'resolved' else 'ON' }}"
_CONNECTED = "{{ 'OFF' if value_json.state in ['connecting', 'offline'] else 'ON' }}"
_TROUBLE = "{{ 'ON' if value_json.state in ['offline', 'frozen', 'blind'] or value_json.moved else 'OFF' }}"
_HOTTEST = "{{ value_json.gpus | map(attribute='temperature_c') | select('number') | max | default(none) }}"
_WAITING = "{{ value_json.outbox.rows.values() | sum }}"
_SNAPSHOT = (
    "{{ {'id': 'ha-CAMERA-' ~ now().timestamp(), 'expires': (now() + timedelta(minutes=1)).isoformat(), "
    "'arguments': {'camera': 'CAMERA'}} | tojson }}"
)
_DIAGNOSTIC = {"entity_category": "diagnostic"}
_MEASURED = {"state_class": "measurement"}


def discovery_topic(prefix: str, topics: Topics) -> str:
    """Where the message belongs. prefix: Home Assistant's discovery prefix."""
    return f"{prefix}/device/{_node(topics)}/config"


def discovery_document(
    config: AgentConfig, topics: Topics, version: str, removed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The message for the cameras and services of `config`.

    removed: platform by id of entities that were announced once and are gone; Home Assistant forgets them.
    """
    node = _node(topics)
    entities = _device_entities(topics)
    for camera in config.cameras:
        if camera.enabled:
            entities |= _camera_entities(config, camera, topics)
    for entity_id, entity in entities.items():
        entity["unique_id"] = f"{node}.{entity_id}"
    gone = {entity_id: {"platform": one} for entity_id, one in (removed or {}).items() if entity_id not in entities}
    return {
        "device": {
            "identifiers": [node],
            "name": topics.device,
            "manufacturer": "Recognizer",
            "model": "agent",
            "sw_version": version,
        },
        "origin": {"name": "recognizer-agent", "sw_version": version},
        "availability_topic": topics.status,
        "qos": 1,
        "components": entities | gone,
    }


def announced(payload: bytes) -> dict[str, str]:
    """Platform by id of the entities in an earlier message; nothing when it is none."""
    try:
        components = json.loads(payload)["components"]
        return {str(entity_id): str(entity["platform"]) for entity_id, entity in components.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def _node(topics: Topics) -> str:
    """An id for the device that is unique at the broker, of the characters that a discovery topic may have."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{topics.base}-{topics.device}")


def _device_entities(topics: Topics) -> dict[str, Entity]:
    health = {"platform": "sensor", "state_topic": topics.health, **_DIAGNOSTIC}
    return {
        "level": health | {
            "name": "Health", "device_class": "enum", "options": ["ok", "degraded", "failed"],
            "value_template": "{{ value_json.level }}", "json_attributes_topic": topics.health,
            "json_attributes_template": "{{ {'reasons': value_json.reasons} | tojson }}",
        },
        "gpu_temperature": health | _MEASURED | {
            "name": "GPU temperature", "device_class": "temperature", "unit_of_measurement": "°C",
            "value_template": _HOTTEST,
        },
        "outbox_depth": health | _MEASURED | {
            "name": "Outbox", "unit_of_measurement": "messages", "value_template": _WAITING,
        },
        "outbox_age": health | _MEASURED | {
            "name": "Outbox age", "device_class": "duration", "unit_of_measurement": "s",
            "value_template": "{{ value_json.outbox.oldest_age_s }}",
        },
    }  # fmt: skip


def _camera_entities(config: AgentConfig, camera: CameraConfig, topics: Topics) -> dict[str, Entity]:
    state = {"state_topic": topics.camera_state(camera.id), **_DIAGNOSTIC}
    entities: dict[str, Entity] = {
        f"{camera.id}.connected": state | {
            "platform": "binary_sensor", "name": f"{camera.id} connected", "device_class": "connectivity",
            "value_template": _CONNECTED,
        },
        f"{camera.id}.trouble": state | {
            "platform": "binary_sensor", "name": f"{camera.id} trouble", "device_class": "problem",
            "value_template": _TROUBLE, "json_attributes_topic": topics.camera_state(camera.id),
        },
        f"{camera.id}.fps": state | _MEASURED | {
            "platform": "sensor", "name": f"{camera.id} frame rate", "unit_of_measurement": "fps",
            "value_template": "{{ value_json.fps }}",
        },
    }  # fmt: skip
    if config.commands.enabled:
        entities |= _picture(config, camera, topics)
    for name, service in config.services.items():
        if service.enabled and (camera.services is None or name in camera.services):
            topic = topics.event(camera.id, name)
            entities[f"{camera.id}.service.{name}"] = {
                "platform": "binary_sensor", "name": f"{camera.id} {name}", "device_class": "safety",
                "state_topic": topic, "value_template": _PHASE, "off_delay": _off_delay_s(service.rules),
                "json_attributes_topic": topic, "json_attributes_template": "{{ value_json.data | tojson }}",
            }  # fmt: skip
    return entities


def _off_delay_s(rules: RulesConfig) -> int:
    """When an incident of which nothing more comes is over for Home Assistant: its end may be lost, with the database or on the way.

    Twice the longest time between two steps, so that a step that is late or missing does not end it.
    """
    return math.ceil(2 * (max(rules.max_duration_s, rules.sustained_every_s) + rules.silence_s))


def _picture(config: AgentConfig, camera: CameraConfig, topics: Topics) -> dict[str, Entity]:
    """The latest picture that was commanded; a button for one where Home Assistant may command, which does not sign."""
    entities: dict[str, Entity] = {
        f"{camera.id}.picture": {
            "platform": "image", "name": f"{camera.id} picture", "image_topic": topics.camera_snapshot(camera.id),
            "content_type": "image/jpeg",
        },
    }  # fmt: skip
    role = config.commands.unsigned_role
    if role != "none" and "snapshot" in config.commands.roles.get(role, ()):
        entities[f"{camera.id}.take_picture"] = {
            "platform": "button", "name": f"{camera.id} take picture", "command_topic": topics.command("snapshot"),
            "command_template": _SNAPSHOT.replace("CAMERA", camera.id),
        }  # fmt: skip
    return entities
