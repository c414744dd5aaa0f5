"""An event of the agent as a Kafka message: the Kafka binding of CloudEvents 1.0, binary content mode."""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent.errors import RejectedError


@dataclass(frozen=True, slots=True)
class KafkaMessage:
    """key: the partition key of the event, so that the events of a camera stay in order; value: its data, JSON."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def message_of(payload: bytes) -> KafkaMessage:
    """From structured to binary mode: `data` becomes the value, every attribute a header `ce_<name>`.

    Raises RejectedError for what is no CloudEvent.
    """
    try:
        event = json.loads(payload)
        data = event.pop("data")
        content_type = str(event.pop("datacontenttype", "application/json"))
        key = str(event.get("partitionkey") or event["source"])
        known = event["specversion"] == "1.0" and bool(event["id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RejectedError(f"not a CloudEvent: {type(error).__name__}", 0) from error
    if not known:
        raise RejectedError("a CloudEvent of an unknown version, or without an id", 0)
    attributes = sorted((name, str(value)) for name, value in event.items() if value is not None)
    return KafkaMessage(
        key.encode(),
        json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(),
        (("content-type", content_type.encode()), *((f"ce_{name}", value.encode()) for name, value in attributes)),
    )
