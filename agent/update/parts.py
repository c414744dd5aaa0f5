"""What the update client is built of and what it asks for: ports, limits, progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent.config.update import UpdateConfig
from agent.update.fit import DeviceFacts
from agent.update.journal import Journal
from agent.update.models import VersionStore
from agent.update.release import Release
from agent.update.threads import OneThread
from agent.update.trials import Trials
from agent.update.trust import Target


class Genuine(Protocol):
    """Says what a target is and whether bytes are it; `agent.update.trust.Trust` is one. Blocks."""

    def find(self, path: str) -> Target:
        """Raises TransientError, TrustError, DataError."""
        ...

    def verify(self, file: Path, target: Target) -> None:
        """Raises TrustError."""
        ...


Unpack = Callable[[Path, Path, Release], None]
"""Archive, empty folder, release. Blocks. Raises TrustError, ModelError, OSError."""
Fetch = Callable[[Target, Path, Callable[[int], None]], Awaitable[None]]
"""Fill the part file, from where it stopped; told the bytes that are there. Raises DownloadError, RefusedDownloadError."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Waits. first_s, longest_s: between two tries of a download; first_s: of writing down that a candidate was taken back; look_s: between
    two looks for a moment that suits; moment_s: most for a moment that suits a candidate that is loaded; progress_s: between two words to
    the server about the same phase; requests_s: between two looks for requests; spent_s: between two times that the time on trial is
    written down."""

    first_s: float = 30.0
    longest_s: float = 3600.0
    look_s: float = 1.0
    moment_s: float = 600.0
    progress_s: float = 10.0
    requests_s: float = 1.0
    spent_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Parts:
    """config: as it is now; facts: of this device now; local_time: of the device's zone."""

    journal: Journal
    store: VersionStore
    disk: OneThread
    trust_thread: OneThread
    trust: Callable[[], Genuine]
    trials: Trials
    unpack: Unpack
    fetch: Fetch
    facts: Callable[[], DeviceFacts]
    config: Callable[[], UpdateConfig]
    attributes: Callable[[], Mapping[str, str]]
    changed: Callable[[], None]
    local_time: Callable[[], datetime]
    pace: Pace = field(default_factory=Pace)


@dataclass(slots=True)
class Progress:
    """What is being done now. share: 0-1; waiting: why it waits, empty = it does not; may_*, forced: what the server says of it, anew
    after every start (see `Deployment`)."""

    text: str = ""
    share: float = 0.0
    waiting: str = ""
    may_download: bool = True
    may_install: bool = True
    forced: bool = False

    def clear(self) -> None:
        """Another phase begins."""
        self.text, self.share, self.waiting = "", 0.0, ""
