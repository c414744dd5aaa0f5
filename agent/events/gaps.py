"""The event that says which numbers of the sequence will not arrive: kind `gap`, type `recognizer.gap.v1` (see docs/events.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.errors import DataError
from agent.events.cloudevents import SEQUENCE_DIGITS, rfc3339
from agent.types import GAP, Lane, Loss, LossReason

GAP_SCHEMA_ID = "urn:recognizer:schema:gap:v1"
_TYPE = "recognizer.gap.v1"


@dataclass(frozen=True, slots=True)
class GapMessage:
    """A message as a subscriber sees it. loss: its ranges are numbers of this device."""

    event_id: str
    device_id: str
    sequence: int
    emitted_utc: datetime
    loss: Loss
    series: str = ""


@dataclass(frozen=True, slots=True)
class ReceivedGap(GapMessage):
    """Numbers that the device will not send any more."""


def render_gap(
    loss: Loss, *, event_id: str, device_id: str, sequence: int, emitted_utc: datetime, series: str = ""
) -> bytes:
    """`loss` as a CloudEvents message (UTF-8 JSON).

    event_id: UUIDv7; sequence: the announcement's own; series: what it counts in, empty = not said. Raises ValueError for a naive time or a loss without ranges.
    """
    if not loss.ranges:
        raise ValueError("a loss without sequence numbers cannot be announced")
    first, last = loss.ranges[0][0], loss.ranges[-1][1]
    data = {
        "kind": GAP,
        "device": device_id,
        "sequence": sequence,
        "reason": loss.reason.value,
        "lane": loss.lane.name.lower() if loss.lane is not None else None,
        "first": first,
        "last": last,
        "ranges": [list(run) for run in loss.ranges],
        "lost": loss.lost,
        "detail": loss.detail,
    }
    if series:
        data["series"] = series
    if loss.sink:
        data["sink"] = loss.sink
    envelope = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/recognizer/{device_id}",
        "type": _TYPE,
        "subject": f"{GAP}/{first}-{last}",
        "time": rfc3339(emitted_utc),
        "datacontenttype": "application/json",
        "dataschema": f"{GAP_SCHEMA_ID}#/$defs/data",
        "sequence": f"{sequence:0{SEQUENCE_DIGITS}d}",
        "partitionkey": device_id,
        "data": data,
    }
    text = json.dumps(envelope, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")  # whatever `detail` says must not keep the announcement from being made


def parse_gap(payload: bytes) -> ReceivedGap:
    """The inverse of `render_gap`. Raises DataError when `payload` is not such a message."""
    try:
        message = json.loads(payload)
        data = message["data"]
        if message["specversion"] != "1.0" or message["type"] != _TYPE:
            raise DataError(f"not a gap of a Recognizer: {message['specversion']!r}, {message['type']!r}")
        loss = Loss(
            reason=LossReason(data["reason"]),
            lane=Lane[data["lane"].upper()] if data["lane"] is not None else None,
            ranges=tuple((int(first), int(last)) for first, last in data["ranges"]),
            lost=int(data["lost"]) if data["lost"] is not None else None,
            detail=str(data["detail"]),
            sink=str(data.get("sink", "")),
        )
        emitted_utc = datetime.fromisoformat(message["time"]).astimezone(UTC)
        series = str(data.get("series", ""))
        return ReceivedGap(message["id"], data["device"], int(data["sequence"]), emitted_utc, loss, series)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"not a gap of a Recognizer: {error!r}") from error
