"""The demo's judge: events on the time line of the simulated scene they come from."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from agent.commands.scene_judge import SceneJudge
from agent.evaluate.matching import AFTER_S
from agent.events.cloudevents import ReceivedEvent
from agent.simulation.scripts import build_script
from agent.simulation.values import Interval
from agent.types import EventPhase

SCRIPT = build_script("fight", seed=5, people=3)
ELAPSED_S = 30.0


@pytest.fixture(scope="module")
def fight() -> Interval:
    """The first fight of the scene."""
    return next(one for one in SCRIPT.intervals(0, ELAPSED_S) if one.action == "fight")


class Scene:
    """One that began half a minute before the test."""

    def __init__(self) -> None:
        self.origin_ns = time.monotonic_ns() - round(ELAPSED_S * 1e9)
        self._origin_utc = datetime.now(UTC) - timedelta(seconds=ELAPSED_S)

    def judge(self, *kinds: str) -> SceneJudge:
        return SceneJudge(SCRIPT.intervals, self.origin_ns, kinds or ("fight", "fall"))

    def event(self, at_s: float, kind: str = "fight", phase: EventPhase = EventPhase.DETECTED) -> ReceivedEvent:
        utc = self._origin_utc + timedelta(seconds=at_s)
        return ReceivedEvent(
            event_id=f"{kind}{at_s}", type="", device_id="demo", camera_id="demo", incident_id=f"{kind}{at_s}", kind=kind,
            phase=phase, sequence=1, emitted_utc=utc, captured_utc=utc, onset_utc=utc, duration_s=0.0, confidence=0.9,
            track_ids=(),
        )  # fmt: skip


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_an_event_during_an_incident_is_right_and_says_how_late(scene: Scene, fight: Interval) -> None:
    assert scene.judge().verdict(scene.event(fight.start_s + 2)) == "right, a fight began 2.0 s before"


def test_an_event_of_something_that_did_not_happen_is_a_false_alarm(scene: Scene, fight: Interval) -> None:
    one = scene.judge()
    assert one.verdict(scene.event(fight.start_s + 2, kind="fall")) == "no fall here: a false alarm"
    assert "1 false alarms" in one.closing()[1]


def test_only_the_begin_of_an_event_of_a_service_is_judged(scene: Scene, fight: Interval) -> None:
    one = scene.judge()
    assert not one.verdict(scene.event(fight.start_s + 2, phase=EventPhase.RESOLVED))
    assert not one.verdict(scene.event(fight.start_s + 2, kind="drift"))


def test_the_account_counts_what_happened_and_what_was_found(scene: Scene, fight: Interval) -> None:
    one = scene.judge("fight")
    assert ", 0 found" in one.closing()[0]
    one.verdict(scene.event(fight.start_s + 3))
    assert ", 1 found after 3.0 s" in one.closing()[0]


def test_who_still_lies_there_has_fallen(scene: Scene) -> None:
    script = build_script("fall", seed=8, people=1)
    intervals = script.intervals(0, 60)
    fall = next(one for one in intervals if one.action == "fall")
    lying = next(one for one in intervals if one.action == "lie" and one.start_s >= fall.start_s)
    late_s = lying.end_s - 0.5
    assert late_s > fall.end_s + AFTER_S, "lies long enough to tell"
    assert not any(one.action == "fall" and fall.start_s < one.start_s < late_s for one in intervals)
    said = SceneJudge(script.intervals, scene.origin_ns, ("fall",)).verdict(scene.event(late_s, kind="fall"))
    assert said == f"right, a fall began {late_s - fall.start_s:.1f} s before"
