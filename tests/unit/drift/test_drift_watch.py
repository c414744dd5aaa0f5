"""The watch: what it listens to, the events it makes, what it keeps and what it forgets."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from agent.config.schema import DriftConfig
from agent.drift.watch import DriftWatch, Key, Model
from agent.errors import DataError
from agent.events.cloudevents import load_schema, parse, render
from agent.events.ids import Uuid7
from agent.types import ActionScores, Event, EventPhase, People

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
QUICK = DriftConfig(
    block_s=1, min_samples=4, min_windows=4, warmup_h=30 / 3600, min_blocks=10, alarm_after_h=3 / 3600,
    clear_after_h=3 / 3600, false_alarm_every_days=0.01,
)  # fmt: skip
CONFIDENCE = Key("person_confidence", "pose", "yard")
VALIDATOR = jsonschema.Draft202012Validator(load_schema("drift"), format_checker=jsonschema.FormatChecker())


def people(confidence: float, count: int = 2, visibility: float = 0.8) -> People:
    """`count` people of equal scores."""
    return People(
        np.tile(np.array([0, 0, 10, 20], np.float32), (count, 1)),
        np.zeros((count, 17, 2), np.float32),
        np.full((count, 17), visibility, np.float32),
        np.full(count, confidence, np.float32),
    )


def verdict(probability: float, camera: str = "yard") -> ActionScores:
    probs = {"fight": probability, "other": 1 - probability}
    return ActionScores(camera, "fight", probability, probs, 0, 1, NOON, (1,), 0.01)


def make_watch() -> DriftWatch:
    watch = DriftWatch(QUICK, Uuid7())
    watch.set_model("pose", Model("rtmo-s 1.0", "cpu"))
    watch.set_model("action/fight", Model("fight 0.1", "cpu"))
    return watch


def restarted(watch: DriftWatch) -> DriftWatch:
    """What the agent has after its next start."""
    again = DriftWatch(QUICK, Uuid7())
    again.restore(json.loads(json.dumps(watch.state())))
    return again


def run(watch: DriftWatch, seconds: int, observe: Callable[[], None]) -> list[Event]:
    """`seconds` steps of one second with four observations each."""
    events = []
    for _ in range(seconds):
        for _ in range(4):
            observe()
        events += watch.step(1.0, NOON)
    return events


def seen(watch: DriftWatch, confidence: float, seconds: int = 60, camera: str = "yard") -> list[Event]:
    return run(watch, seconds, lambda: watch.observe_people(camera, people(confidence)))


def test_fall_of_confidence_becomes_one_event_and_its_end_another() -> None:
    watch = make_watch()
    assert seen(watch, 0.8) == []
    (started,) = seen(watch, 0.6)
    assert (started.kind, started.phase, started.camera_id) == ("drift", EventPhase.DETECTED, "yard")
    assert started.attributes["signal"] == "person_confidence"
    assert started.attributes["model"] == "rtmo-s 1.0"
    assert started.attributes["baseline"] == pytest.approx(0.8, abs=1e-4)
    assert started.attributes["basis"] == "local"
    assert timedelta(seconds=2) < NOON - started.t_onset_utc < timedelta(seconds=6)
    assert watch.incidents == {CONFIDENCE: started.incident_id}
    (ended,) = seen(watch, 0.8)
    assert (ended.phase, ended.attributes["reason"]) == (EventPhase.RESOLVED, "recovered")
    assert ended.incident_id == started.incident_id
    assert not watch.incidents


def test_messages_follow_their_schema_and_can_be_read_back() -> None:
    watch = make_watch()
    seen(watch, 0.8)
    for sequence, event in enumerate([*seen(watch, 0.6), *seen(watch, 0.8)], 7):
        payload = render(event, device_id="gate-1", sequence=sequence, emitted_utc=NOON, models={"pose": "rtmo-s 1.0"})
        message = json.loads(payload)
        VALIDATOR.validate(message)
        assert message["type"] == f"recognizer.drift.{'started' if event.phase == 'detected' else 'ended'}.v1"
        assert message["source"] == "/recognizer/gate-1/cameras/yard"
        received = parse(payload)
        assert (received.kind, received.phase, received.sequence) == ("drift", event.phase, sequence)
        assert received.attributes == event.attributes


def test_message_in_the_documentation_follows_the_schema(repo_dir: Path) -> None:
    text = (repo_dir / "docs" / "drift.md").read_text(encoding="utf-8")
    VALIDATOR.validate(json.loads(text.partition("```json")[2].partition("```")[0]))


def test_schema_refuses_a_drift_event_in_the_clothes_of_an_incident() -> None:
    with pytest.raises(DataError, match="not a Recognizer event"):
        parse(json.dumps({"specversion": "1.0", "type": "recognizer.drift.updated.v1", "data": {}}).encode())
    jsonschema.Draft202012Validator.check_schema(load_schema("drift"))


def test_an_empty_scene_says_nothing_for_however_long() -> None:
    watch = make_watch()
    seen(watch, 0.8)
    before = watch.readings()[CONFIDENCE]
    assert run(watch, 500, lambda: watch.observe_people("yard", People.empty())) == []
    assert watch.readings()[CONFIDENCE] == before


def test_cameras_are_judged_one_by_one() -> None:
    watch = make_watch()
    for _ in range(60):
        for _ in range(4):
            watch.observe_people("yard", people(0.8))
            watch.observe_people("lane", people(0.5))
        assert watch.step(1.0, NOON) == []
    (event,) = seen(watch, 0.3, camera="lane")
    assert event.camera_id == "lane"


def test_visibility_falls_alone() -> None:
    watch = make_watch()
    seen(watch, 0.8)
    (event,) = run(watch, 60, lambda: watch.observe_people("yard", people(0.8, visibility=0.5)))
    assert event.attributes["signal"] == "keypoint_visibility"


def test_card_is_what_a_model_is_held_against() -> None:
    watch = make_watch()
    watch.set_model("pose", Model("rtmo-s 1.0", "cpu", {"person_confidence": 0.9}))
    (event,) = seen(watch, 0.7, 90)
    assert (event.attributes["basis"], event.attributes["baseline"]) == ("card", 0.9)


def test_unsure_verdicts_and_slow_calls_are_found() -> None:
    watch = make_watch()
    assert run(watch, 60, lambda: watch.observe_scores(verdict(0.05))) == []
    (unsure,) = run(watch, 60, lambda: watch.observe_scores(verdict(0.4)))
    assert (unsure.attributes["signal"], unsure.attributes["slot"]) == ("window_confidence", "action/fight")
    assert unsure.camera_id == ""
    assert run(watch, 60, lambda: watch.observe_latency("pose", 2, 0.02)) == []
    (slow,) = run(watch, 60, lambda: watch.observe_latency("pose", 2, 0.03))
    assert (slow.attributes["signal"], slow.attributes["limit"]) == ("latency", 0.2)
    assert slow.attributes["change"] == pytest.approx(0.5, abs=0.01)


def test_a_fight_of_many_windows_is_one_hit() -> None:
    watch = make_watch()
    for probability in (0.9, 0.9, 0.9, 0.1, 0.9, 0.9):
        watch.observe_scores(verdict(probability))
    watch.observe_scores(verdict(0.9, camera="lane"))
    watch.step(1.0, NOON)  # opens the first block ...
    watch.step(1.0, NOON)  # ... and ends it
    (learned,) = [state["learned"] for name, *_, state in watch.state()["signals"] if name == "class_rate"]
    assert learned == [(3, 7)]


def test_windows_that_are_farther_apart_say_nothing_about_the_rate_but_a_fight_goes_on_in_them() -> None:
    watch = make_watch()
    for probability in (0.1, 0.9):
        watch.observe_scores(verdict(probability))
    for probability in (0.1, 0.9):
        watch.observe_scores(verdict(probability), sparse=True)
    for probability in (0.9, 0.1):
        watch.observe_scores(verdict(probability))
    watch.step(1.0, NOON)  # opens the first block ...
    watch.step(1.0, NOON)  # ... and ends it
    learned = {name: state["learned"] for name, *_, state in watch.state()["signals"]}
    assert learned["class_rate"] == [(1, 4)]
    assert learned["window_confidence"][0]["0"][0] == 6


def test_another_model_starts_afresh_and_closes_the_alarms_of_the_old_one() -> None:
    watch = make_watch()
    seen(watch, 0.8)
    (started,) = seen(watch, 0.6)
    watch.set_model("pose", Model("rtmo-m 1.0", "cpu"))
    (ended,) = watch.step(1.0, NOON)
    assert (ended.incident_id, ended.attributes["reason"]) == (started.incident_id, "model_changed")
    assert ended.attributes["model"] == "rtmo-s 1.0", "the one that had drifted"
    assert seen(watch, 0.6) == [], "what the new model does is normal for it"


def test_an_alarm_of_a_model_that_was_exchanged_while_the_agent_was_down_names_that_model() -> None:
    first = make_watch()
    seen(first, 0.8)
    (started,) = seen(first, 0.6)
    second = restarted(first)
    second.set_model("pose", Model("rtmo-m 1.0", "cpu"))
    (ended,) = second.step(1.0, NOON)
    assert (ended.incident_id, ended.attributes["model"]) == (started.incident_id, "rtmo-s 1.0")


def test_another_device_changes_what_is_quick_but_not_what_is_sure() -> None:
    watch = make_watch()
    seen(watch, 0.8)
    run(watch, 60, lambda: watch.observe_latency("pose", 1, 0.02))
    watch.set_model("pose", Model("rtmo-s 1.0", "tensorrt:0"))
    watch.step(1.0, NOON)
    assert CONFIDENCE in watch.readings()
    assert Key("latency", "pose") not in watch.readings()


def test_a_start_on_another_device_until_the_stored_engine_stands_keeps_baseline_and_alarm() -> None:
    latency, watch = Key("latency", "pose"), make_watch()

    def calls(seconds: float) -> Callable[[], None]:
        return lambda: watch.observe_latency("pose", 1, seconds)

    watch.set_model("pose", Model("rtmo-s 1.0", "tensorrt:0"))
    assert run(watch, 60, calls(0.008)) == []
    (started,) = run(watch, 60, calls(0.012))
    baseline = watch.readings()[latency][1].baseline
    for _ in range(2):
        watch = restarted(watch)
        watch.set_model("pose", Model("rtmo-s 1.0", "cuda:0", moving=True))
        assert run(watch, 60, calls(0.004)) == [], "however quick it is there"
        watch.set_model("pose", Model("rtmo-s 1.0", "tensorrt:0"))
        assert run(watch, 60, calls(0.012)) == []
        assert watch.incidents == {latency: started.incident_id}
        assert watch.readings()[latency][1].baseline == baseline
    (ended,) = run(watch, 60, calls(0.008))
    assert (ended.incident_id, ended.attributes["reason"]) == (started.incident_id, "recovered")


def test_an_engine_that_does_not_come_leaves_the_other_device_and_its_latencies() -> None:
    watch = make_watch()
    watch.set_model("pose", Model("rtmo-s 1.0", "tensorrt:0"))
    run(watch, 60, lambda: watch.observe_latency("pose", 1, 0.008))
    run(watch, 60, lambda: watch.observe_latency("pose", 1, 0.012))
    watch.set_model("pose", Model("rtmo-s 1.0", "cuda:0", moving=True))
    assert watch.step(1.0, NOON) == []
    watch.set_model("pose", Model("rtmo-s 1.0", "cuda:0"))
    (ended,) = watch.step(1.0, NOON)
    assert ended.attributes["reason"] == "device_changed"
    assert Key("latency", "pose") not in watch.readings()


def test_camera_that_is_gone_takes_its_alarm_along() -> None:
    watch = make_watch()
    seen(watch, 0.8)
    seen(watch, 0.6)
    watch.keep_cameras(["lane"])
    (ended,) = watch.step(1.0, NOON)
    assert ended.attributes["reason"] == "camera_removed"
    assert watch.readings() == {}


def test_a_camera_that_looks_elsewhere_is_learned_again() -> None:
    watch = make_watch()
    seen(watch, 0.8)
    seen(watch, 0.6)
    watch.forget_camera("lane")
    assert CONFIDENCE in watch.readings()
    watch.forget_camera(CONFIDENCE.camera)
    (ended,) = watch.step(1.0, NOON)
    assert ended.attributes["reason"] == "view_accepted"
    assert watch.readings() == {}
    VALIDATOR.validate(json.loads(render(ended, device_id="box", sequence=1, emitted_utc=NOON)))


def test_service_that_is_gone_takes_its_alarm_along_also_over_a_restart() -> None:
    first = make_watch()
    for agreement in (0.5, 0.5, 0.5):
        first.observe_agreement("action/fight", agreement)
    (started,) = first.step(1.0, NOON)
    second = restarted(first)
    second.keep_slots(["pose"])
    second.set_model("pose", Model("rtmo-s 1.0", "cpu"))
    (ended,) = second.step(1.0, NOON)
    assert (ended.incident_id, ended.attributes["reason"]) == (started.incident_id, "service_removed")
    assert ended.attributes["model"] == "fight 0.1"
    assert second.incidents == {}
    assert second.state()["signals"] == []
    VALIDATOR.validate(json.loads(render(ended, device_id="box", sequence=1, emitted_utc=NOON)))


def test_learned_and_alarmed_outlives_a_restart() -> None:
    first = make_watch()
    seen(first, 0.8)
    (started,) = seen(first, 0.6)
    second = restarted(first)
    second.set_model("pose", Model("rtmo-s 1.0", "cpu"))
    second.set_model("action/fight", Model("fight 0.1", "cpu"))
    assert second.incidents == {CONFIDENCE: started.incident_id}
    assert json.dumps(second.state()) == json.dumps(first.state()), "what has not been seen yet is kept as it was"
    (ended,) = seen(second, 0.8)
    assert (ended.incident_id, ended.attributes["reason"]) == (started.incident_id, "recovered")


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 0}, {"signals": [["unknown", "pose", "", {}]]}, {"signals": [["latency", "pose", "", {}]]},
        {"t_s": None}, {"incidents": [["latency"]]},
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_used_is_refused(damage: dict[str, object]) -> None:
    watch = DriftWatch(QUICK, Uuid7())
    with pytest.raises((KeyError, TypeError, ValueError)):
        watch.restore(make_watch().state() | damage)


def test_golden_answers_lost_are_an_event_about_the_slot() -> None:
    watch = make_watch()
    for agreement in (1.0, 0.5, 0.5):
        watch.observe_agreement("pose", agreement)
    (event,) = watch.step(1.0, NOON)
    assert event.attributes["signal"] == "golden_agreement"
    assert event.attributes["current"] == 0.5
    assert event.attributes["basis"] == "golden"
