"""The schemas of everything that is published: what the real code makes passes, and any deviation from it is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes import documents
from jsonschema.protocols import Validator

from agent.events.cloudevents import load_schema
from agent.health.governor import LADDER
from agent.health.gpu import GpuSample, Throttle
from agent.health.reasons import Reason
from agent.types import CameraPhase, EventPhase, Lane, Level
from agent.update.machine import Phase

NAMES = sorted(file.name.removesuffix(".v1.json") for file in files("agent.events").joinpath("schemas").iterdir())
STRANGER = {"not": "what was expected"}
Path_ = tuple[str | int, ...]

COMMAND = {"id": "c-1", "expires": "2026-11-23T02:45:00Z", "arguments": {"first": 3, "last": 9}}
ANSWER = {"id": "c-1", "state": "done", "detail": "", "result": {"sent": 5, "missing": [[3, 4]]}}
OPEN = {  # objects that others may add to, and members whose every value is right
    "event": {("data",), ("data", "models"), ("data", "attributes")},
    "drift": {("data",), ("data", "models")},
    "gap": {("data",)},
    "health": {("models",)},
    "command": {("arguments",)},
    "answer": {("result",)},
    "discovery": {("components",)},
    "ota": {("figures",)},
}
OPTIONAL = {
    "entity_category",
    "json_attributes_topic",
    "json_attributes_template",
    "device_class",
    "unit_of_measurement",
    "state_class",
    "image_topic",
    "content_type",
    "command_topic",
    "command_template",
    "options",
    "name",
    "unique_id",
    "state_topic",
    "value_template",
    "arguments",
    "detail",
    "result",
    "models",
    "attributes",
    "evidence",
    "series",
    "alarm",
    "event",
    "state",
    "telemetry",
    "control-room",
    "pose",
}


def validator(name: str, part: str = "") -> Validator:
    schema = load_schema(name)
    target = {"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]} if part else schema
    return jsonschema.Draft202012Validator(target, format_checker=jsonschema.FormatChecker())


@pytest.fixture(scope="module")
def produced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One full document of each kind, by the name of its schema."""
    return {
        "status": "online",
        "health": documents.health(tmp_path_factory.mktemp("state")),
        "camera": documents.camera(error="a word"),
        "event": json.loads(documents.event()),
        "drift": json.loads(documents.drift()),
        "gap": json.loads(documents.gap()),
        "ota": documents.ota(),
        "command": COMMAND,
        "answer": ANSWER,
        "discovery": documents.discovery(
            "yard", "+hall", removed={"cellar.fps": "sensor"}, commands={"enabled": True, "unsigned_role": "viewer"}
        ),
    }


def places(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value inside a document with its path, the document itself included."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def changed(document: Any, path: Path_, value: Any) -> Any:
    if not path:
        return value
    twin = copy.deepcopy(document)
    place = twin
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return twin


def without(document: Any, path: Path_) -> Any:
    twin = copy.deepcopy(document)
    place = twin
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return twin


def deviations(name: str, document: Any) -> Iterator[tuple[str, Any]]:
    """Everything that is off by one thing: another type, a member missing, a member too many."""
    free = OPEN.get(name, set())
    for path, value in places(document):
        inside_open = any(path[: len(one)] == one and len(path) > len(one) for one in free if one != ("data",))
        if inside_open and path[-1] != "models":
            continue
        label = "/".join(map(str, path)) or "(all)"
        yield f"{label}: another type", changed(document, path, [STRANGER] if isinstance(value, dict) else STRANGER)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{label}: a number as text", changed(document, path, str(value))
        if isinstance(value, dict) and path not in free:
            yield f"{label}: one member more", changed(document, (*path, "surprise"), 1)
        if path and isinstance(path[-1], str) and path[-1] not in OPTIONAL:
            yield f"{label}: missing", without(document, path)


def test_every_schema_is_one_and_says_which(produced: dict[str, Any]) -> None:
    for name in NAMES:
        schema = load_schema(name)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["$id"] == f"urn:recognizer:schema:{name}:v1"
        assert schema["title"]
        assert schema["description"]
    assert set(NAMES) == set(produced), "each schema has a document that is held against it"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_produced_is_valid(name: str, produced: dict[str, Any]) -> None:
    validator(name).validate(produced[name])


@pytest.mark.parametrize("name", NAMES)
def test_any_deviation_is_refused(name: str, produced: dict[str, Any]) -> None:
    check, seen = validator(name), 0
    for what, document in deviations(name, produced[name]):
        assert not check.is_valid(document), f"{name}: accepted with {what}"
        seen += 1
    assert seen >= (1 if name == "status" else 5)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"status"}))
def test_every_member_of_a_schema_is_explained(name: str) -> None:
    """A reader of the schema alone must know what a number counts, and in which unit."""
    for path, value in places(load_schema(name)):
        if not (isinstance(value, dict) and len(path) >= 2 and path[-2] == "properties"):
            continue
        if value.get("type") in ("number", "integer", ["number", "null"], ["integer", "null"]) and "rows" not in path:
            assert value.get("description") or "duration_s" in path, path


def test_every_reason_code_passes(tmp_path: Path) -> None:
    reasons = {f"{code}:some/subject": "x" for code in Reason}
    document = documents.health(tmp_path, reasons=reasons)
    validator("health").validate(document)
    assert {reason["code"] for reason in document["reasons"]} >= {code.value for code in Reason}


def test_health_before_the_first_probe_and_of_bare_machines_passes(tmp_path: Path) -> None:
    check = validator("health")
    early = documents.health(tmp_path, rounds=0)
    assert early["system"] is None
    assert early["outbox"]["rows"] == {}
    check.validate(early)
    check.validate(documents.health(tmp_path, gpus=(), reasons={}))
    check.validate(documents.health(tmp_path, gpus=(GpuSample("1", lost=True),)))


def test_the_schemas_name_every_value_that_the_code_has(produced: dict[str, Any]) -> None:
    health, camera = load_schema("health")["properties"], load_schema("camera")["properties"]
    assert health["level"]["enum"] == [level.value for level in Level]
    assert set(health["gpus"]["items"]["properties"]["throttle"]["items"]["enum"]) == {one.value for one in Throttle}
    assert set(health["outbox"]["properties"]["rows"]["properties"]) == {lane.name.lower() for lane in Lane}
    assert camera["state"]["enum"] == [phase.value for phase in CameraPhase]
    assert set(load_schema("event")["$defs"]["data"]["properties"]["phase"]["enum"]) == {p.value for p in EventPhase}
    assert produced["health"]["degradation"]["steps"] == len(LADDER) - 1


@pytest.mark.parametrize("phase", CameraPhase)
def test_a_camera_in_every_state_passes(phase: CameraPhase) -> None:
    validator("camera").validate(documents.camera(phase=phase, fps=0.0, width=0, height=0, frames=0))


@pytest.mark.parametrize("phase", [None, *Phase])
def test_an_update_in_every_phase_passes(phase: Phase | None) -> None:
    validator("ota").validate(documents.ota(phase=phase))


@pytest.mark.parametrize("step", range(len(LADDER)))
def test_every_rung_of_the_ladder_passes(step: int, produced: dict[str, Any]) -> None:
    rung = LADDER[step]
    degradation = produced["health"]["degradation"] | {
        "step": step, "max_fps": rung.max_fps, "stride_factor": rung.stride_factor,
        "picture_scale": rung.picture_scale, "paused_priorities": rung.paused_priorities,
    }  # fmt: skip
    validator("health").validate(produced["health"] | {"degradation": degradation})


@pytest.mark.parametrize("hostile", ["ONLINE", "", "online\n", None, 1, ["online"], {"status": "online"}])
def test_another_status_is_refused(hostile: object) -> None:
    assert not validator("status").is_valid(hostile)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("health", ("t",), "2026-11-23T12:00:00.123"),
        ("health", ("t",), "yesterday"),
        ("health", ("level",), "fine"),
        ("health", ("system", "cpu"), 1.5),
        ("health", ("system", "rss_bytes"), -1),
        ("health", ("outbox", "rows", "bulk"), 1),
        ("health", ("models", "camera"), "x"),
        ("health", ("gpus", 0, "throttle"), ["tired"]),
        ("camera", ("camera",), "a/b"),
        ("camera", ("state",), "STREAMING"),
        ("camera", ("fps",), -0.1),
        ("camera", ("frames",), 1.5),
        ("command", ("id",), ""),
        ("command", ("expires",), "in a minute"),
        ("command", ("arguments",), [1, 2]),
        ("answer", ("state",), "maybe"),
        ("discovery", ("components", "yard.fps", "state_topic"), "a/#"),
        ("discovery", ("components", "yard.fps", "platform"), "switch"),
        ("discovery", ("components", "yard.fps", "state_topik"), "a"),
        ("discovery", ("components", "yard.service.fight"), {"platform": "binary_sensor", "name": "x"}),
        ("discovery", ("components",), {}),
        ("ota", ("phase",), "validating"),
        ("ota", ("slot",), "camera"),
        ("ota", ("progress",), 1.5),
        ("ota", ("versions", "camera"), {}),
        ("ota", ("versions", "pose", "sha256"), "1cd6"),
        ("ota", ("server", "state"), "fine"),
        ("ota", ("server", "polled"), "yesterday"),
        ("gap", ("data", "ranges"), []),
        ("gap", ("data", "reason"), "tired"),
        ("gap", ("data", "lost"), 0),
        ("gap", ("source",), "/recognizer/gate-1/cameras/yard"),
        ("event", ("type",), "recognizer.gap.v1"),
        ("event", ("data", "confidence"), 1.01),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, path: Path_, value: object, produced: dict[str, Any]) -> None:
    assert not validator(name).is_valid(changed(produced[name], path, value))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "command",
            {"first": 1, "last": 1},
            [{"first": 0, "last": 3}, {"first": 1}, {"first": 1, "last": 2, "all": 1}],
        ),
        (
            "answer",
            {"sent": 0, "missing": []},
            [{"sent": -1, "missing": []}, {"sent": 1}, {"sent": 1, "missing": [[3]]}],
        ),
    ],
)
def test_replay_events_has_arguments_and_a_result_of_its_own(name: str, good: object, bad: list[object]) -> None:
    check = validator(name, "replay_events")
    check.validate(good)
    assert not any(check.is_valid(one) for one in bad)


def test_the_examples_of_the_documentation_are_valid(repo_dir: Path, produced: dict[str, Any]) -> None:
    """`system` is shortened there, and says so."""
    text = (repo_dir / "docs" / "mqtt.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    examples = {
        title: json.loads(body.split("```json\n")[1].split("```")[0])
        for title, body in sections.items()
        if "```json\n" in body
    }
    examples["`health`"]["system"] = produced["health"]["system"] | examples["`health`"]["system"]
    for title, name in {
        "`health`": "health", "`cameras/<camera>/state`": "camera", "`events/<camera>/<kind>`": "event",
        "`ota/state`": "ota", "`cmd/<name>`": "command",
    }.items():  # fmt: skip
        validator(name).validate(examples[title])
