"""Fights: blows are drawn within the time, fists reach bodies, bodies are thrown back."""

from __future__ import annotations

import numpy as np
import pytest

from agent.simulation import skeleton as sk
from agent.simulation.blows import Blow, Temper, draw_blows, random_temper
from agent.simulation.fighting import fight
from agent.simulation.meetings import MEETINGS, meet
from agent.simulation.motion import RATE_HZ, MotionModel, load_motion_model
from agent.simulation.performer import Performer

BOXING = Temper((0.5, 0.9), kicks=0.0, shoves=0.0, grapples=0.0, force=(0.5, 1.0))


@pytest.fixture(scope="module")
def model() -> MotionModel:
    return load_motion_model()


def pair(model: MotionModel, seed: int, apart: float = 1.4) -> tuple[np.random.Generator, list[Performer]]:
    rng = np.random.default_rng(seed)
    first = Performer(model, rng, first=0, xy=np.array([-apart / 2, 0.0]), heading=0.0)
    second = Performer(model, rng, first=0, xy=np.array([apart / 2, 0.0]), heading=np.pi)
    return rng, [first, second]


def joints_of(person: Performer) -> sk.Array:
    track = person.track()
    return sk.joints_of(sk.Lengths([track.body]).table, track.root.astype(float), track.bones.astype(float))


def fought(model: MotionModel, seed: int, temper: Temper, seconds: float = 6.0) -> tuple[list[Blow], sk.Array]:
    rng, fighters = pair(model, seed)
    blows: list[Blow] = []
    for result in fight(rng, fighters, [1, 0], temper=temper, seconds=seconds):
        blows = blows if result is None else result
    return blows, np.stack([joints_of(person) for person in fighters])


@pytest.mark.parametrize("seed", range(5))
def test_blows_come_in_order_and_fill_the_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blows = draw_blows(rng, random_temper(rng), [1, 0], 10 * RATE_HZ)
    times = [blow.at for blow in blows]
    assert times == sorted(times)
    assert times[0] < RATE_HZ
    assert max(blow.until for blow in blows) > 9.1 * RATE_HZ
    assert all(blow.until < 10 * RATE_HZ for blow in blows)


@pytest.mark.parametrize("seed", range(3))
def test_fists_that_land_come_within_reach_of_the_body(model: MotionModel, seed: int) -> None:
    blows, joints = fought(model, seed, BOXING)
    landed = [blow for blow in blows if blow.kind == "punch" and blow.lands]
    assert landed
    gaps = []
    for blow in landed:
        fist = joints[blow.attacker, blow.at - 2 : blow.at + 3, sk.WRIST_L + blow.hand]
        body = joints[blow.victim, blow.at - 2 : blow.at + 3]
        gaps.append(np.linalg.norm(body - fist[:, None], axis=-1).min())
    assert np.median(gaps) < 0.22
    assert max(gaps) < 0.45


def test_who_is_shoved_is_moved_away(model: MotionModel) -> None:
    shoving = Temper((1.2, 1.4), kicks=0.0, shoves=1.0, grapples=0.0, force=(0.8, 1.0))
    blows, joints = fought(model, 3, shoving)
    hips = joints[:, :, [sk.HIP_L, sk.HIP_R], :2].mean(axis=2)
    shoves = [blow for blow in blows if blow.kind == "shove" and blow.lands and blow.at + 30 < joints.shape[1]]
    assert shoves
    for blow in shoves:
        away = sk.unit(hips[blow.victim, blow.at] - hips[blow.attacker, blow.at])
        moved = hips[blow.victim, blow.at + 24] - hips[blow.victim, blow.at]
        assert float(moved @ away) > 0.12


def test_fists_are_quick_but_not_impossible(model: MotionModel) -> None:
    """Punches reach 5 to 10 m/s at the fist."""
    _, joints = fought(model, 4, BOXING)
    speed = np.linalg.norm(np.diff(joints[:, :, [sk.WRIST_L, sk.WRIST_R]], axis=1), axis=-1) * RATE_HZ
    assert 4 < speed.max() < 13


@pytest.mark.parametrize("kind", MEETINGS)
def test_meetings_bring_two_together_and_apart(model: MotionModel, kind: str) -> None:
    rng, two = pair(model, 5, 1.2)
    for person in two:
        person.stand(0.5)
    meet((two[0], two[1]), kind, rng)
    joints = np.stack([joints_of(person) for person in two])
    gap = np.linalg.norm(joints[0][:, :, None] - joints[1][:, None], axis=-1)
    hands = gap[:, [sk.WRIST_L, sk.WRIST_R]].min(axis=(1, 2))
    assert hands.min() < 0.2, "somebody's hand touches the other"
    apart = np.linalg.norm((joints[0] - joints[1])[:, [sk.HIP_L, sk.HIP_R], :2].mean(axis=1), axis=-1)
    assert apart[-1] == pytest.approx(1.2, abs=0.25)
    assert np.linalg.norm(np.diff(joints, axis=1), axis=-1).max() * RATE_HZ < 9
