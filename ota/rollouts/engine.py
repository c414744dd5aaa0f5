"""What a rollout does next: a pure function of its plan, of how its devices stand and of the time.

    draft ──approve──▶ ready ──start──▶ running ──▶ finished
                                         │   ▲
                            pause, error │   │ resume          abort: from each of these
                                         ▼   │
      rolled_back ◀── rolling_back ◀── paused / running  ──abort──▶ aborted
                           └─────────── nobody could ────────────────▲

It decides on numbers of devices, never on single ones: the driver knows which device waits and which is open, and each decision can
be carried out in part, and again, without harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ota.rollouts.plan import GroupPlan, Plan


class State(StrEnum):
    """Of a rollout. draft: waits for approval; ready: may begin; rolling_back: the version before goes out again."""

    DRAFT = "draft"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    ABORTED = "aborted"
    FINISHED = "finished"
    ROLLED_BACK = "rolled_back"


ENDED = frozenset({State.ABORTED, State.FINISHED, State.ROLLED_BACK})


class Stage(StrEnum):
    """Of a group. approved: scheduled, and a person has agreed; met: enough devices are well; accepted: a person said to go on in
    spite of it; failed: too many were not; withdrawn: its devices go back although it did not fail itself."""

    SCHEDULED = "scheduled"
    APPROVED = "approved"
    RUNNING = "running"
    MET = "met"
    ACCEPTED = "accepted"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


BEGUN = frozenset({Stage.RUNNING, Stage.MET, Stage.ACCEPTED, Stage.FAILED, Stage.WITHDRAWN})
GOING = frozenset({Stage.RUNNING, Stage.MET, Stage.ACCEPTED})
PASSED = frozenset({Stage.MET, Stage.ACCEPTED})
BACK = frozenset({Stage.FAILED, Stage.WITHDRAWN})
"""While a rollout rolls back, the groups whose devices get the version before."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many devices of a group stand where.

    waiting: nothing sent; open: got the release, no verdict; ending: the same, and the offer was taken back, which the device has yet
    to say yes to; succeeded: run it; rooted: the part of those with no way back (no version before, or something else runs by now);
    failed; left: their action was cancelled, so that they say nothing about the release; returning, returned, stuck: got the
    version before, run it, could not.
    """

    waiting: int = 0
    open: int = 0
    ending: int = 0
    succeeded: int = 0
    rooted: int = 0
    failed: int = 0
    left: int = 0
    returning: int = 0
    returned: int = 0
    stuck: int = 0

    @property
    def members(self) -> int:
        return self.waiting + self.unsettled + self.succeeded + self.failed + self.left + self.returned + self.stuck

    @property
    def unsettled(self) -> int:
        """Those that a device has yet to say something about."""
        return self.open + self.ending + self.returning

    @property
    def judged(self) -> int:
        """Those that count: a share is of these."""
        return self.members - self.left


@dataclass(frozen=True, slots=True)
class Group:
    """A group as stored. met_ms: when it was met or accepted (UTC milliseconds)."""

    plan: GroupPlan
    stage: Stage
    tally: Tally
    met_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    plan: Plan
    state: State
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """Fix the members of all groups, then run: its time has come."""


@dataclass(frozen=True, slots=True)
class SetState:
    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SetStage:
    group: int
    stage: Stage
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """The release to every waiting device of the group."""

    group: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Take the offer back from every open device of the group."""

    group: int


@dataclass(frozen=True, slots=True)
class GoBack:
    """The version before to every device of the group that runs the release and has one."""

    group: int


Decision = Begin | SetState | SetStage | Offer | Cancel | GoBack


def decide(rollout: Rollout, now_ms: int) -> list[Decision]:
    """What is to be done now, in this order; empty: nothing until a device reports or time passes.

    A list changes the stages of groups at most once: carry it out and ask again until it is empty.
    """
    match rollout.state:
        case State.READY:
            due = rollout.plan.start_ms is not None and now_ms >= rollout.plan.start_ms
            return [Begin()] if due else []
        case State.RUNNING:
            return _run(rollout, now_ms)
        case State.ROLLING_BACK:
            return _roll_back(rollout)
        case State.ABORTED:
            return _take_back(rollout)
        case State.PAUSED if any(group.stage is Stage.FAILED for group in rollout.groups):
            return _take_back(rollout)
        case State.DRAFT | State.PAUSED | State.FINISHED | State.ROLLED_BACK:
            return []


def next_start_ms(rollout: Rollout) -> int | None:
    """When time alone makes `decide` say something else; None: only a report can."""
    if rollout.state is State.READY:
        return rollout.plan.start_ms
    index = _next(rollout.groups)
    if rollout.state is not State.RUNNING or index is None or index == 0:
        return None
    before, group = rollout.groups[index - 1], rollout.groups[index]
    if before.met_ms is None or _waits_for_a_person(group):
        return None
    return before.met_ms + round(group.plan.wait_s * 1000)


def waits_for_approval(rollout: Rollout) -> int | None:
    """Index of the group that only a person's approval keeps from its turn."""
    if rollout.state is State.DRAFT:
        return 0
    index = _next(rollout.groups)
    if rollout.state not in {State.RUNNING, State.PAUSED} or index is None or not _before_passed(rollout, index):
        return None
    group = rollout.groups[index]
    return index if _waits_for_a_person(group) else None


def needed(plan: GroupPlan, judged: int) -> int:
    """Devices that must succeed."""
    return math.ceil(round(judged * plan.success_percent / 100, 9))


def too_many(plan: GroupPlan, judged: int) -> int:
    """Failed devices that stop a rollout: one at least."""
    return max(1, math.ceil(round(judged * plan.error_percent / 100, 9)))


def _run(rollout: Rollout, now_ms: int) -> list[Decision]:
    for index, group in enumerate(rollout.groups):
        if group.stage in {Stage.RUNNING, Stage.MET} and (why := objection(group)):
            return list(_stop(rollout, index, why))
    met = [
        SetStage(index, Stage.MET)
        for index, group in enumerate(rollout.groups)
        if group.stage is Stage.RUNNING and group.tally.succeeded >= needed(group.plan, group.tally.judged)
    ]
    if met:
        return [*met]
    turn = _next(rollout.groups)
    if turn is not None and _may_begin(rollout, turn, now_ms):
        return [SetStage(turn, Stage.RUNNING)]
    offers = [
        Offer(index) for index, group in enumerate(rollout.groups) if group.stage in GOING and group.tally.waiting
    ]
    if offers:
        return [*offers]
    if turn is None and not any(group.tally.unsettled for group in rollout.groups):
        return [SetState(State.FINISHED, summary(rollout.groups))]
    return []


def objection(group: Group) -> str:
    """Why a group that runs must not go on; empty when it may."""
    tally, plan = group.tally, group.plan
    if tally.members == 0:
        return ""
    if tally.judged == 0:
        return f"group {plan.name}: no device is left to judge the release by"
    share = f"{tally.failed} of {tally.judged} devices failed ({100 * tally.failed / tally.judged:.0f} %"
    if tally.failed >= too_many(plan, tally.judged):
        return f"group {plan.name}: {share}, limit {plan.error_percent:g} %)"
    if tally.judged - tally.failed < needed(plan, tally.judged):
        return f"group {plan.name}: {share}), {plan.success_percent:g} % success cannot be reached"
    return ""


def _stop(rollout: Rollout, index: int, why: str) -> Iterator[Decision]:
    """Back when too many failed; only a pause where nobody is left to judge by."""
    group = rollout.groups[index]
    yield SetStage(index, Stage.FAILED, why)
    if rollout.plan.roll_back == "none" or group.tally.judged == 0:
        yield SetState(State.PAUSED, why)
        return
    if rollout.plan.roll_back == "all":
        for other, group in enumerate(rollout.groups):
            if other != index and group.stage in BEGUN:
                yield SetStage(other, Stage.WITHDRAWN)
    yield SetState(State.ROLLING_BACK, why)


def _take_back(rollout: Rollout) -> list[Decision]:
    return [Cancel(index) for index, group in enumerate(rollout.groups) if group.tally.open]


def _roll_back(rollout: Rollout) -> list[Decision]:
    done: list[Decision] = []
    for index, group in enumerate(rollout.groups):
        if group.tally.open:
            done.append(Cancel(index))
        if group.stage in BACK and group.tally.succeeded > group.tally.rooted:
            done.append(GoBack(index))
    if done or any(group.tally.unsettled for group in rollout.groups):
        return done
    return [_gone_back(rollout.groups)]


def _gone_back(groups: Sequence[Group]) -> SetState:
    """The end of a roll-back; it is not called one where nobody that should have gone back did."""
    back = [group.tally for group in groups if group.stage in BACK]
    if not any(tally.rooted or tally.stuck for tally in back):
        return SetState(State.ROLLED_BACK, summary(groups))
    if any(tally.returned for tally in back):
        return SetState(State.ROLLED_BACK, f"not everybody went back: {summary(groups)}")
    return SetState(State.ABORTED, f"nobody went back: {summary(groups)}")


def summary(groups: Sequence[Group]) -> str:
    """`9 succeeded, 1 failed`; parts that are none are left out."""
    back = [group.tally.rooted for group in groups if group.stage in BACK]
    counts = {
        "succeeded": sum(group.tally.succeeded for group in groups),
        "failed": sum(group.tally.failed for group in groups),
        "went back": sum(group.tally.returned for group in groups),
        "could not go back": sum(group.tally.stuck for group in groups),
        "have no way back": sum(back),
        "left": sum(group.tally.left for group in groups),
    }
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "no devices"


def _next(groups: Sequence[Group]) -> int | None:
    return next((index for index, group in enumerate(groups) if group.stage not in BEGUN), None)


def _waits_for_a_person(group: Group) -> bool:
    return group.plan.approval and group.stage is Stage.SCHEDULED


def _before_passed(rollout: Rollout, index: int) -> bool:
    return index == 0 or rollout.groups[index - 1].stage in PASSED


def _may_begin(rollout: Rollout, index: int, now_ms: int) -> bool:
    group = rollout.groups[index]
    if not _before_passed(rollout, index) or _waits_for_a_person(group):
        return False
    before = None if index == 0 else rollout.groups[index - 1].met_ms
    return before is None or now_ms >= before + group.plan.wait_s * 1000
