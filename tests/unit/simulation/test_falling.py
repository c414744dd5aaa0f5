"""Falls: they begin in the pose of the moment, hit the floor as fast as bodies do, end lying, and can be got up from."""

from __future__ import annotations

import numpy as np
import pytest

from agent.simulation import skeleton as sk
from agent.simulation.activities import lie_down, sit
from agent.simulation.falling import KINDS, fall_down, get_up, lie, random_fall
from agent.simulation.motion import RATE_HZ, MotionModel, load_motion_model
from agent.simulation.performer import Performer


@pytest.fixture(scope="module")
def model() -> MotionModel:
    return load_motion_model()


def standing(model: MotionModel, seed: int) -> Performer:
    person = Performer(model, np.random.default_rng(seed), first=0, xy=np.zeros(2), heading=0.5)
    person.stand(0.8)
    return person


def joints_of(person: Performer) -> sk.Array:
    track = person.track()
    return sk.joints_of(sk.Lengths([track.body]).table, track.root.astype(float), track.bones.astype(float))


def fallen(model: MotionModel, kind: str, seed: int) -> tuple[Performer, int]:
    person = standing(model, seed)
    if kind in {"trip", "slip"}:
        person.go([person.xy + np.array([2.0, 1.0])], 1.3, end_speed=1.3)
    onset = person.now
    for _ in fall_down(person, random_fall(np.random.default_rng(seed), kind)):
        pass
    return person, onset


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_fall_ends_on_the_floor(model: MotionModel, kind: str, seed: int) -> None:
    person, onset = fallen(model, kind, seed)
    joints = joints_of(person)
    head = joints[:, [sk.EAR_L, sk.EAR_R], 2].mean(axis=1)
    assert head[onset] > 0.8 * person.body.height
    assert head[-1] < 0.6
    assert joints[-1, [sk.HIP_L, sk.HIP_R], 2].mean() < 0.45
    assert 0.7 < (len(joints) - onset) / RATE_HZ < 3.3


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_hits_no_faster_than_free_fall(model: MotionModel, kind: str) -> None:
    """From standing height, sqrt(2 g h) is the bound; falls of people stay well below or near it."""
    person, onset = fallen(model, kind, 4)
    head = joints_of(person)[onset:, [sk.EAR_L, sk.EAR_R], 2].mean(axis=1)
    speed = -np.diff(head).min() * RATE_HZ
    assert 1.5 < speed < np.sqrt(2 * 9.81 * person.body.height) * 1.15


@pytest.mark.parametrize("kind", KINDS)
def test_the_pose_does_not_jump_when_the_fall_begins(model: MotionModel, kind: str) -> None:
    person, onset = fallen(model, kind, 5)
    joints = joints_of(person)
    steps = np.linalg.norm(np.diff(joints[onset - 3 : onset + 3], axis=0), axis=-1)
    assert steps.max() < 0.08


def test_trips_go_forward_and_backward_falls_backward(model: MotionModel) -> None:
    for kind, sign in (("trip", 1.0), ("back", -1.0)):
        person, onset = fallen(model, kind, 6)
        joints = joints_of(person)
        heading = 0.5 if kind == "back" else float(np.arctan2(1.0, 2.0))
        ahead = np.array([np.cos(heading), np.sin(heading)])
        lean = joints[-1, [sk.EAR_L, sk.EAR_R], :2].mean(axis=0) - joints[onset, [sk.ANKLE_L, sk.ANKLE_R], :2].mean(
            axis=0
        )
        assert sign * float(lean @ ahead) > 0.3, kind


def test_lying_is_nearly_still_but_not_frozen(model: MotionModel) -> None:
    person, _ = fallen(model, "side", 7)
    start = person.now
    lie(person, 3.0)
    moved = np.linalg.norm(np.diff(joints_of(person)[start:], axis=0), axis=-1)
    assert 0 < moved.mean() < 0.003
    assert moved.max() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_people_get_up_again(model: MotionModel, kind: str) -> None:
    person, _ = fallen(model, kind, 8)
    lie(person, 1.0)
    get_up(person)
    person.stand(1.0)
    joints = joints_of(person)
    assert joints[-1, sk.NOSE, 2] > 0.85 * person.body.height
    assert joints[..., 2].min() > 0.0


def test_sitting_down_ends_on_a_seat_and_is_slower_than_a_fall(model: MotionModel) -> None:
    person = standing(model, 9)
    start = person.now
    sit(person, 2.0, down_s=0.5)
    hips = joints_of(person)[start:, [sk.HIP_L, sk.HIP_R], 2].mean(axis=1)
    assert 0.40 < hips[int(1.5 * RATE_HZ)] / person.body.height * 1.72 < 0.62
    assert hips[-1] > 0.45 * person.body.height


def test_lying_down_on_purpose_takes_its_time(model: MotionModel) -> None:
    person = standing(model, 10)
    start = person.now
    lie_down(person, 1.0)
    head = joints_of(person)[start:, [sk.EAR_L, sk.EAR_R], 2].mean(axis=1)
    assert head[-1] < 0.5
    assert np.argmax(head < 0.5) > 2.5 * RATE_HZ
