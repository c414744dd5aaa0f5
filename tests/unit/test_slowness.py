"""Too few frames of a camera: for whom they are too few, and when that is over."""

from __future__ import annotations

import pytest

from agent.daemon.slowness import JUDGED_S, Slowness
from agent.types import CameraPhase, CameraStatus

NEEDS = {"fight": 4.0, "fall": 2.0}


def status(frames: float, phase: CameraPhase = CameraPhase.STREAMING) -> CameraStatus:
    return CameraStatus("gate", phase, fps=25.0, width=64, height=48, frames=round(frames), dropped=0, reconnects=0)


def judged(*rates: float) -> list[str]:
    """What is said after a minute at each rate."""
    slowness, now_s, frames = Slowness(), 1000.0, 50.0
    assert slowness.look(status(frames), now_s, NEEDS) == ""
    said = []
    for rate in rates:
        now_s += JUDGED_S
        frames += rate * JUDGED_S
        said.append(slowness.look(status(frames), now_s, NEEDS))
    return said


@pytest.mark.parametrize(
    ("fps", "said"),
    [
        (0.3, "0.30 frames/s are looked at: nothing is recognised"),
        (1.5, "1.50 frames/s are looked at: fight asks for 4, fall asks for 2"),
        (3.9, "3.90 frames/s are looked at: fight asks for 4"),
        (4.0, ""),
        (25.0, ""),
    ],
)
def test_who_gets_too_few_frames_is_named(fps: float, said: str) -> None:
    assert judged(fps) == [said]


def test_a_rate_at_the_bar_is_no_news_each_minute() -> None:
    assert [bool(said) for said in judged(4.05, 3.95, 4.05, 3.95, 4.5)] == [False, True, True, True, False]


def test_nobody_asks_for_anything_of_a_camera_without_services() -> None:
    slowness = Slowness()
    slowness.look(status(0), 0.0, {})
    assert slowness.look(status(60), JUDGED_S, {}) == ""


def test_a_pause_begins_afresh() -> None:
    slowness = Slowness()
    slowness.look(status(0), 0.0, NEEDS)
    assert slowness.look(status(60), JUDGED_S, NEEDS)
    assert slowness.look(status(60, CameraPhase.OFFLINE), JUDGED_S + 1, NEEDS) == ""
    assert slowness.look(status(60), JUDGED_S + 2, NEEDS) == ""
    assert slowness.look(status(60), 2 * JUDGED_S, NEEDS) == "", "not a minute yet"
