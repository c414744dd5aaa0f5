"""The topics of one device, `<base>/<device>/...` (see docs/mqtt.md). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_BASE = re.compile(r"[^/+#$\x00][^+#$\x00]*")
_MAX_BYTES = 65_535
"""Length of a topic that MQTT can carry."""


def _level(name: str, what: str) -> str:
    if not _LEVEL.fullmatch(name):
        raise ValueError(
            f"{what}: expected 1-64 letters, digits, '_' or '-', starting with a letter or digit, got {name!r}"
        )
    return name


@dataclass(frozen=True, slots=True)
class Topics:
    """Topic names for `device` under `base`.

    base: one or more levels without wildcards; device and all later names: a single plain level.
    Raises ValueError for names that would make another topic than meant.

    >>> Topics("recognizer", "lobby-1").event("door", "fight")
    'recognizer/lobby-1/events/door/fight'
    """

    base: str
    device: str

    def __post_init__(self) -> None:
        if not _BASE.fullmatch(self.base) or self.base.endswith("/") or len(self.root.encode()) > _MAX_BYTES - 256:
            raise ValueError(
                f"base topic: must not be empty, start or end with '/', or hold '+', '#', '$', got {self.base!r}"
            )
        _level(self.device, "device")

    @property
    def root(self) -> str:
        """What all topics of the device start with."""
        return f"{self.base}/{self.device}"

    @property
    def status(self) -> str:
        """`online` / `offline`; retained, last will."""
        return f"{self.root}/status"

    @property
    def health(self) -> str:
        """Health document; retained."""
        return f"{self.root}/health"

    @property
    def ota_state(self) -> str:
        """State of the update; retained."""
        return f"{self.root}/ota/state"

    @property
    def commands(self) -> str:
        """Filter that matches every command, and no result."""
        return f"{self.root}/cmd/+"

    def camera_state(self, camera_id: str) -> str:
        """State of one camera; retained."""
        return f"{self.root}/cameras/{_level(camera_id, 'camera')}/state"

    def camera_snapshot(self, camera_id: str) -> str:
        """A JPEG picture of one camera, when a command asked for it."""
        return f"{self.root}/cameras/{_level(camera_id, 'camera')}/snapshot"

    def event(self, camera_id: str, kind: str) -> str:
        """Events of one kind from one camera; camera_id empty: from the device itself."""
        place = f"{_level(camera_id, 'camera')}/" if camera_id else ""
        return f"{self.root}/events/{place}{_level(kind, 'kind')}"

    def command(self, name: str) -> str:
        """One command."""
        return f"{self.root}/cmd/{_level(name, 'command')}"

    def command_result(self, name: str) -> str:
        """Where the answer goes when the command names no response topic."""
        return f"{self.command(name)}/result"
