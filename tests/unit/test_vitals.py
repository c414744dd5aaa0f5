"""The agent's recent past: what is in a stretch of it, and what is not."""

from __future__ import annotations

import threading

import pytest
from fakes.replay import walkers

from agent.daemon.vitals import BUCKET_S, KEPT_S, Vitals
from agent.types import People


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(clock: Clock) -> Vitals:
    return Vitals(clock)


def live(vitals: Vitals, clock: Clock, seconds: float, *, fps: float = 10.0, ms: float = 20.0, people: int = 1) -> None:
    for _ in range(round(seconds * fps)):
        clock.now_s += 1 / fps
        vitals.batch("pose", 1, ms / 1e3)
        vitals.frame("hall", walkers(people, 1, size=(240, 320))[0] if people else People.empty())


def test_a_stretch_is_what_came_after_its_mark(vitals: Vitals, clock: Clock) -> None:
    live(vitals, clock, 60, ms=20)
    before = vitals.spell("pose", ())
    mark_s = vitals.mark()
    live(vitals, clock, 30, ms=50)
    since = vitals.spell("pose", (), mark_s)
    assert before.latency_ms == pytest.approx(20)
    assert since.latency_ms == pytest.approx(50)
    assert (before.calls, since.calls) == (600, 300)
    assert since.fps == {"hall": pytest.approx(10, rel=0.01)}
    assert (round(before.seconds), round(since.seconds)) == (60, 30)
    assert vitals.spell("action/fall", (), mark_s).calls == 0


def test_a_batch_counts_by_item(vitals: Vitals) -> None:
    vitals.batch("pose", 4, 0.1)
    assert vitals.spell("pose", ()).latency_ms == pytest.approx(25)


def test_what_is_seen_of_smaller_pictures_counts_but_does_not_compare(vitals: Vitals, clock: Clock) -> None:
    live(vitals, clock, 20, ms=40)
    whole = vitals.spell("pose", ())
    vitals.smaller_pictures = True
    live(vitals, clock, 20, ms=15, people=2)
    vitals.batch("action/fall", 1, 0.005)
    both = vitals.spell("pose", ())
    assert both.latency_ms == pytest.approx(40)
    assert both.means == whole.means
    assert both.calls == 2 * whole.calls
    assert vitals.spell("action/fall", ()).latency_ms == pytest.approx(5)


def test_the_past_is_forgotten_but_for_incidents(vitals: Vitals, clock: Clock) -> None:
    vitals.incident("fall")
    live(vitals, clock, 60, ms=20)
    clock.now_s += 2 * KEPT_S
    live(vitals, clock, 60, ms=30)
    spell = vitals.spell("pose", ("fall",))
    assert spell.latency_ms == pytest.approx(30)
    assert spell.seconds == KEPT_S
    assert (spell.incidents, round(spell.incident_s)) == (1, round(120 + 2 * KEPT_S))
    assert vitals.spell("pose", ("fight",)).incidents == 0


def test_memory_of_it_is_bounded(vitals: Vitals, clock: Clock) -> None:
    for _ in range(3000):
        clock.now_s += BUCKET_S
        vitals.failure("pose")
    assert len(vitals._buckets) <= KEPT_S / BUCKET_S + 3


def test_failures_belong_to_the_model_that_failed(vitals: Vitals) -> None:
    vitals.failure("pose")
    vitals.failure("action/fall")
    vitals.failure("action/fall")
    assert vitals.spell("pose", ()).failures == 1
    assert vitals.spell("action/fall", ()).failures == 2
    assert vitals.spell("action/fight", ()).failures == 0


def test_rate_of_a_camera_that_came_later_is_not_diluted(vitals: Vitals, clock: Clock) -> None:
    clock.now_s += 300
    live(vitals, clock, 50, fps=10)
    assert vitals.spell("pose", ()).fps["hall"] == pytest.approx(10, rel=0.12)


def test_reasons_last_until_they_are_gone(vitals: Vitals, clock: Clock) -> None:
    vitals.reasons(["cpu_high"])
    clock.now_s += 40
    vitals.reasons(["cpu_high", "gpu_hot"])
    clock.now_s += 20
    assert vitals.raised_s() == {"cpu_high": 60, "gpu_hot": 20}
    vitals.reasons([])
    assert vitals.raised_s() == {}
    clock.now_s += 1
    mark_s = vitals.mark()
    assert vitals.spell("pose", ()).reasons == {"cpu_high", "gpu_hot"}, "they were there lately"
    assert vitals.spell("pose", (), mark_s).reasons == frozenset()


def test_a_reason_that_is_raised_goes_on_in_the_next_stretch(vitals: Vitals) -> None:
    vitals.reasons(["cpu_high"])
    mark_s = vitals.mark()
    assert vitals.spell("pose", (), mark_s).reasons == {"cpu_high"}


def test_gaps_are_those_of_frames_from_the_last_one_before_the_watch(vitals: Vitals, clock: Clock) -> None:
    live(vitals, clock, 1)
    clock.now_s += 0.05
    gaps = vitals.watch_gaps()
    live(vitals, clock, 0.1)
    assert gaps.longest_s == pytest.approx(0.15)
    live(vitals, clock, 1)
    clock.now_s += 0.3
    live(vitals, clock, 0.1)
    vitals.forget_gaps(gaps)
    assert gaps.longest_s == pytest.approx(0.4)
    clock.now_s += 1
    live(vitals, clock, 0.1)
    assert gaps.longest_s == pytest.approx(0.4)


def test_cameras_that_deliver(vitals: Vitals, clock: Clock) -> None:
    assert vitals.streaming() == set()
    live(vitals, clock, 1)
    assert vitals.streaming() == {"hall"}
    clock.now_s += BUCKET_S
    assert vitals.streaming() == set()


def test_means_are_those_of_frames_with_people(vitals: Vitals, clock: Clock) -> None:
    live(vitals, clock, 10, people=2)
    live(vitals, clock, 10, people=0)
    means = vitals.spell("pose", ()).means
    assert means.keys() == {"person_confidence", "keypoint_visibility"}
    assert means["person_confidence"] == (100, pytest.approx(0.9, abs=0.1))


def test_other_threads_may_tell(vitals: Vitals) -> None:
    def tell() -> None:
        for _ in range(500):
            vitals.batch("pose", 1, 0.01)
            vitals.reasons(["cpu_high"])

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        vitals.spell("pose", ())
    for thread in threads:
        thread.join()
    assert vitals.spell("pose", ()).calls == 2000
