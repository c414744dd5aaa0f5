"""The wire format: every message against the committed JSON Schema, and back."""

from __future__ import annotations

import json
import re
import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.config.schema import RulesConfig
from agent.errors import DataError
from agent.events.cloudevents import load_schema, parse, render
from agent.events.ids import Uuid7
from agent.types import Event, EventPhase

NOON = datetime(2026, 11, 23, 12, 0, 0, 123_456, tzinfo=UTC)
EVENT = Event(
    event_id="019abcde-0000-7000-8000-000000000002",
    incident_id="019abcde-0000-7000-8000-000000000001",
    kind="fight",
    phase=EventPhase.DETECTED,
    camera_id="yard",
    track_ids=(7, 3),
    t_start_ns=5_000_000_000,
    t_utc=NOON,
    t_onset_utc=NOON - timedelta(seconds=4.5),
    duration_s=4.5,
    confidence=0.93,
)
VALIDATOR = jsonschema.Draft202012Validator(load_schema(), format_checker=jsonschema.FormatChecker())


def message(event: Event = EVENT, sequence: int = 42, **more: object) -> dict[str, object]:
    """The message as a subscriber decodes it, checked against the schema."""
    payload = render(event, device_id="gate-1", sequence=sequence, emitted_utc=NOON + timedelta(seconds=1), **more)
    decoded: dict[str, object] = json.loads(payload)
    VALIDATOR.validate(decoded)
    return decoded


def test_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())


def test_message_of_a_detected_fight() -> None:
    assert message(models={"pose": "rtmo-s 1.0"}) == {
        "specversion": "1.0",
        "id": "019abcde-0000-7000-8000-000000000002",
        "source": "/recognizer/gate-1/cameras/yard",
        "type": "recognizer.event.started.v1",
        "subject": "fight/019abcde-0000-7000-8000-000000000001",
        "time": "2026-11-23T12:00:01.123Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:recognizer:schema:event:v1#/$defs/data",
        "sequence": "0000000000000042",
        "partitionkey": "yard",
        "data": {
            "kind": "fight",
            "phase": "detected",
            "device": "gate-1",
            "camera": "yard",
            "incident_id": "019abcde-0000-7000-8000-000000000001",
            "sequence": 42,
            "captured_at": "2026-11-23T12:00:00.123Z",
            "started_at": "2026-11-23T11:59:55.623Z",
            "duration_s": 4.5,
            "confidence": 0.93,
            "track_ids": [7, 3],
            "models": {"pose": "rtmo-s 1.0"},
        },
    }


@pytest.mark.parametrize(
    ("phase", "kind"), [("detected", "started"), ("active", "updated"), ("sustained", "updated"), ("resolved", "ended")]
)
def test_type_says_started_updated_ended(phase: str, kind: str) -> None:
    assert message(replace(EVENT, phase=EventPhase(phase)))["type"] == f"recognizer.event.{kind}.v1"


def test_text_order_of_sequence_is_number_order() -> None:
    numbers = [1, 9, 10, 99, 100, 2**31, 2**53 - 1]
    texts = [str(message(sequence=number)["sequence"]) for number in numbers]
    assert texts == sorted(texts)


def test_event_without_a_camera_belongs_to_the_device() -> None:
    decoded = message(replace(EVENT, camera_id="", kind="gap", attributes={"reason": "disk full", "lost": 3}))
    assert decoded["source"] == "/recognizer/gate-1"
    assert decoded["partitionkey"] == "gate-1"


def test_known_attributes_stand_in_data_and_others_apart() -> None:
    data = message(replace(EVENT, attributes={"evidence": "yard/2026-11-23/x", "reason": "normal", "lost": 3}))["data"]
    assert isinstance(data, dict)
    assert (data["evidence"], data["reason"], data["attributes"]) == ("yard/2026-11-23/x", "normal", {"lost": 3})


def test_times_are_converted_to_utc() -> None:
    local = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert message(replace(EVENT, t_utc=local)) == message()


def test_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="without an offset"):
        message(replace(EVENT, t_utc=NOON.replace(tzinfo=None)))


@pytest.mark.parametrize("sequence", [0, -1, 2**53])
def test_sequence_out_of_range_is_refused(sequence: int) -> None:
    with pytest.raises(ValueError, match="sequence out of range"):
        message(sequence=sequence)


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        message(replace(EVENT, confidence=float("nan")))


NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=20)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 bounds are naive


@given(
    phase=st.sampled_from(EventPhase),
    names=st.tuples(NAMES, NAMES, NAMES),
    track_ids=st.lists(st.integers(0, 2**53), max_size=5).map(tuple),
    times=st.tuples(TIMES, TIMES, TIMES),
    duration_s=st.floats(0, 1e6),
    confidence=st.floats(0, 1),
    sequence=st.integers(1, 2**53 - 1),
    attributes=st.dictionaries(st.text(min_size=1), st.integers(-5, 5) | st.text(), max_size=3),
)
def test_any_event_is_valid_and_comes_back(
    phase: EventPhase,
    names: tuple[str, str, str],
    track_ids: tuple[int, ...],
    times: tuple[datetime, datetime, datetime],
    duration_s: float,
    confidence: float,
    sequence: int,
    attributes: dict[str, object],
) -> None:
    kind, camera_id, device_id = names
    new_id = Uuid7()
    extra = {key: value for key, value in attributes.items() if key not in {"evidence", "reason", "reminder"}}
    event = Event(
        new_id(), new_id(), kind, phase, camera_id, track_ids, 0, times[0], times[1], duration_s, confidence, extra
    )
    payload = render(event, device_id=device_id, sequence=sequence, emitted_utc=times[2])
    VALIDATOR.validate(json.loads(payload))
    back = parse(payload)
    assert (back.event_id, back.incident_id, back.kind, back.phase) == (
        event.event_id, event.incident_id, kind, phase,
    )  # fmt: skip
    assert (back.camera_id, back.device_id, back.sequence) == (camera_id, device_id, sequence)
    assert (back.track_ids, back.attributes) == (track_ids, extra)
    millisecond = timedelta(milliseconds=1)
    seen = (back.captured_utc, back.onset_utc, back.emitted_utc)
    assert all(abs(a - b) < millisecond for a, b in zip(seen, times, strict=True))
    assert back.duration_s == pytest.approx(duration_s, abs=1e-3)
    assert back.confidence == pytest.approx(confidence, abs=1e-4)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff\xfe\xfd", b"[]", b"null", b"{}", b'{"data": 3}', b'{"specversion":"1.0","type":"x","data":{}}'],
)
def test_parse_refuses_other_things(payload: bytes) -> None:
    with pytest.raises(DataError, match="not a Recognizer event"):
        parse(payload)


def test_parse_refuses_a_message_with_a_field_missing() -> None:
    decoded = message()
    del decoded["data"]["phase"]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="phase"):
        parse(json.dumps(decoded).encode())


@pytest.mark.parametrize("field", ["sequence", "track_ids"])
def test_parse_refuses_a_number_beyond_all_bounds(field: str) -> None:
    decoded: Any = message()
    decoded["data"][field] = ["beyond"] if field == "track_ids" else "beyond"
    with pytest.raises(DataError, match="not a Recognizer event"):
        parse(json.dumps(decoded).replace('"beyond"', "1e999").encode())


def test_the_example_in_the_documentation_is_valid_and_every_field_is_explained(repo_dir: Path) -> None:
    text = (repo_dir / "docs" / "events.md").read_text(encoding="utf-8")
    example, _ = re.findall(r"```json\n(.*?)```", text, re.DOTALL)  # the other is a gap
    VALIDATOR.validate(json.loads(example))
    assert parse(example.encode()).sequence == 4711
    schema = load_schema()
    explained = set(re.findall(r"`([a-z_.]+)`", text))
    assert set(schema["properties"]) - {"specversion", "data"} <= explained
    assert {f"data.{name}" for name in schema["$defs"]["data"]["properties"]} <= explained


def test_the_rules_in_the_documentation_are_the_shipped_ones(repo_dir: Path) -> None:
    text = (repo_dir / "docs" / "events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([0-9., ]+) \| ([0-9., ]+) \|", text, re.MULTILINE)
    documented: list[dict[str, float]] = [{}, {}]
    for keys, *columns in rows:
        for figures, values in zip(documented, columns, strict=True):
            figures.update(zip(re.findall(r"[a-z_]+", keys), map(float, values.split(",")), strict=True))
    shipped = yaml.safe_load((repo_dir / "configs" / "default.yaml").read_text(encoding="utf-8"))["services"]
    for figures, service in zip(documented, ("fight", "fall"), strict=True):
        assert set(figures) == set(RulesConfig.model_fields)
        rules = RulesConfig.model_validate(shipped[service]["rules"])
        assert figures == {name: float(value) for name, value in rules.model_dump().items()}
