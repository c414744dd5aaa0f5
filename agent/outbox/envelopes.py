"""What goes along with a message on its way (docs/mqtt.md, "Properties"). Pure."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from agent.events.cloudevents import SEQUENCE_DIGITS
from agent.ports import Envelope
from agent.types import OutboxRecord


def envelope_of(record: OutboxRecord, max_age_s: float | None, now_utc: datetime) -> Envelope:
    """Of a message that is sent now.

    The user properties `id` and `sequence` are the CloudEvents attributes of these names, `lane` is the agent's own: enough to
    remove duplicates and find gaps without reading the payload. max_age_s: None = for ever. What is left of it goes along;
    a retained message is state that holds until a newer one comes, so it has no end. An alarm or event that has waited longer
    would have been given up: the clock has jumped since it was stamped, and it goes with all of its time.
    """
    properties = [("id", record.event_id), ("lane", record.lane.name.lower())]
    if record.sequence is not None:
        properties.append(("sequence", f"{record.sequence:0{SEQUENCE_DIGITS}d}"))
    expiry_s = None
    if max_age_s is not None and not record.retain:
        waited_s = max(0.0, (now_utc - record.t_created_utc).total_seconds())  # the clock may have been set back
        jumped = record.sequence is not None and waited_s >= max_age_s
        expiry_s = max(1, round(max_age_s if jumped else max_age_s - waited_s))
    return Envelope(
        content_type=record.content_type,
        utf8=_is_text(record.content_type),
        expiry_s=expiry_s,
        user_properties=tuple(properties),
    )


@lru_cache(maxsize=64)
def _is_text(content_type: str) -> bool:
    """JSON is UTF-8 by its own definition; other text says what it is."""
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    return kind == "application/json" or kind.endswith("+json") or "charset=utf-8" in parameters.replace(" ", "")
