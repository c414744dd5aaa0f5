"""Which single verdicts of a scene are judged, and as what: a window is asked only for what the camera could see in it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.evaluate.matching import Incident
from agent.evaluate.runs.judged import _judge_windows, _seen_share
from agent.evaluate.scenarios import SceneRun
from agent.simulation.values import Interval
from agent.types import ActionScores

RUN = SceneRun(scenario="mixed", seed=1, people=2, seconds=60)
FIGHT = Incident("fight", 20.0, 30.0)
FALL = Incident("fall", 20.0, 21.0, lasts_s=40.0)


def verdict(end_s: float, service: str = "fight", probability: float = 0.9) -> ActionScores:
    """On the 3.3 s before `end_s`."""
    times = round((end_s - 3.3) * 1e9), round(end_s * 1e9)
    probs = {service: probability, "other": 1 - probability}
    return ActionScores("c", service, probability, probs, *times, datetime(2026, 1, 1, tzinfo=UTC), (1,), 0.001)


@pytest.mark.parametrize(
    ("end_s", "label"),
    [(10.0, "other"), (19.5, None), (20.5, None), (21.2, "fight"), (25.0, "fight"), (33.0, None), (39.0, "other")],
)
def test_windows_that_hold_the_action_are_asked_for_it_and_those_around_it_for_nothing(
    end_s: float, label: str | None
) -> None:
    judged = _judge_windows(RUN, [FIGHT], [verdict(end_s)], lambda _: 1.0)
    assert [one.label for one in judged] == ([label] if label else [])


def test_a_short_fall_is_held_whole_and_who_lies_is_asked_for_nothing() -> None:
    judged = _judge_windows(RUN, [FALL], [verdict(end_s, "fall") for end_s in (21.1, 30.0, 46.0)], lambda _: 1.0)
    assert [one.label for one in judged] == ["fall", "other"]


@pytest.mark.parametrize(("share", "labels"), [(0.5, ["fight"]), (0.1, [])])
def test_nobody_can_call_what_the_camera_did_not_see(share: float, labels: list[str]) -> None:
    asked: list[Incident] = []

    def seen_share(part: Incident) -> float:
        asked.append(part)
        return share

    judged = _judge_windows(RUN, [FIGHT], [verdict(22.0)], seen_share)
    assert [one.label for one in judged] == labels
    assert [(part.start_s, part.end_s) for part in asked] == [(20.0, 22.0)]  # that part of it which is in the window


def test_of_people_out_of_the_picture_nothing_is_seen() -> None:
    intervals = [Interval("fight", 20.0, 30.0, (1, 2))]
    frames = [(float(second), {1: 0.8, 2: 0.4, 3: 1.0}) for second in range(20, 23)]
    assert _seen_share(FIGHT, intervals, frames) == pytest.approx(0.6)
    frames += [(float(second), {3: 1.0}) for second in range(23, 26)]  # both have left it
    assert _seen_share(FIGHT, intervals, frames) == pytest.approx(0.3)
    assert _seen_share(FIGHT, intervals, []) == 0.0
