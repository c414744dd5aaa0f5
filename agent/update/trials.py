"""What the update client asks of the agent that runs the models: a port, so that the client is tested without a model and the
agent's part without a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.update.release import Release

Figures = Mapping[str, float | int | str]
"""Measured on the device, by name with the unit in it: `latency_ms`, `agreement`."""
Ready = Callable[[], Awaitable[None]]
"""Comes back when nothing speaks against a change; raises what ends the wish for it."""
Tell = Callable[[str, float], None]
"""Progress for people: what is being done, and how far, 0-1."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release whose bytes are on the disk and genuine.

    path: its unpacked bundle folder (or the configuration file); sha256: of the archive, the name of the version in the store.
    spent_s: what its shadow run or probation took in earlier lives of the agent; counts towards the longest that it may take.
    back: it is the version before, and is not measured against the one that it takes away.
    """

    release: Release
    path: Path
    sha256: str
    spent_s: float = 0.0
    back: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a release does not get in, or does not stay.

    reason: one word for machines: `contract`, `golden`, `slower`, `memory`, `crash`, `worse`, `unproven`, `unhealthy`, `drift`, `restart`,
    `configuration`; text: for people; figures: what was measured.
    """

    reason: str
    text: str
    figures: Figures = field(default_factory=dict)


class Trials(Protocol):
    """All of it on the loop; cancelling leaves what runs as it is."""

    def not_now(self, *, back: bool = False) -> str:
        """Why nothing may be swapped at this moment (an event is active, the agent is unhealthy); empty = it may. back: for the version
        before, which may be what makes the agent well again: how it is does not count."""
        ...

    def running(self, slot: str) -> Path | None:
        """Bundle that serves `slot` now; None when the slot is not served."""
        ...

    async def validate(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """Golden answers, latency and memory, in a process of its own that may die."""
        ...

    async def shadow(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """Beside the running model on live data, for as long as configured and as it takes to say something."""
        ...

    async def install(self, slot: str, path: Path | None, ready: Ready | None = None) -> Figures:
        """Let `path` (None: what the configuration names) serve `slot` from the next frame on; returns the figures of the change,
        `gap_ms` among them. ready: awaited when all but the change is done, which may have taken minutes. Where `path` serves
        already nothing is done. Raises ModelError, ConfigError; the running one goes on then."""
        ...

    def let_go(self, slot: str) -> None:
        """The model that served `slot` before the last change is not needed any more: no probation follows, or it is over."""
        ...

    async def watch(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """Probation: health, drift and errors for as long as configured and as it takes to say something; of one that is `back` only
        health and errors, without the past."""
        ...
