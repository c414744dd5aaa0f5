"""The event state machine, case by case."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.config.schema import RulesConfig
from agent.events.rules import EventRules, RulesPhase
from agent.types import ActionScores, Event

T0 = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FIGHT = RulesConfig()  # 0.8 x 3, 0.5 x 2, 2-10 s, cool-down 5 s, every 30 s, silence 10 s
FALL = RulesConfig(
    alert_threshold=0.6, alert_count=2, normal_threshold=0.4, normal_count=3, min_duration_s=1, max_duration_s=15,
    cooldown_s=3,
)  # fmt: skip
NAN = float("nan")


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def utc(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def scores(t: float, probability: float, *, length: float = 3.0, ids: tuple[int, ...] = (1, 2)) -> ActionScores:
    return ActionScores("cam", "fight", probability, {}, ns(t - length), ns(t), utc(t), ids, 0.01)


def make(config: RulesConfig = FIGHT) -> EventRules:
    counter = itertools.count(1)
    return EventRules("cam", "fight", config, lambda: f"id-{next(counter)}")


def brief(event: Event) -> tuple[str, float]:
    """Phase and the step's second on the time line."""
    return event.phase.value, round(event.t_start_ns / 1e9 + event.duration_s, 6)


def run(rules: EventRules, verdicts: dict[float, float]) -> list[tuple[str, float]]:
    return [brief(event) for t, p in verdicts.items() for event in rules.step(scores(t, p))]


def every(step: float, count: int, probability: float, start: float = 0.0) -> dict[float, float]:
    return {round(start + i * step, 6): probability for i in range(count)}


@pytest.mark.parametrize(
    ("config", "verdicts", "expected"),
    [
        pytest.param(FIGHT, {0: 0.9, 1: 0.9}, [], id="two alerts are not enough"),
        pytest.param(FIGHT, {0: 0.9, 1: 0.9, 2: 0.9}, [("detected", 2)], id="three consecutive alerts open"),
        pytest.param(FIGHT, {0: 0.9, 1: 0.9, 2: 0.7, 3: 0.9, 4: 0.9}, [], id="a verdict in between breaks the run"),
        pytest.param(FIGHT, {0: 0.8, 1: 0.8, 2: 0.8}, [("detected", 2)], id="exactly at the alert threshold counts"),
        pytest.param(FIGHT, {0: 0.9, 1: NAN, 2: 0.9, 3: NAN, 4: 0.9}, [("detected", 4)], id="NaN does not break a run"),
        pytest.param(FIGHT, {0: 0.9, 1: 0.9, 11.5: 0.9}, [], id="a silent gap breaks the run"),
        pytest.param(FIGHT, {5: 0.9, 5.0000001: 0.9, 5.0000002: 0.9}, [("detected", 5)], id="time stands still"),
        pytest.param(
            FIGHT, {0: 0.9, 1: 0.9, 2: 0.9, 3: 0.5, 4: 0.5, 5: 0.1, 6: 0.1},
            [("detected", 2), ("active", 4), ("resolved", 6)], id="exactly at the normal threshold is not normal",
        ),
        pytest.param(
            FIGHT, {0: 0.9, 1: 0.9, 2: 0.9, 3: 0.1, 4: 0.6, 5: 0.1, 6: 0.1},
            [("detected", 2), ("active", 4), ("resolved", 6)], id="normals must be consecutive",
        ),
        pytest.param(
            FIGHT, {0: 0.9, 1: 0.9, 2: 0.9, 2.5: 0.1, 3: 0.1}, [("detected", 2), ("resolved", 3)],
            id="resolved before it became active",
        ),
        pytest.param(
            FIGHT, every(1, 43, 0.9) | {43: 0.0, 44: 0.0},
            [("detected", 2), ("active", 4), ("sustained", 12), ("sustained", 42), ("resolved", 44)],
            id="fight figures with reminder",
        ),
        pytest.param(
            FALL, {0: 0.6, 1: 0.6, 2: 0.3, 3: 0.3, 4: 0.3},
            [("detected", 1), ("active", 2), ("resolved", 4)], id="fall figures",
        ),
        pytest.param(
            FIGHT, {0: 0.9, 1: 0.9, 2: 0.9, 300: 0.9},
            [("detected", 2), ("active", 4), ("sustained", 12), ("resolved", 12)], id="a long gap ends at the silence",
        ),
        pytest.param(
            FALL, {0: 0.9, 1: 0.9, 300: 0.9}, [("detected", 1), ("active", 2), ("resolved", 11)],
            id="phases after the silence do not come",
        ),
        pytest.param(
            RulesConfig(alert_count=1, min_duration_s=0), {0: 0.9}, [("detected", 0), ("active", 0)],
            id="no minimal duration",
        ),
        pytest.param(
            RulesConfig(silence_s=1000), {0: 0.9, 1: 0.9, 2: 0.9, 500: 0.9},
            [("detected", 2), ("active", 4), ("sustained", 12), ("sustained", 492)],
            id="missed reminders collapse into the latest",
        ),
    ],
)  # fmt: skip
def test_steps(config: RulesConfig, verdicts: dict[float, float], expected: list[tuple[str, float]]) -> None:
    assert run(make(config), verdicts) == expected


def opened(config: RulesConfig = FIGHT) -> EventRules:
    """Rules with an incident detected at 2 s."""
    rules = make(config)
    assert run(rules, every(1, 3, 0.9)) == [("detected", 2)]
    return rules


def test_nothing_opens_during_the_cool_down_and_verdicts_there_do_not_count() -> None:
    rules = opened()
    assert run(rules, {3: 0.1, 4: 0.1})[-1] == ("resolved", 4)
    assert run(rules, {5: 0.9, 6: 0.9, 7: 0.9, 8.9: 0.9}) == []
    assert rules.state.phase is RulesPhase.COOLDOWN
    assert run(rules, {9: 0.9, 10: 0.9}) == []  # the cool-down ends at 9 s: this is the first that counts
    assert run(rules, {11: 0.9}) == [("detected", 11)]


def test_onset_is_where_the_first_alerting_window_adds_to_the_one_before() -> None:
    rules = make()
    events = [e for t, p in {4: 0.1, 5.5: 0.9, 7: 0.9, 8.5: 0.95}.items() for e in rules.step(scores(t, p))]
    (event,) = events
    assert event.t_start_ns == ns(4)  # the window 2.5-5.5 s alerts, the one up to 4 s did not
    assert event.t_onset_utc == utc(4)
    assert event.t_utc == utc(8.5)
    assert event.duration_s == pytest.approx(4.5)
    assert event.confidence == 0.95


def test_onset_is_the_windows_start_where_nothing_was_judged_before() -> None:
    rules = make()
    (event,) = [e for t in (3, 4, 5) for e in rules.step(scores(t, 0.9))]
    assert event.t_start_ns == 0


def test_onset_does_not_reach_into_the_incident_before() -> None:
    rules = opened(replace_config(FIGHT, cooldown_s=0.0))
    rules.tick(ns(20), utc(20))  # resolved by silence at 12 s
    events = [e for t in (13, 14, 15) for e in rules.step(scores(t, 0.9))]
    assert [brief(e) for e in events] == [("detected", 15)]
    assert events[0].t_start_ns == ns(12)


def replace_config(config: RulesConfig, **changes: float) -> RulesConfig:
    return config.model_copy(update=changes)


def test_ticks_let_phases_reminders_and_silence_happen_on_time() -> None:
    rules = opened(replace_config(FIGHT, silence_s=40.0))
    seen = [(t, brief(e)) for t in range(3, 60) for e in rules.tick(ns(t), utc(t))]
    assert seen == [
        (4, ("active", 4)), (12, ("sustained", 12)), (42, ("sustained", 42)), (42, ("resolved", 42)),
    ]  # fmt: skip


def test_how_often_one_ticks_does_not_change_what_is_said() -> None:
    config = replace_config(FIGHT, silence_s=25.0)
    coarse, fine = opened(config), opened(config)
    late = coarse.tick(ns(100), utc(100))
    prompt = [e for t in range(30, 1000) for e in fine.tick(ns(t / 10), utc(t / 10))]
    assert [replace(e, event_id="") for e in late] == [replace(e, event_id="") for e in prompt]


def test_a_tick_in_the_past_changes_nothing() -> None:
    rules = opened()
    before = rules.state
    assert rules.tick(ns(-100), utc(-100)) == []
    assert rules.state == before


def test_a_verdict_that_arrives_after_a_later_tick_still_counts() -> None:
    rules = make()
    run(rules, {0: 0.9, 1: 0.9})
    rules.tick(ns(3.5), utc(3.5))  # inference lags behind the newest frame
    assert run(rules, {2: 0.9}) == [("detected", 2)]


def test_close_resolves_what_is_open_once() -> None:
    rules = opened()
    (event,) = rules.close(ns(3), utc(3))
    assert brief(event) == ("resolved", 3)
    assert event.attributes == {"reason": "closed"}
    assert rules.close(ns(3), utc(3)) == []


def test_close_of_an_idle_machine_says_nothing_and_forgets_the_run() -> None:
    rules = make()
    run(rules, {0: 0.9, 1: 0.9})
    assert rules.close(ns(1), utc(1)) == []
    assert run(rules, {2: 0.9}) == []


@pytest.mark.parametrize(
    ("verdicts", "reason"), [({3: 0.1, 4: 0.1}, "normal"), ({50: 0.9}, "silence")], ids=["normal", "silence"]
)
def test_resolved_says_why(verdicts: dict[float, float], reason: str) -> None:
    rules = opened()
    events = [e for t, p in verdicts.items() for e in rules.step(scores(t, p))]
    assert events[-1].attributes == {"reason": reason}


def test_reminders_are_numbered_from_the_first_sustained_step() -> None:
    rules = make()
    events = [e for t in range(80) for e in rules.step(scores(t, 0.9))]
    assert [e.attributes["reminder"] for e in events if e.phase == "sustained"] == [0, 1, 2]


def test_steps_share_the_incident_and_have_ids_of_their_own() -> None:
    rules = make()
    events = [e for t in range(50) for e in rules.step(scores(t, 0.9))] + rules.close(ns(50), utc(50))
    assert len({e.incident_id for e in events}) == 1
    assert len({e.event_id for e in events}) == len(events)


def test_confidence_is_the_highest_so_far_and_ids_are_of_the_latest_alert() -> None:
    rules = make()
    rules.step(scores(0, 0.85, ids=(1,)))
    rules.step(scores(1, 0.99, ids=(2,)))
    (detected,) = rules.step(scores(2, 0.9, ids=(3, 4)))
    assert (detected.confidence, detected.track_ids) == (0.99, (3, 4))
    rules.step(scores(3, 0.2, ids=()))
    resolved = rules.step(scores(3.5, 0.1, ids=(9,)))[-1]
    assert (resolved.confidence, resolved.track_ids) == (0.99, (3, 4))


@pytest.mark.parametrize("probability", [NAN, float("inf"), -0.1, 1.1])
def test_unusable_probabilities_are_counted_and_do_not_hold_off_silence(probability: float) -> None:
    rules = opened()
    events = [e for t in range(3, 14) for e in rules.step(scores(t, probability))]
    assert brief(events[-1]) == ("resolved", 12)
    assert rules.state.unusable == 11
    assert rules.state.verdicts == 3


def test_new_thresholds_apply_to_the_next_verdict() -> None:
    rules = make()
    run(rules, {0: 0.9})
    rules.update_config(RulesConfig(alert_count=1, alert_threshold=0.95))
    assert run(rules, {1: 0.9}) == []
    assert run(rules, {2: 0.96}) == [("detected", 2)]


def test_shorter_limits_in_mid_incident_never_step_back_in_time() -> None:
    rules = opened(replace_config(FIGHT, silence_s=500.0, max_duration_s=400.0))
    assert [brief(e) for e in rules.tick(ns(50), utc(50))] == [("active", 4)]
    rules.step(scores(51, 0.9))
    rules.update_config(RulesConfig(min_duration_s=0.5, max_duration_s=1.0))
    steps = [brief(e) for e in rules.tick(ns(52), utc(52))]
    assert steps == [("sustained", 4), ("sustained", 34)]  # 3 s would be due, but `active` stands at 4 s


def test_a_longer_cool_down_applies_to_the_one_in_progress() -> None:
    rules = opened()
    run(rules, {3: 0.1, 4: 0.1})
    rules.update_config(replace_config(FIGHT, cooldown_s=100.0))
    assert run(rules, every(1, 90, 0.9, start=10)) == []


def test_scores_of_another_camera_are_refused() -> None:
    with pytest.raises(ValueError, match="other/fight"):
        make().step(replace(scores(0, 0.9), camera_id="other"))


def test_state_follows_the_incident() -> None:
    rules = make()
    assert rules.state.phase is RulesPhase.IDLE
    run(rules, {0: 0.9, 1: 0.9})
    assert (rules.state.phase, rules.state.alerts) == (RulesPhase.IDLE, 2)
    run(rules, {2: 0.9, 3: 0.1})
    assert (rules.state.phase, rules.state.normals) == (RulesPhase.DETECTED, 1)
    assert rules.state.incident_id == "id-1"
    rules.tick(ns(4), utc(4))
    assert rules.state.phase is RulesPhase.ACTIVE
    run(rules, {4: 0.1})
    assert rules.state.phase is RulesPhase.COOLDOWN
    rules.tick(ns(9), utc(9))
    assert rules.state.phase is RulesPhase.IDLE
