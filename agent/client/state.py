"""Where a subscriber stood, in a file: its client id, what it subscribed to, and for each device what had come."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.durable import sync
from agent.errors import DataError, StorageError

_VERSION = 1


@dataclass(slots=True)
class SubscriberState:
    """devices: what `SequenceTracker.dump` said, by device id. filters: of the session that the broker keeps."""

    client_id: str = ""
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    filters: list[str] = field(default_factory=list)

    def as_json(self) -> bytes:
        """As the file holds it."""
        document = {
            "version": _VERSION, "client_id": self.client_id, "devices": self.devices, "filters": self.filters,
        }  # fmt: skip
        return json.dumps(document, separators=(",", ":")).encode()


def load(path: Path) -> SubscriberState:
    """What the file says; the empty state when there is none. Raises StorageError, DataError."""
    try:
        return _read(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return SubscriberState()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        hint = "move it away to begin anew; what is missing since then will not be noticed"
        raise DataError(f"{path}: not the state of a subscriber: {error!r} (hint: {hint})") from error


def _read(document: dict[str, Any]) -> SubscriberState:
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']}")
    filters = [str(one) for one in document.get("filters", ())]  # older files have none
    return SubscriberState(str(document["client_id"]), dict(document["devices"]), filters)


def save(path: Path, content: bytes) -> None:
    """All or nothing, on disk when it returns. Blocking. Raises StorageError."""
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
