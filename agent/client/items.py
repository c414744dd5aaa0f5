"""What a subscription yields, and how a message becomes that. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from agent.errors import DataError
from agent.events.cloudevents import DRIFT, ReceivedEvent, parse
from agent.events.gaps import GapMessage, ReceivedGap, parse_gap

MAX_SEQUENCE = (1 << 53) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift(ReceivedEvent):
    """A model that no longer behaves as its baseline says (phase `detected`), or does so again (`resolved`); docs/drift.md.

    baseline, current: in the unit of the signal, None where it has none. change, limit: relative.
    """

    signal: str
    slot: str
    model: str
    reason: str
    baseline: float | None
    current: float | None
    change: float
    limit: float
    basis: str
    blocks: int


@dataclass(frozen=True, slots=True)
class MissingRange:
    """Numbers `first` to `last` of a device did not come in time. Should they come later, they are yielded all the same.

    detail: empty, or what the device said when it was asked for them.
    """

    device_id: str
    first: int
    last: int
    detail: str = ""

    @property
    def count(self) -> int:
        """How many numbers."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Restarted:
    """The device counts anew, in another series: its database was thrown away, or it is another machine of that name.

    sequence: of the event that showed it, which is yielded next. highest: where it stood before.
    """

    device_id: str
    sequence: int
    highest: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message on an event topic that is no event this version knows: from a newer agent, or from somebody else."""

    device_id: str
    payload: bytes
    error: str


Gap = ReceivedGap
"""Numbers that the device announced as lost; `loss.ranges`. Some of them may have come."""


@dataclass(frozen=True, slots=True)
class SinkGap(GapMessage):
    """Numbers that one sink of the device misses, `loss.sink`. No `Gap`: to this subscriber they come all the same."""


Message = ReceivedEvent | Drift | Gap | SinkGap
Item = Message | MissingRange | Restarted | Unreadable


def decode(payload: bytes) -> Message:
    """An event of any kind. Raises DataError."""
    try:
        kind = json.loads(payload)["data"]["kind"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"not a Recognizer event: {error!r}") from error
    if kind == "gap":
        gap = parse_gap(payload)
        return SinkGap(**{field.name: getattr(gap, field.name) for field in fields(Gap)}) if gap.loss.sink else gap
    event = parse(payload)
    if kind == DRIFT:
        return _as_drift(event)
    return event


@dataclass(frozen=True, slots=True)
class Identity:
    """What counts of a message. series: empty where it does not say."""

    event_id: str
    device_id: str
    sequence: int
    series: str


def identity(payload: bytes) -> Identity | None:
    """Of any message that counts in the sequence, known or not; None = it does not."""
    try:
        message = json.loads(payload)
        event_id, device_id, sequence = message["id"], message["data"]["device"], message["data"]["sequence"]
        series = message["data"].get("series", "")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    whole = isinstance(sequence, int) and not isinstance(sequence, bool) and 1 <= sequence <= MAX_SEQUENCE
    if not whole or not isinstance(event_id, str) or not event_id or not isinstance(device_id, str):
        return None
    return Identity(event_id, device_id, sequence, series if isinstance(series, str) else "")


def _as_drift(event: ReceivedEvent) -> Drift:
    said: dict[str, Any] = event.attributes
    try:
        return Drift(
            **{field.name: getattr(event, field.name) for field in fields(ReceivedEvent)},
            signal=str(said["signal"]),
            slot=str(said["slot"]),
            model=str(said["model"]),
            reason=str(said["reason"]),
            baseline=_number(said["baseline"]),
            current=_number(said["current"]),
            change=float(said["change"]),
            limit=float(said["limit"]),
            basis=str(said["basis"]),
            blocks=int(said["blocks"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"not a drift of a Recognizer: {error!r}") from error


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
