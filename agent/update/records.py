"""The rows of the journal as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.update.machine import FINAL, Phase, Report
from agent.update.release import Release
from agent.update.trials import Figures, Refusal

About = Literal["deployment", "cancel", "confirmation"]


@dataclass(frozen=True, slots=True)
class Version:
    """One release in the store. sha256: of its archive."""

    sha256: str
    release: Release


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves a slot. current, before: None = what the configuration names; has_before: there is something to go back to.

    highest: number of the newest release that was ever committed, 0 = none.
    """

    slot: str
    current: Version | None = None
    before: Version | None = None
    has_before: bool = False
    highest: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """One update. came_from: digest of what served the slot when its probation began, empty = what the configuration names.

    settled: nothing is left to be done about it here. figures: by the phase in which they were measured. failures: of its download,
    in a row. starts, clean: see `machine.judge_start`. spent_s: what its shadow run or probation has taken so far, over restarts.
    """

    action_id: str
    target: str
    slot: str
    phase: Phase
    settled: bool = False
    release: Release | None = None
    sha256: str = ""
    came_from: str = ""
    reason: str = ""
    text: str = ""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    failures: int = 0
    starts: int = 0
    clean: bool = False
    spent_s: float = 0.0
    t_begun_us: int = 0
    t_phase_us: int = 0

    @property
    def over(self) -> bool:
        """Whether it has reached an end."""
        return self.phase in FINAL

    @property
    def title(self) -> str:
        """Name and version, as far as they are known."""
        return self.release.title if self.release else self.target

    @property
    def version(self) -> Version:
        """Its release in the store. Only from `verified` on."""
        if self.release is None or not self.sha256:
            raise ValueError(f"action {self.action_id} has no version before {Phase.VERIFIED}, it is {self.phase}")
        return Version(self.sha256, self.release)

    @property
    def refusal(self) -> Refusal:
        """Why it did not get in, or did not stay."""
        return Refusal(self.reason, self.text, self.flat_figures)

    @property
    def flat_figures(self) -> dict[str, float | int | str]:
        """All of them by name, the latest wins."""
        return {name: value for part in self.figures.values() for name, value in part.items()}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A report that the server has not accepted yet."""

    feedback_id: int
    action_id: str
    about: About
    report: Report


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the record. t_us: microseconds since 1970 UTC, by the wall clock."""

    t_us: int
    action_id: str
    what: str
    detail: Mapping[str, Any]


def to_json(value: object) -> str:
    """Compact, sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def release_json(version: Version | None) -> str | None:
    """Of a version that may be what the configuration names."""
    return version.release.model_dump_json() if version is not None else None
