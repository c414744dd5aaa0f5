"""What follows what in an update, and what the server hears of it. Pure.

    downloading ─▶ verified ─▶ validated ─▶ shadow ─▶ probation ─▶ committed
         │            │            │           │           └──────▶ rolled_back
         └────────────┴────────────┴───────────┴──▶ refused, cancelled

A phase is on the disk before its work begins, and its work may be begun again: downloading fetches, checks and unpacks; verified
tries the candidate in a process of its own; validated is passed through; shadow runs it beside the model in use and waits for a
moment that suits; probation puts it in its place and watches. The swap is the first deed of probation: until then an update can be
cancelled and nothing has changed, from then on there is something to go back from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from agent.update.trials import Figures, Refusal


class Phase(StrEnum):
    """Where an update stands."""

    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    VALIDATED = "validated"
    SHADOW = "shadow"
    PROBATION = "probation"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    CANCELLED = "cancelled"


FINAL = frozenset({Phase.COMMITTED, Phase.ROLLED_BACK, Phase.REFUSED, Phase.CANCELLED})
NEXT: Mapping[Phase, Phase] = {
    Phase.DOWNLOADING: Phase.VERIFIED,
    Phase.VERIFIED: Phase.VALIDATED,
    Phase.VALIDATED: Phase.SHADOW,
    Phase.SHADOW: Phase.PROBATION,
    Phase.PROBATION: Phase.COMMITTED,
}
MOST_STARTS = 2
"""The start of this number that finds the candidate's work in this process cut off by its death ends it."""
MOST_DETAILS = 40
_MAX_TEXT = 500

Execution = Literal["closed", "proceeding", "canceled", "rejected", "download", "downloaded", "resumed"]
Finished = Literal["success", "failure", "none"]

_EXECUTIONS: Mapping[Phase, tuple[Execution, Finished]] = {
    Phase.DOWNLOADING: ("download", "none"),
    Phase.VERIFIED: ("downloaded", "none"),
    Phase.VALIDATED: ("proceeding", "none"),
    Phase.SHADOW: ("proceeding", "none"),
    Phase.PROBATION: ("proceeding", "none"),
    Phase.COMMITTED: ("closed", "success"),
    Phase.ROLLED_BACK: ("closed", "failure"),
    Phase.REFUSED: ("closed", "failure"),
    Phase.CANCELLED: ("canceled", "success"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What the server is told: `status` of a DDI feedback."""

    execution: Execution
    finished: Finished
    details: tuple[str, ...]

    @property
    def final(self) -> bool:
        """Whether it closes the action."""
        return self.execution in {"closed", "canceled", "rejected"}


def after(phase: Phase, outcome: Figures | Refusal) -> Phase:
    """The phase that follows `phase` when its work has ended so. Raises ValueError for a phase without work."""
    if phase not in NEXT:
        raise ValueError(f"{phase} is an end, nothing follows it")
    if not isinstance(outcome, Refusal):
        return NEXT[phase]
    return Phase.ROLLED_BACK if phase is Phase.PROBATION else Phase.REFUSED


def may_cancel(phase: Phase) -> bool:
    """Whether the server's wish to cancel can be met: before the swap."""
    return phase not in FINAL and phase is not Phase.PROBATION


def judge_start(phase: Phase, starts: int, *, clean: bool, measured: bool = False) -> tuple[int, Refusal | None]:
    """At a start of the agent: the count of starts from now on, and whether a shadow run or a probation ends here.

    starts: deaths of the process during this phase that are counted already; clean: it was stopped properly this time; measured: the
    shadow run is over, and the candidate not loaded any more while it waits for its moment.
    """
    if clean or not (phase is Phase.PROBATION or (phase is Phase.SHADOW and not measured)):
        return starts, None
    starts += 1
    if starts < MOST_STARTS:
        return starts, None
    during = "probation" if phase is Phase.PROBATION else "shadow run"
    return starts, Refusal("restart", f"the agent died {starts} times during the {during}", {"starts": starts})


def report(phase: Phase, *, text: str = "", reason: str = "", figures: Figures | None = None) -> Report:
    """What the server hears of `phase`. text: for people; reason: one word; figures: what was measured."""
    execution, finished = _EXECUTIONS[phase]
    return Report(execution, finished, _details(phase.value, text, reason, figures or {}))


def not_cancelled(phase: Phase) -> Report:
    """The answer to a wish to cancel that comes too late."""
    return Report("rejected", "failure", _details(phase.value, f"too late to cancel: {phase}", "", {}))


def _details(phase: str, text: str, reason: str, figures: Figures) -> tuple[str, ...]:
    details = [phase]
    if text:
        details.append(f"text: {text}"[:_MAX_TEXT])
    if reason:
        details.append(f"reason: {reason}")
    details += [f"{name}: {_shown(value)}"[:_MAX_TEXT] for name, value in figures.items()]
    return tuple(details[:MOST_DETAILS])


def _shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
