"""Walking and running: feet that rest do not slide, pace and steps belong together, any path is followed."""

from __future__ import annotations

import numpy as np
import pytest

from agent.errors import ModelError
from agent.simulation import skeleton as sk
from agent.simulation.area import travel
from agent.simulation.gait import Mover, Take, perform, plan_along
from agent.simulation.motion import RATE_HZ, MotionModel, load_motion_model


@pytest.fixture(scope="module")
def model() -> MotionModel:
    return load_motion_model()


def mover_of(model: MotionModel, height: float = 1.72) -> Mover:
    return Mover(sk.average_body(height), np.zeros(len(model.walk.styles)), model)


def straight(mover: Mover, speed: float, length: float = 12.0) -> Take:
    xy, heading = travel(np.array([[0.0, 0.0], [length, 0.0]]), 0.0, speed)
    return perform(mover, plan_along(mover, xy, heading))


def joints(mover: Mover, take: Take) -> sk.Array:
    return sk.joints_of(sk.Lengths([mover.body]).table[0][None], take.root, take.bones)


def resting(ankles: sk.Array, mover: Mover) -> sk.Array:
    """Frames in which an ankle is at the height of a foot flat on the floor."""
    return np.asarray(ankles[..., 2] < mover.body.ankle + 0.002)


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.3, 1.6])
def test_resting_feet_do_not_slide(model: MotionModel, speed: float) -> None:
    mover = mover_of(model)
    ankles = joints(mover, straight(mover, speed))[:, [sk.ANKLE_L, sk.ANKLE_R]]
    both = resting(ankles, mover)[1:] & resting(ankles, mover)[:-1]
    slip = np.linalg.norm(np.diff(ankles[..., :2], axis=0), axis=-1)[both]
    assert both.mean() > 0.2
    assert slip.mean() < 0.001
    assert np.percentile(slip, 95) < 0.012  # the last frames of a landing count as resting here


@pytest.mark.parametrize(("speed", "low", "high"), [(0.8, 75, 105), (1.3, 95, 125), (1.6, 105, 140)])
def test_cadence_fits_the_speed(model: MotionModel, speed: float, low: float, high: float) -> None:
    """Steps a minute of adults at these speeds: about 90, 110, 125 (Grieve and Gear 1966)."""
    mover = mover_of(model)
    ankles = joints(mover, straight(mover, speed, 20.0))[3 * RATE_HZ : -3 * RATE_HZ, sk.ANKLE_L]
    rests = resting(ankles, mover)
    landings = np.flatnonzero(rests[1:] & ~rests[:-1])
    cadence = 2 * 60 / (np.diff(landings).mean() / RATE_HZ)
    assert low < cadence < high


def test_speed_is_kept_and_the_pelvis_stays_near_the_path(model: MotionModel) -> None:
    mover = mover_of(model)
    take = straight(mover, 1.3)
    steady = take.root[3 * RATE_HZ : 6 * RATE_HZ]
    assert (steady[-1, 0] - steady[0, 0]) / (len(steady) - 1) * RATE_HZ == pytest.approx(1.3, abs=0.08)
    assert np.abs(steady[:, 1]).max() < 0.06
    assert np.ptp(steady[:, 2]) < 0.09


@pytest.mark.parametrize("height", [1.15, 1.50, 1.95])
def test_any_body_walks_with_its_ankles_where_they_were_planned(model: MotionModel, height: float) -> None:
    mover = mover_of(model, height)
    take = straight(mover, 1.0, 5.0)
    reached = joints(mover, take)[:, [sk.ANKLE_L, sk.ANKLE_R]]
    assert np.abs(reached - take.feet).max() < 0.01


def test_runners_leave_the_floor(model: MotionModel) -> None:
    mover = mover_of(model)
    ankles = joints(mover, straight(mover, 3.2, 20.0))[2 * RATE_HZ : -3 * RATE_HZ, [sk.ANKLE_L, sk.ANKLE_R]]
    airborne = ~resting(ankles, mover).any(axis=1)
    assert 0.1 < airborne.mean() < 0.8


def test_somebody_who_stops_stands_on_both_feet(model: MotionModel) -> None:
    mover = mover_of(model)
    xy, heading = travel(np.array([[0.0, 0.0], [2.0, 1.0], [3.0, 3.0]]), 0.0, 1.3)
    xy = np.concatenate([xy, np.repeat(xy[-1:], RATE_HZ, axis=0)])
    heading = np.concatenate([heading, np.repeat(heading[-1:], RATE_HZ)])
    take = perform(mover, plan_along(mover, xy, heading))
    ankles = joints(mover, take)[-1, [sk.ANKLE_L, sk.ANKLE_R]]
    assert ankles[:, 2] == pytest.approx(mover.body.ankle, abs=0.003)
    assert np.linalg.norm(ankles[:, :2] - take.root[-1, :2], axis=1).max() < 0.30
    assert take.root[-1, :2] == pytest.approx([3.0, 3.0], abs=0.05)


def test_turning_on_the_spot_is_done_in_steps(model: MotionModel) -> None:
    mover = mover_of(model)
    n = 2 * RATE_HZ
    heading = np.linspace(0, np.pi, n)
    take = perform(mover, plan_along(mover, np.zeros((n, 2)), heading))
    lifted = (~resting(joints(mover, take)[:, [sk.ANKLE_L, sk.ANKLE_R]], mover)).sum(axis=0)
    assert (lifted > 10).all()


def test_a_missing_model_is_named(tmp_path: object) -> None:
    with pytest.raises(ModelError, match=r"motion\.npz: not a motion model"):
        load_motion_model(tmp_path)  # type: ignore[arg-type]  # pytest's Path


def test_the_model_holds_no_frames(model: MotionModel) -> None:
    """Every movement is stored as products of low rank, far smaller than the frames it came from."""
    for primitive in model.primitives.values():
        knots, rank = primitive.time.shape
        frames = primitive.duration_s * 30
        assert rank <= 10
        assert knots < 0.45 * frames
