"""Invariants of the event rules under arbitrary verdicts, ticks, configuration changes and closings."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.config.schema import RulesConfig
from agent.events.rules import EventRules, RulesPhase
from agent.types import ActionScores, Event, EventPhase

T0 = datetime(2026, 11, 23, tzinfo=UTC)
FOLLOWS: dict[EventPhase | None, set[EventPhase]] = {
    None: {EventPhase.DETECTED},
    EventPhase.DETECTED: {EventPhase.ACTIVE, EventPhase.RESOLVED},
    EventPhase.ACTIVE: {EventPhase.SUSTAINED, EventPhase.RESOLVED},
    EventPhase.SUSTAINED: {EventPhase.SUSTAINED, EventPhase.RESOLVED},
    EventPhase.RESOLVED: {EventPhase.DETECTED},
}


@st.composite
def configs(draw: st.DrawFn) -> RulesConfig:
    low, high = sorted(draw(st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0])] * 2)))
    shortest, longest = sorted(draw(st.tuples(*[st.sampled_from([0.5, 2.0, 10.0])] * 2)))
    return RulesConfig(
        alert_threshold=high,
        alert_count=draw(st.integers(1, 4)),
        normal_threshold=low,
        normal_count=draw(st.integers(1, 4)),
        min_duration_s=draw(st.sampled_from([0.0, shortest])),
        max_duration_s=longest,
        cooldown_s=draw(st.sampled_from([0.0, 3.0, 20.0])),
        sustained_every_s=draw(st.sampled_from([1e-12, 1.0, 30.0])),
        silence_s=draw(st.sampled_from([0.5, 10.0, 200.0])),
    )


def step_ns(event: Event) -> int:
    return event.t_start_ns + round(event.duration_s * 1e9)


class RulesMachine(RuleBasedStateMachine):
    """Feeds the rules and checks each event against the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = RulesConfig()
        counter = itertools.count()
        self.rules = EventRules("cam", "fight", self.config, lambda: str(next(counter)))
        self.now_ns = 0
        self.last: Event | None = None

    def utc(self) -> datetime:
        return T0 + timedelta(microseconds=self.now_ns / 1000)

    @rule(gap_s=st.sampled_from([0.0, 0.5, 1.67, 5.0, 60.0]), probability=st.floats(0, 1) | st.just(float("nan")))
    def verdict(self, gap_s: float, probability: float) -> None:
        self.now_ns += round(gap_s * 1e9)
        start_ns = self.now_ns - 3_000_000_000
        verdict = ActionScores("cam", "fight", probability, {}, start_ns, self.now_ns, self.utc(), (1,), 0.0)
        self.check(self.rules.step(verdict))

    @rule(count=st.integers(1, 8), gap_s=st.sampled_from([0.5, 1.67, 5.0]), alert=st.booleans())
    def run_of_verdicts(self, count: int, gap_s: float, alert: bool) -> None:
        for _ in range(count):
            self.verdict(gap_s, 1.0 if alert else 0.0)

    @rule(gap_s=st.sampled_from([-5.0, 0.0, 0.2, 3.0, 30.0]))
    def tick(self, gap_s: float) -> None:
        self.now_ns += max(0, round(gap_s * 1e9))
        shift_ns = min(0, round(gap_s * 1e9))
        self.check(self.rules.tick(self.now_ns + shift_ns, self.utc() + timedelta(seconds=min(0.0, gap_s))))

    @rule(config=configs())
    def reload(self, config: RulesConfig) -> None:
        self.config = config
        self.rules.update_config(config)

    @rule()
    def close(self) -> None:
        self.check(self.rules.close(self.now_ns, self.utc()))
        assert self.rules.state.incident_id is None
        assert self.last is None or self.last.phase is EventPhase.RESOLVED

    def check(self, events: list[Event]) -> None:
        for event in events:
            previous = self.last
            assert event.phase in FOLLOWS[previous.phase if previous else None]
            assert event.t_onset_utc <= event.t_utc
            assert event.duration_s >= 0
            assert abs((event.t_utc - T0).total_seconds() * 1e9 - step_ns(event)) < 1e6
            if previous is not None:
                assert int(event.event_id) > int(previous.event_id)
                assert step_ns(event) >= step_ns(previous) - 1
                self.check_pair(previous, event)
            self.last = event

    def check_pair(self, previous: Event, event: Event) -> None:
        same = event.incident_id == previous.incident_id
        assert same == (event.phase is not EventPhase.DETECTED)
        if same:
            assert event.t_start_ns == previous.t_start_ns
            assert event.confidence >= previous.confidence
        else:
            assert step_ns(event) >= step_ns(previous) + self.config.cooldown_s * 1e9 - 1
            assert event.t_start_ns >= step_ns(previous) - 1
        if event.phase is previous.phase:  # a reminder
            assert step_ns(event) - step_ns(previous) >= self.config.sustained_every_s * 1e9 - 1

    @invariant()
    def state_agrees_with_the_events(self) -> None:
        state = self.rules.state
        is_open = self.last is not None and self.last.phase is not EventPhase.RESOLVED
        assert (state.incident_id is not None) == is_open
        assert is_open == (state.phase not in {RulesPhase.IDLE, RulesPhase.COOLDOWN})
        if is_open and self.last is not None:
            assert state.phase.value == self.last.phase.value

    def teardown(self) -> None:
        self.check(self.rules.close(self.now_ns, self.utc()))
        assert self.last is None or self.last.phase is EventPhase.RESOLVED


RulesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRules = RulesMachine.TestCase
