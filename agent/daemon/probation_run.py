"""A probation from begin to verdict: the agent since a change beside what it was like before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from agent.config.schema import AgentConfig
from agent.daemon.vitals import Vitals
from agent.update import probation
from agent.update.probation import Course, Spell, Standing
from agent.update.probing import clean
from agent.update.trials import Candidate, Figures, Refusal, Tell

LOOK_S = 1.0
_GOES_ON = frozenset({Standing.ON_TIME, Standing.LATE})


@dataclass(frozen=True, slots=True)
class Change:
    """What a probation compares with. at_s: of `Vitals.mark`; cards: of the model before and of the new one."""

    at_s: float
    before: Spell
    cards: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})


async def run_probation(
    vitals: Vitals,
    candidate: Candidate,
    config: AgentConfig,
    change: Change,
    *,
    since: Callable[[], Spell],
    frames: Callable[[], bool],
    tell: Tell,
) -> Figures | Refusal:
    """Ends early with the first finding, and without one as `Course` says. since: the spell from the change until now; frames: whether
    a camera of the slot delivers."""
    slot, wanted_s = candidate.release.slot, config.update.probation_s
    course = Course(slot, wanted_s, config.update.probation_max_s, candidate.spent_s)
    limits = probation.Limits(
        latency_ratio=candidate.release.minimum.latency_ratio,
        mean_drop=2 * config.drift.confidence_drop,
        lasting_s=min(probation.LASTING_S, wanted_s / 3),
    )
    spell = since()
    while (standing := course.standing(spell)) in _GOES_ON:
        tell(course.doing, course.share)
        step_s = min(LOOK_S, max(0.01, wanted_s - course.counted_s if standing is Standing.ON_TIME else wanted_s))
        await asyncio.sleep(step_s)
        spell = since()
        course.advance(step_s, spell, frames=frames())
        found = probation.judge(
            slot, change.before, spell, _raised_s(vitals, change), limits=limits, cards=change.cards
        )
        if found is not None:
            return Refusal(found.reason, clean(found.text), _figures(change, spell, course))
    tell(course.doing, course.share)
    figures = _figures(change, spell, course)
    if standing is Standing.UNPROVEN:
        shown = timedelta(seconds=round(course.total_s))
        text = f"in {shown} never {probation.MIN_CALLS} inferences within ten minutes, too few to judge by"
        failed = f"; {spell.failures} failed lately" if spell.failures else ""
        return Refusal("unproven", text + failed, figures)
    note = course.note(spell)
    return {**figures, "note": note} if note else figures


def _figures(change: Change, spell: Spell, course: Course) -> dict[str, float | int | str]:
    return {**probation.figures(change.before, spell), "probation_s": round(course.elapsed_s, 1)}


def _raised_s(vitals: Vitals, change: Change) -> dict[str, float]:
    """Health reasons that are raised now, and for how long within the probation."""
    since_s = vitals.now_s() - change.at_s
    return {reason: min(seconds, since_s) for reason, seconds in vitals.raised_s().items()}
