"""When no camera delivers pictures: the reason, its grace, and what does not count."""

from __future__ import annotations

import pytest

from agent.daemon.outage import GRACE_S, Outage
from agent.health.reasons import HealthState
from agent.types import CameraPhase, CameraStatus, Level

Desk = tuple[Outage, HealthState, list[float]]


@pytest.fixture
def desk() -> Desk:
    now_s, health = [0.0], HealthState()
    return Outage(health, lambda: now_s[0]), health, now_s


def status(phase: CameraPhase, camera_id: str = "cam", frames: int = 0) -> CameraStatus:
    return CameraStatus(camera_id, phase, 0.0, 0, 0, frames, 0, 0)


def last(desk: Desk, *statuses: CameraStatus, seconds: float = GRACE_S) -> list[str]:
    """The reasons after so long."""
    outage, health, now_s = desk
    outage.look(statuses)
    now_s[0] += seconds
    outage.look(statuses)
    return [reason.reason for reason in health.snapshot().reasons]


@pytest.mark.parametrize("phase", [CameraPhase.OFFLINE, CameraPhase.CONNECTING])
def test_cameras_that_stay_away_are_a_failure_after_a_while_and_until_one_delivers(
    desk: Desk, phase: CameraPhase
) -> None:
    cameras = [status(phase), status(CameraPhase.OFFLINE, "two")]
    assert last(desk, *cameras, seconds=GRACE_S - 1) == []
    assert last(desk, *cameras, seconds=1) == ["no_camera"]
    assert desk[1].snapshot().level is Level.FAILED
    assert "60 s from cam, two" in desk[1].snapshot().reasons[0].detail
    assert last(desk, status(CameraPhase.STREAMING), cameras[1], seconds=0) == []
    assert last(desk, *cameras, seconds=GRACE_S - 1) == [], "the grace begins anew"


@pytest.mark.parametrize(
    "phases",
    [
        (CameraPhase.PAUSED, CameraPhase.PAUSED), (CameraPhase.ENDED,), (CameraPhase.OFFLINE, CameraPhase.STREAMING),
        (CameraPhase.OFFLINE, CameraPhase.BLIND), (CameraPhase.FROZEN,),
    ],
)  # fmt: skip
def test_what_rests_or_has_a_reason_of_its_own_is_not_missing(desk: Desk, phases: tuple[CameraPhase, ...]) -> None:
    assert last(desk, *(status(phase, str(n)) for n, phase in enumerate(phases))) == []


def test_a_paused_camera_does_not_stand_for_one_that_is_offline(desk: Desk) -> None:
    assert last(desk, status(CameraPhase.PAUSED), status(CameraPhase.OFFLINE, "two")) == ["no_camera"]


def test_a_camera_that_delivered_between_two_rounds_was_there(desk: Desk) -> None:
    assert last(desk, status(CameraPhase.OFFLINE), seconds=GRACE_S - 1) == []
    assert last(desk, status(CameraPhase.OFFLINE, frames=3), seconds=GRACE_S - 1) == []


def test_no_camera_in_the_configuration_is_one_at_once_and_ends_with_the_first(desk: Desk) -> None:
    outage, health, _ = desk
    outage.configured(False)
    assert last(desk) == ["no_camera"]
    assert health.snapshot().reasons[0].detail == "no camera is configured"
    outage.configured(True)
    assert last(desk, status(CameraPhase.CONNECTING), seconds=1) == []
