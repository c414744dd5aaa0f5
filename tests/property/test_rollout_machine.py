"""The engine of rollouts against a fleet of devices that do what they like.

The model knows every device by itself, as the tables do; decisions are carried out on some of the devices they name, as by a driver that
is killed half-way. What must hold is checked after each step on the devices, not on what the engine says of itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ota.rollouts import moves
from ota.rollouts.engine import (
    BEGUN,
    ENDED,
    Begin,
    Cancel,
    Decision,
    GoBack,
    Group,
    Offer,
    Rollout,
    SetStage,
    SetState,
    Stage,
    State,
    Tally,
    decide,
    next_start_ms,
    waits_for_approval,
)
from ota.rollouts.plan import GroupPlan, Plan

ROUNDS = 60
OPEN = {"open", "ending"}


@dataclass
class Box:
    """at: as the fields of Tally; back: has a version to go back to; fetched: knows of its offer; had: ran the release at some time."""

    group: int
    back: bool
    at: str = "waiting"
    fetched: bool = False
    had: bool = False


class RolloutMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.plan = Plan()
        self.state = State.READY
        self.boxes: list[Box] = []
        self.stages: list[Stage] = []
        self.met_ms: list[int | None] = []
        self.paused_offers = 0
        self.offered_after_end = 0
        self.failed_by_engine = False

    @initialize(
        sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4),
        success=st.sampled_from([0.0, 50.0, 90.0, 100.0]),
        error=st.sampled_from([0.0, 20.0, 50.0, 100.0]),
        wait_s=st.sampled_from([0.0, 0.0, 10.0]),
        approval=st.booleans(),
        roll_back=st.sampled_from(["none", "group", "all"]),
        start=st.sampled_from([None, 5_000]),
        rooted=st.randoms(use_true_random=False),
    )
    def plan_it(
        self, sizes: list[int], success: float, error: float, wait_s: float, approval: bool, roll_back: Any,
        start: int | None, rooted: Any,
    ) -> None:  # fmt: skip
        last = len(sizes) - 1
        groups = tuple(
            GroupPlan(
                name=str(n), count=None if n == last else max(1, size), success_percent=success, error_percent=error,
                wait_s=wait_s, approval=approval,
            )
            for n, size in enumerate(sizes)
        )  # fmt: skip
        self.plan = Plan(groups=groups, roll_back=roll_back)
        self.start_ms = start
        if start is not None:
            self.plan = self.plan.model_copy(
                update={"start_at": Plan.model_validate({"start_at": start / 1000}).start_at}
            )
        self.state = State.DRAFT if approval else State.READY
        self.boxes = [Box(n, rooted.random() < 0.8) for n, size in enumerate(sizes) for _ in range(size)]
        self.stages = [Stage.SCHEDULED] * len(sizes)
        self.met_ms = [None] * len(sizes)

    # --- what the tables would say ------------------------------------------------------------------------------------

    def of(self, group: int) -> list[Box]:
        return [box for box in self.boxes if box.group == group]

    def tally(self, group: int) -> Tally:
        boxes = self.of(group) if self.begun else []
        rooted = sum(box.at == "succeeded" and not box.back for box in boxes)
        return Tally(**Counter(box.at for box in boxes), rooted=rooted)

    @property
    def begun(self) -> bool:
        return self.state not in {State.DRAFT, State.READY}

    @property
    def stopped(self) -> bool:
        """By a group that failed, without a way back."""
        return self.state is State.PAUSED and Stage.FAILED in self.stages

    def rollout(self) -> Rollout:
        groups = tuple(
            Group(plan, self.stages[n], self.tally(n), self.met_ms[n]) for n, plan in enumerate(self.plan.groups)
        )
        return Rollout(self.plan, self.state, groups)

    # --- the driver ---------------------------------------------------------------------------------------------------

    def carry_out(self, decision: Decision, most: int) -> None:
        """most: devices it reaches before it is killed."""
        match decision:
            case Begin():
                self.state = State.RUNNING
            case SetState(state):
                self.set_state(state)
            case SetStage(group, stage):
                if stage is Stage.RUNNING:
                    self.check_turn(group)
                self.stages[group] = stage
                if stage in {Stage.MET, Stage.ACCEPTED}:
                    self.met_ms[group] = self.now_ms
            case Offer(group):
                assert self.state is State.RUNNING
                self.reach(group, most, "waiting", lambda box: "open")
            case Cancel(group):
                assert self.state in {State.ABORTED, State.ROLLING_BACK} or self.stopped
                self.reach(group, most, "open", lambda box: "ending")
            case GoBack(group):
                assert self.state is State.ROLLING_BACK
                self.reach(group, most, "succeeded", lambda box: "returning" if box.back else "succeeded")

    def set_state(self, state: State) -> None:
        self.state = state
        for box in self.boxes:
            if state is State.PAUSED and box.at == "open" and not box.fetched:
                box.at = "waiting"

    def reach(self, group: int, most: int, at: str, to: Callable[[Box], str]) -> None:
        boxes = [box for box in self.of(group) if box.at == at and to(box) != at]
        assert boxes, "a decision that reaches nobody would be made for ever"
        for box in boxes[:most]:
            box.at = to(box)

    def check_turn(self, group: int) -> None:
        """Every group before this one has got there, or a person accepted it, and it has had its wait."""
        plan = self.plan.groups[group]
        assert not plan.approval or self.stages[group] is Stage.APPROVED
        if group == 0:
            return
        assert self.stages[group - 1] in {Stage.MET, Stage.ACCEPTED}
        met = self.met_ms[group - 1]
        assert met is not None
        assert self.now_ms >= met + plan.wait_s * 1000

    def apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.carry_out(decision, len(self.boxes))

    def check_rest(self) -> None:
        """Nothing more to do until a device reports: an end has taken back all that was open, a way back was offered to all."""
        if self.state in {State.ABORTED, State.ROLLING_BACK} or self.stopped:
            assert all(box.at != "open" for box in self.boxes)
        if self.state is State.ROLLING_BACK:
            going = [box for box in self.boxes if self.stages[box.group] in {Stage.FAILED, Stage.WITHDRAWN}]
            assert all(box.at != "succeeded" or not box.back for box in going)
        if self.state is State.RUNNING:
            assert all(box.at != "waiting" or self.stages[box.group] not in BEGUN for box in self.boxes)

    # --- what happens -------------------------------------------------------------------------------------------------

    @rule(most=st.integers(1, 4), killed_after=st.integers(0, 3))
    def driver_runs_a_little(self, most: int, killed_after: int) -> None:
        """State changes of one answer are one transaction; the devices come in parts."""
        decisions = decide(self.rollout(), self.now_ms)
        if all(isinstance(decision, SetState | SetStage | Begin) for decision in decisions):
            self.apply(decisions)
            return
        for decision in decisions[:killed_after]:
            self.carry_out(decision, most)

    @rule()
    def driver_runs_to_its_end(self) -> None:
        for _ in range(ROUNDS):
            decisions = decide(self.rollout(), self.now_ms)
            if not decisions:
                self.check_rest()
                return
            self.apply(decisions)
        raise AssertionError("it never comes to rest")

    @precondition(lambda self: any(box.at == "open" and not box.fetched for box in self.boxes))
    @rule()
    def a_device_fetches(self) -> None:
        next(box for box in self.boxes if box.at == "open" and not box.fetched).fetched = True

    @precondition(lambda self: any(box.at in OPEN for box in self.boxes))
    @rule(
        choice=st.randoms(use_true_random=False), verdict=st.sampled_from(["succeeded", "succeeded", "failed", "left"])
    )
    def a_device_reports(self, choice: Any, verdict: str) -> None:
        box = choice.choice([box for box in self.boxes if box.at in OPEN])
        box.at = verdict
        box.had |= verdict == "succeeded"

    @precondition(lambda self: any(box.at in OPEN for box in self.boxes))
    @rule(verdict=st.sampled_from(["succeeded", "failed"]), but=st.integers(0, 1))
    def all_devices_report(self, verdict: str, but: int) -> None:
        for box in [box for box in self.boxes if box.at in OPEN][but:]:
            box.at = verdict
            box.had |= verdict == "succeeded"

    @precondition(lambda self: any(box.at == "returning" for box in self.boxes))
    @rule(verdict=st.sampled_from(["returned", "stuck"]))
    def a_device_is_back(self, verdict: str) -> None:
        next(box for box in self.boxes if box.at == "returning").at = verdict

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        before, soon = decide(self.rollout(), self.now_ms), next_start_ms(self.rollout())
        self.now_ms += seconds * 1000
        if not before and decide(self.rollout(), self.now_ms):
            assert soon is not None
            assert soon <= self.now_ms

    @rule()
    def start(self) -> None:
        self.move(moves.start, {State.READY})

    @rule()
    def pause(self) -> None:
        self.move(lambda rollout: moves.pause(rollout, "anna"), {State.RUNNING})

    @rule(accept=st.booleans())
    def resume(self, accept: bool) -> None:
        stopped = Stage.FAILED in self.stages
        allowed = {State.PAUSED} if accept or not stopped else set()
        self.move(lambda rollout: moves.resume(rollout, accept=accept), allowed)

    @precondition(lambda self: self.begun)
    @rule(roll_back=st.booleans())
    def abort(self, roll_back: bool) -> None:
        allowed = {State.RUNNING, State.PAUSED, *ENDED} if roll_back else set(State) - ENDED
        self.move(lambda rollout: moves.abort(rollout, "anna", roll_back=roll_back), allowed)

    @rule()
    def approve(self) -> None:
        waits = waits_for_approval(self.rollout()) is not None
        self.move(moves.approve, set(State) if waits else set())

    def move(self, what: Callable[[Rollout], list[Decision]], allowed: set[State]) -> None:
        if self.state in allowed:
            self.apply(what(self.rollout()))
            return
        with pytest.raises(moves.NotNowError):
            what(self.rollout())

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def nobody_gets_it_before_the_group_before_is_well(self) -> None:
        for box in self.boxes:
            if box.at != "waiting":
                assert self.stages[box.group] in BEGUN
                assert all(stage in BEGUN for stage in self.stages[: box.group])

    @invariant()
    def nothing_is_out_before_the_start(self) -> None:
        if not self.begun:
            assert all(box.at == "waiting" for box in self.boxes)

    @invariant()
    def a_group_that_counts_as_met_was_met(self) -> None:
        """By devices counted here; later failures may take it below again, and stop the rollout then."""
        for group, stage in enumerate(self.stages):
            if stage is Stage.MET:
                judged = [box for box in self.of(group) if box.at != "left"]
                well = sum(box.had for box in judged)
                assert well >= len(judged) * self.plan.groups[group].success_percent / 100 - 1e-6 or not judged

    @invariant()
    def a_bad_group_stops_it_at_the_next_decision(self) -> None:
        if self.state is not State.RUNNING:
            return
        for group, stage in enumerate(self.stages):
            judged = [box for box in self.of(group) if box.at != "left"]
            failed = sum(box.at == "failed" for box in judged)
            limit = self.plan.groups[group].error_percent
            if stage in {Stage.RUNNING, Stage.MET} and failed and failed >= math.ceil(len(judged) * limit / 100):
                first, *_ = decide(self.rollout(), self.now_ms)
                assert isinstance(first, SetStage)
                assert first.stage is Stage.FAILED

    @invariant()
    def what_stands_still_starts_nothing(self) -> None:
        if self.state in {State.DRAFT, State.PAUSED, State.FINISHED, State.ROLLED_BACK} and not self.stopped:
            assert decide(self.rollout(), self.now_ms + 10**9) == []
        if self.state is State.ABORTED or self.stopped:
            assert all(isinstance(decision, Cancel) for decision in decide(self.rollout(), self.now_ms + 10**9))

    @invariant()
    def rolled_back_means_everybody_who_can(self) -> None:
        if self.state is not State.ROLLED_BACK:
            return
        for box in self.boxes:
            assert box.at not in {"open", "ending", "returning"}
            if self.stages[box.group] in {Stage.FAILED, Stage.WITHDRAWN}:
                assert box.at != "succeeded" or not box.back
            if self.plan.roll_back == "all":
                assert not box.had or box.at in {"returned", "stuck"} or not box.back

    @invariant()
    def finished_means_everybody_has_answered(self) -> None:
        if self.state is State.FINISHED:
            assert all(stage in {Stage.MET, Stage.ACCEPTED} for stage in self.stages)
            assert all(box.at in {"succeeded", "failed", "left", "returned", "stuck"} for box in self.boxes)

    def teardown(self) -> None:
        """An end is always near: devices answer, the driver runs, a person aborts or lets it go on."""
        for _ in range(ROUNDS):
            self.driver_runs_to_its_end()
            self.now_ms += 60_000
            for box in self.boxes:
                box.at = {"open": "succeeded", "ending": "left", "returning": "returned"}.get(box.at, box.at)
                box.had |= box.at == "succeeded"
            if self.state in ENDED:
                break
            if self.state is State.PAUSED:
                self.apply(moves.resume(self.rollout(), accept=True))
            elif waits_for_approval(self.rollout()) is not None:
                self.apply(moves.approve(self.rollout()))
            elif self.state is State.READY and self.plan.start_at is None:
                self.apply(moves.start(self.rollout()))
        assert self.state in ENDED


TestRollouts = RolloutMachine.TestCase
TestRollouts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# --- single cases, by name --------------------------------------------------------------------------------------------


def group(stage: Stage = Stage.RUNNING, *, met_ms: int | None = None, **counts: int) -> Group:
    return Group(GroupPlan(name="canary", count=10, error_percent=20), stage, Tally(**counts), met_ms)


def two(first: Group, second: Group, state: State = State.RUNNING, **plan: Any) -> Rollout:
    groups = (first.plan, second.plan.model_copy(update={"name": "rest", "count": None}))
    return Rollout(Plan(groups=groups, **plan), state, (first, replace(second, plan=groups[1])))


REST = group(Stage.SCHEDULED, waiting=90)


def test_nine_of_ten_let_the_next_group_begin() -> None:
    assert decide(two(group(succeeded=8, open=2), REST), 0) == []
    assert decide(two(group(succeeded=9, open=1), REST), 0) == [SetStage(0, Stage.MET)]
    met = group(Stage.MET, succeeded=9, open=1, met_ms=0)
    assert decide(two(met, REST), 0) == [SetStage(1, Stage.RUNNING)]
    assert decide(two(met, replace(REST, stage=Stage.RUNNING)), 0) == [Offer(1)]


def test_the_second_failure_of_ten_sends_the_group_back() -> None:
    assert decide(two(group(succeeded=5, failed=1, open=4), REST), 0) == []
    why = "group canary: 2 of 10 devices failed (20 %, limit 20 %)"
    decided = decide(two(group(succeeded=5, failed=2, open=3), REST), 0)
    assert decided == [SetStage(0, Stage.FAILED, why), SetState(State.ROLLING_BACK, why)]
    going = two(group(Stage.FAILED, succeeded=5, rooted=1, failed=2, open=3), REST, State.ROLLING_BACK)
    assert decide(going, 0) == [Cancel(0), GoBack(0)]
    back = two(group(Stage.FAILED, succeeded=1, rooted=1, failed=2, left=3, returned=4), REST, State.ROLLING_BACK)
    assert decide(back, 0) == [
        SetState(
            State.ROLLED_BACK,
            "not everybody went back: 1 succeeded, 2 failed, 4 went back, 1 have no way back, 3 left",
        )
    ]
    last = two(group(Stage.FAILED, failed=2, left=3, returned=5), REST, State.ROLLING_BACK)
    assert decide(last, 0) == [SetState(State.ROLLED_BACK, "2 failed, 5 went back, 3 left")]


@pytest.mark.parametrize("stay", [{"succeeded": 3, "rooted": 3}, {"stuck": 3}])
def test_what_nobody_went_back_from_was_not_rolled_back(stay: dict[str, int]) -> None:
    """After a first release no device has a version before."""
    (ended,) = decide(two(group(Stage.WITHDRAWN, **stay), REST, State.ROLLING_BACK), 0)
    assert isinstance(ended, SetState)
    assert (ended.state, ended.detail.partition(":")[0]) == (State.ABORTED, "nobody went back")


def test_failures_after_a_group_was_met_stop_the_next_one() -> None:
    canary = group(Stage.MET, succeeded=16, failed=4, met_ms=0)
    assert decide(two(canary, group(Stage.RUNNING, open=90)), 0)[-1].state is State.ROLLING_BACK  # type: ignore[union-attr]


def test_roll_back_all_withdraws_the_groups_that_were_well() -> None:
    decided = decide(two(group(Stage.MET, succeeded=10, met_ms=0), group(failed=18, open=72), roll_back="all"), 0)
    why = "group rest: 18 of 90 devices failed (20 %, limit 20 %)"
    assert decided == [SetStage(1, Stage.FAILED, why), SetStage(0, Stage.WITHDRAWN), SetState(State.ROLLING_BACK, why)]


def test_an_aborted_rollout_takes_back_what_is_open_and_does_nothing_else() -> None:
    assert decide(two(group(succeeded=5, open=4, ending=1), REST, State.ABORTED), 0) == [Cancel(0)]
    assert decide(two(group(succeeded=5, ending=5), REST, State.ABORTED), 0) == []


def test_a_rollout_paused_by_a_failed_group_takes_back_what_is_open_and_one_paused_by_hand_does_not() -> None:
    failed = group(Stage.FAILED, succeeded=5, failed=2, open=2, ending=1)
    assert decide(two(failed, REST, State.PAUSED), 0) == [Cancel(0)]
    assert decide(two(replace(failed, stage=Stage.RUNNING), REST, State.PAUSED), 0) == []


def test_a_group_whose_devices_all_left_is_not_met() -> None:
    decided = decide(two(group(left=10), REST), 0)
    assert decided[-1] == SetState(State.PAUSED, "group canary: no device is left to judge the release by")


def test_success_out_of_reach_stops_it() -> None:
    canary = Group(
        GroupPlan(name="canary", count=10, error_percent=50), Stage.RUNNING, Tally(succeeded=2, failed=2, open=6)
    )
    decided = decide(two(canary, REST, roll_back="none"), 0)
    assert decided[-1] == SetState(
        State.PAUSED, "group canary: 2 of 10 devices failed (20 %), 90 % success cannot be reached"
    )
