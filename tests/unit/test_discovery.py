"""What Home Assistant is told: entities for cameras and services, templates that fit what is published."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import documents
from fakes.asyncapi import Contract

from agent.config.delivery import DiscoveryConfig
from agent.mqtt.discovery import announced, discovery_topic
from agent.mqtt.topics import Topics
from agent.types import CameraPhase, EventPhase, Level

TOPICS = Topics("recognizer", "gate-1")


def components(*cameras: str) -> dict[str, Any]:
    found: dict[str, Any] = documents.discovery(*cameras)["components"]
    return found


def test_the_topic_is_of_a_device_and_of_characters_that_are_allowed() -> None:
    assert discovery_topic("homeassistant", TOPICS) == "homeassistant/device/recognizer-gate-1/config"
    topic = discovery_topic("ha/x", Topics("site/straße 1", "gate-1"))
    assert topic == "ha/x/device/site_stra_e_1-gate-1/config"


def test_the_device_and_its_availability() -> None:
    document = documents.discovery("yard")
    assert document["device"]["identifiers"] == ["recognizer-gate-1"]
    assert document["device"]["name"] == "gate-1"
    assert document["availability_topic"] == TOPICS.status
    assert document["origin"]["name"]


def test_each_camera_has_its_services_and_its_state() -> None:
    found = components("yard", "+hall", "-cellar")
    assert set(found) == {
        "level", "gpu_temperature", "outbox_depth", "outbox_age",
        "yard.connected", "yard.trouble", "yard.fps", "yard.service.fight", "yard.service.fall",
        "hall.connected", "hall.trouble", "hall.fps", "hall.service.fall",
    }  # fmt: skip
    assert "value_json.moved" in found["yard.trouble"]["value_template"]
    fight = found["yard.service.fight"]
    assert (fight["platform"], fight["device_class"], fight["name"]) == ("binary_sensor", "safety", "yard fight")
    assert fight["state_topic"] == TOPICS.event("yard", "fight")


def test_pictures_where_there_are_commands_and_a_button_where_unsigned_ones_may_ask_for_them() -> None:
    def pictures(**commands: Any) -> dict[str, Any]:
        found = documents.discovery("yard", commands=commands)["components"]
        return {name: entity for name, entity in found.items() if "picture" in name}

    assert pictures() == {}
    (image,) = pictures(enabled=True).values()
    assert (image["platform"], image["image_topic"]) == ("image", TOPICS.camera_snapshot("yard"))
    both = pictures(enabled=True, unsigned_role="viewer")
    button = both["yard.take_picture"]
    assert button["command_topic"] == TOPICS.command("snapshot")
    assert "'camera': 'yard'" in button["command_template"]
    assert "'ha-yard-'" in button["command_template"], "no two cameras have the same id in the same moment"
    assert set(pictures(enabled=True, unsigned_role="viewer", roles={"viewer": []})) == {"yard.picture"}


def test_a_service_of_which_no_more_is_heard_goes_off_by_itself_and_not_between_two_steps() -> None:
    config = documents.configuration("yard")
    found = components("yard")
    for name in ("fight", "fall"):
        rules = config.services[name].rules
        longest_s = max(rules.min_duration_s, rules.max_duration_s, rules.sustained_every_s) + rules.silence_s
        assert 2 * longest_s <= found[f"yard.service.{name}"]["off_delay"] < 2 * longest_s + 1
    assert [name for name, entity in found.items() if "off_delay" in entity] == [
        "yard.service.fight",
        "yard.service.fall",
    ]


def test_unique_ids_are_unique_also_between_devices_and_for_awkward_names() -> None:
    """Names may hold `_` and `-`, and a service may be called as a state is."""
    ids = [entity["unique_id"] for entity in components("a", "a_service", "a-b", "fps").values()]
    ids += [entity["unique_id"] for entity in documents.discovery("a", base="other")["components"].values()]
    assert len(ids) == len(set(ids))


def test_what_was_taken_back_is_named_by_its_platform_alone_unless_it_is_there_again() -> None:
    document = documents.discovery("yard", removed={"hall.fps": "sensor", "yard.fps": "sensor"})
    assert document["components"]["hall.fps"] == {"platform": "sensor"}
    assert "state_topic" in document["components"]["yard.fps"]
    assert announced(json.dumps(document).encode())["hall.fps"] == "sensor"


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b'{"components": 1}', b'{"components": {"a": {}}}', b"\xff", b"[" * 100_000]
)
def test_an_earlier_message_that_is_none_is_nothing(payload: bytes) -> None:
    assert announced(payload) == {}


def test_every_topic_is_a_channel_of_the_contract() -> None:
    contract = Contract()
    for name, entity in components("yard").items():
        for key in ("state_topic", "json_attributes_topic"):
            if key in entity:
                channel = contract.channel_of(entity[key])
                assert channel == (
                    "cameraEvents" if "service" in name else "cameraState" if "yard" in name else "health"
                )


def published(topic: str, folder: Path) -> dict[str, Any]:
    """A real document of that topic."""
    if topic == TOPICS.health:
        return documents.health(folder)
    if topic == TOPICS.camera_state("yard"):
        return documents.camera()
    decoded: dict[str, Any] = json.loads(documents.event())
    return decoded


def test_templates_name_members_that_are_published(tmp_path: Path) -> None:
    for name, entity in components("yard").items():
        document = published(entity["state_topic"], tmp_path)
        templates = [entity["value_template"], entity.get("json_attributes_template", "")]
        paths = re.findall(r"value_json((?:\.\w+)+)", "".join(templates))
        assert paths, name
        for path in paths:
            place: Any = document
            for key in path.removesuffix(".values").split(".")[1:]:
                assert key in place, f"{name}: {path}"
                place = place[key]
    (gpu,) = documents.health(tmp_path)["gpus"]
    assert "temperature_c" in gpu


def test_templates_compare_with_states_that_exist() -> None:
    known = {"cam": {phase.value for phase in CameraPhase}, "service": {phase.value for phase in EventPhase}}
    for name, entity in components("yard").items():
        if name.startswith("yard.") and entity["platform"] == "binary_sensor":
            words = set(re.findall(r"'(\w+)'", entity["value_template"]))
            assert words - {"ON", "OFF"} <= known["service" if "service" in name else "cam"]
            assert {"ON", "OFF"} <= words
    assert components("yard")["level"]["options"] == [level.value for level in Level]


@pytest.mark.parametrize("prefix", ["", "/x", "x/", "a/+", "#"])
def test_a_prefix_that_is_no_topic_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        DiscoveryConfig(prefix=prefix)


def test_prefixes_may_have_levels() -> None:
    assert DiscoveryConfig(prefix="a/b").prefix == "a/b"
    assert DiscoveryConfig(prefix="h").prefix == "h"
