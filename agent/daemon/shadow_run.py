"""A shadow run from begin to verdict: the candidate beside the running model until there is enough to compare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from agent.config.schema import AgentConfig
from agent.config.update import UpdateConfig
from agent.daemon.shadow import Shadow
from agent.errors import ModelError
from agent.recognition import Model, Recognition
from agent.types import POSE_SLOT
from agent.update.agreement import Opinion, PoseTally, VerdictTally
from agent.update.probing import clean
from agent.update.release import Minimum
from agent.update.trials import Figures, Refusal, Tell

POSE_FLOOR = 0.6
ACTION_FLOOR = 0.8
"""Agreement below which a candidate does another job, where its release names no figure."""
POSITIVE_FLOOR = 0.3
"""... of what is positive: a candidate that never sees anything agrees about all the rest."""
WANTED_PEOPLE = 100
WANTED_WINDOWS = 30
LONGER = 3.0
"""So many times the configured time a run waits for as many as are wanted; for the fewest that prove anything up to `update.shadow_max_s`."""
WINDOWS_WAITING = 16
LOOK_S = 0.5
SPARING_LOOK_S = 5.0
MAX_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Terms:
    """shadow_s, longest_s: least and most duration; floor: least agreement, 0-1; wanted: people or windows that are enough to judge by;
    spent_s: what runs before this one took, which restarts of the agent cut off."""

    shadow_s: float
    longest_s: float
    floor: float
    wanted: int
    spent_s: float = 0.0

    @classmethod
    def of(cls, slot: str, minimum: Minimum, config: UpdateConfig, spent_s: float = 0.0) -> Terms:
        """Those of a release."""
        usual, wanted = (POSE_FLOOR, WANTED_PEOPLE) if slot == POSE_SLOT else (ACTION_FLOOR, WANTED_WINDOWS)
        floor = usual if minimum.agreement is None else minimum.agreement
        longest_s = max(config.shadow_s, config.shadow_max_s - spent_s)
        return cls(config.shadow_s, longest_s, floor, wanted, spent_s)


class Tally(Protocol):
    """What both tallies have."""

    def figures(self) -> dict[str, float]: ...

    def opinion(self, floor: float, wanted: int) -> Opinion: ...


async def run_shadow(recognition: Recognition, slot: str, model: Model, terms: Terms, tell: Tell) -> Figures | Refusal:
    """At least `terms.shadow_s`; longer while hardly anybody is in view, up to `LONGER` times; as long as `terms.longest_s` while there
    is too little to say anything for the candidate, and then it is refused. The model is not used any more afterwards.

    Raises ModelError when somebody else looks on already.
    """
    worker = recognition.worker(slot)
    if worker.tap is not None:
        raise ModelError(f"a shadow run of the slot {slot!r} is under way")
    tally, compare = _tally(recognition, slot)
    function = recognition.function(slot, model)
    if slot == POSE_SLOT:
        shadow = Shadow(function, compare, worth=len)
    else:
        shadow = Shadow(function, compare, depth=WINDOWS_WAITING)
    shadow.start()
    worker.tap = shadow.offer
    try:
        waited_s = await _wait(shadow, tally, terms, tell)
    finally:
        worker.tap = None
        ended = await asyncio.shield(asyncio.to_thread(shadow.stop))
    if not ended:
        return Refusal("crash", "an inference of the candidate does not end")
    return _verdict(shadow, tally, terms, waited_s)


async def _wait(shadow: Shadow[Any, Any], tally: Tally, terms: Terms, tell: Tell) -> float:
    waited_s, shadow_s = 0.0, terms.shadow_s
    while waited_s < terms.longest_s and not _seen_enough(shadow, tally, terms, waited_s):
        shadow.sparing = waited_s >= LONGER * shadow_s
        step_s = min(SPARING_LOOK_S if shadow.sparing else LOOK_S, terms.longest_s - waited_s)
        await asyncio.sleep(step_s)
        waited_s += step_s
        late = waited_s > shadow_s
        tell("shadow: waiting for people" if late else "shadow", min(1.0, waited_s / shadow_s) * (0.9 if late else 1.0))
    return waited_s


def _seen_enough(shadow: Shadow[Any, Any], tally: Tally, terms: Terms, waited_s: float) -> bool:
    if shadow.dead or (shadow.failures >= MAX_FAILURES and shadow.failures > shadow.samples):
        return True
    opinion = tally.opinion(terms.floor, terms.wanted)
    if waited_s >= LONGER * terms.shadow_s:
        return opinion.proven or not opinion.good
    return waited_s >= terms.shadow_s and opinion.enough


def _verdict(shadow: Shadow[Any, Any], tally: Tally, terms: Terms, waited_s: float) -> Figures | Refusal:
    figures: dict[str, float | int | str] = {
        **tally.figures(), "shadow_s": round(waited_s, 1), "samples": shadow.samples, "failures": shadow.failures,
    }  # fmt: skip
    if shadow.samples:
        figures["shadow_latency_ms"] = round(1e3 * shadow.seconds / (shadow.samples + shadow.failures), 2)
    if shadow.dead or shadow.failures > shadow.samples:
        text = f"{shadow.failures} inferences failed, {shadow.samples} did not; last: {clean(shadow.last_error)}"
        return Refusal("crash", text, figures)
    opinion = tally.opinion(terms.floor, terms.wanted)
    if not opinion.good:
        return Refusal("worse", opinion.text, figures)
    if not opinion.proven:
        text = f"compared {shadow.samples} times in {_shown(waited_s)}, too few to judge by: {opinion.text}"
        before = f" (and {_shown(terms.spent_s)} before the agent was started again)" if terms.spent_s else ""
        return Refusal("unproven", text + before, figures)
    return figures if opinion.enough else {**figures, "note": opinion.text}


def _shown(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _tally(recognition: Recognition, slot: str) -> tuple[Tally, Callable[[Any, Any], None]]:
    config: AgentConfig = recognition.config
    if slot == POSE_SLOT:
        poses = PoseTally(config.tracking.track_threshold)
        return poses, poses.add
    name = slot.partition("/")[2]
    service = config.services[name]
    column = recognition.labels(slot).index(service.positive or name)
    verdicts = VerdictTally(service.rules.alert_threshold, positive_floor=POSITIVE_FLOOR)
    return verdicts, lambda running, candidate: verdicts.add(float(running[column]), float(candidate[column]))
