"""The wire format of events: CloudEvents 1.0, structured JSON. `docs/events.md` explains each field.

The JSON Schemas `schemas/*.json` are part of the package; tests validate every produced message against theirs. Incidents
that a camera saw have the types `recognizer.event.*`; what the agent has to say about its own models, kind `drift`, has the
types `recognizer.drift.*` and a schema of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from agent.errors import DataError
from agent.types import Event, EventPhase

CONTENT_TYPE = "application/cloudevents+json"
SCHEMA_ID = "urn:recognizer:schema:event:v1"
DRIFT_SCHEMA_ID = "urn:recognizer:schema:drift:v1"
DRIFT = "drift"
"""The kind of events about models (`agent.drift`)."""

_TYPES = {
    EventPhase.DETECTED: "recognizer.event.started.v1",
    EventPhase.ACTIVE: "recognizer.event.updated.v1",
    EventPhase.SUSTAINED: "recognizer.event.updated.v1",
    EventPhase.RESOLVED: "recognizer.event.ended.v1",
}
_DRIFT_TYPES = {
    EventPhase.DETECTED: "recognizer.drift.started.v1",
    EventPhase.RESOLVED: "recognizer.drift.ended.v1",
}
_KNOWN_TYPES = frozenset({*_TYPES.values(), *_DRIFT_TYPES.values()})
SEQUENCE_DIGITS = 16  # every integer that JSON numbers carry exactly (below 2**53) fits
_DRIFT_COMMON = frozenset(
    {
        "kind", "phase", "device", "camera", "incident_id", "sequence", "series", "captured_at", "started_at", "duration_s",
        "models",
    }
)  # fmt: skip
_LIFTED = ("evidence", "reason", "reminder")  # attributes with a place of their own in `data`


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """A message as a subscriber sees it. Times are UTC; attributes: `data.attributes` and the lifted ones together."""

    event_id: str
    type: str
    device_id: str
    camera_id: str
    incident_id: str
    kind: str
    phase: EventPhase
    sequence: int
    emitted_utc: datetime
    captured_utc: datetime
    onset_utc: datetime
    duration_s: float
    confidence: float
    track_ids: tuple[int, ...]
    models: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, object] = field(default_factory=dict)
    series: str = ""


def render(
    event: Event,
    *,
    device_id: str,
    sequence: int,
    emitted_utc: datetime,
    models: Mapping[str, str] | None = None,
    series: str = "",
) -> bytes:
    """`event` as a CloudEvents message (UTF-8 JSON).

    sequence: 1, 2, 3, ... per device, as the outbox gave it; emitted_utc: moment of the commit; models: slot -> model
    name and version; series: what the sequence counts in, empty = not said. Raises ValueError for a naive time, a sequence below 1 or a number that JSON cannot carry.
    """
    if not 1 <= sequence < 1 << 53:
        raise ValueError(f"sequence out of range: {sequence}")
    envelope = {
        "specversion": "1.0",
        "id": event.event_id,
        "source": _source(device_id, event.camera_id),
        "type": (_DRIFT_TYPES if event.kind == DRIFT else _TYPES)[event.phase],
        "subject": f"{event.kind}/{event.incident_id}",
        "time": rfc3339(emitted_utc),
        "datacontenttype": "application/json",
        "dataschema": f"{DRIFT_SCHEMA_ID if event.kind == DRIFT else SCHEMA_ID}#/$defs/data",
        "sequence": f"{sequence:0{SEQUENCE_DIGITS}d}",
        "partitionkey": event.camera_id or device_id,
        "data": _data(event, device_id, sequence, models or {}, series),
    }
    return json.dumps(envelope, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def parse(payload: bytes) -> ReceivedEvent:
    """The inverse of `render`. Raises DataError when `payload` is not such a message."""
    try:
        message = json.loads(payload)
        data = message["data"]
        if message["specversion"] != "1.0" or message["type"] not in _KNOWN_TYPES:
            raise DataError(f"not a Recognizer event: {message['specversion']!r}, {message['type']!r}")
        return ReceivedEvent(
            event_id=message["id"],
            type=message["type"],
            device_id=data["device"],
            camera_id=data["camera"],
            incident_id=data["incident_id"],
            kind=data["kind"],
            phase=EventPhase(data["phase"]),
            sequence=int(data["sequence"]),
            emitted_utc=datetime.fromisoformat(message["time"]),
            captured_utc=datetime.fromisoformat(data["captured_at"]),
            onset_utc=datetime.fromisoformat(data["started_at"]),
            duration_s=float(data["duration_s"]),
            confidence=float(data["confidence"]) if data["kind"] != DRIFT else 1.0,
            track_ids=tuple(int(track_id) for track_id in data["track_ids"]) if data["kind"] != DRIFT else (),
            models=dict(data.get("models", {})),
            attributes=_attributes(data),
            series=str(data.get("series", "")),
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors; JSON's 1e999 is an infinite number
        raise DataError(f"not a Recognizer event: {error!r}") from error


def load_schema(name: str = "event") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the messages: `event`, or `drift` and `gap` for those of that kind."""
    text = files("agent.events").joinpath(f"schemas/{name}.v1.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _data(event: Event, device_id: str, sequence: int, models: Mapping[str, str], series: str) -> dict[str, object]:
    data: dict[str, object] = {
        "kind": event.kind,
        "phase": event.phase.value,
        "device": device_id,
        "camera": event.camera_id,
        "incident_id": event.incident_id,
        "sequence": sequence,
        "captured_at": rfc3339(event.t_utc),
        "started_at": rfc3339(event.t_onset_utc),
        "duration_s": round(event.duration_s, 3),
    }
    if series:
        data["series"] = series
    if event.kind == DRIFT:
        return data | event.attributes | {"models": dict(models)}
    data |= {"confidence": round(event.confidence, 4), "track_ids": list(event.track_ids)}
    data |= {key: event.attributes[key] for key in _LIFTED if key in event.attributes}
    if models:
        data["models"] = dict(models)
    rest = {key: value for key, value in event.attributes.items() if key not in _LIFTED}
    if rest:
        data["attributes"] = rest
    return data


def _attributes(data: Mapping[str, Any]) -> dict[str, object]:
    """What `_data` made of the event's attributes."""
    if data["kind"] == DRIFT:
        return {key: value for key, value in data.items() if key not in _DRIFT_COMMON}
    return {**data.get("attributes", {}), **{key: data[key] for key in _LIFTED if key in data}}


def _source(device_id: str, camera_id: str) -> str:
    device = f"/recognizer/{device_id}"
    return f"{device}/cameras/{camera_id}" if camera_id else device


def rfc3339(moment: datetime) -> str:
    """UTC to the millisecond, e.g. `2026-11-23T02:39:34.123Z`."""
    if moment.tzinfo is None:
        raise ValueError(f"time without an offset: {moment}")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
