"""Truth without pictures: where people are, who hides whom; and the noise of an estimator on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from agent.evaluate.sketch import SketchScene
from agent.evaluate.truth_poses import COCO_SIGMAS, EstimatorNoise, NoisyTruth
from agent.simulation.camera import Camera
from agent.simulation.values import ActorState, Interval, Truth

LEVEL = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], np.float32)
"""Looks along x: right is -y, down is -z."""
CAMERA = Camera(np.array([0, 0, 1], np.float32), LEVEL, focal_px=400.0, width=640, height=480)
STANDING = np.array([
    (0, 1.7), (0.03, 1.73), (-0.03, 1.73), (0.07, 1.71), (-0.07, 1.71), (0.2, 1.45), (-0.2, 1.45), (0.25, 1.2),
    (-0.25, 1.2), (0.27, 0.95), (-0.27, 0.95), (0.12, 0.95), (-0.12, 0.95), (0.12, 0.5), (-0.12, 0.5), (0.12, 0.08),
    (-0.12, 0.08),
], np.float32)  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """Implements Script: people who stand at (x, y) for ever."""

    places: tuple[tuple[float, float], ...]
    name: str = "standing"
    length_s: float = 10.0

    def actors(self, t_s: float) -> tuple[ActorState, ...]:
        return tuple(
            ActorState(
                number,
                np.column_stack([np.full(17, x), y + STANDING[:, 0], STANDING[:, 1]]).astype(np.float32),
                "stand",
            )
            for number, (x, y) in enumerate(self.places, start=1)
        )

    def intervals(self, start_s: float, end_s: float) -> tuple[Interval, ...]:
        return ()


def truth(*places: tuple[float, float]) -> Truth:
    return SketchScene(Standing(places), CAMERA).shot(0.0).truth


def test_a_person_in_front_of_the_camera_is_in_the_middle() -> None:
    shot = SketchScene(Standing(((5.0, 0.0),)), CAMERA).shot(0.0)
    seen = shot.truth
    assert shot.image.shape == (480, 640, 3)
    assert (seen.actor_ids.tolist(), seen.actions) == ([1], ("stand",))
    assert seen.keypoints[0, 0] == pytest.approx((320, 240 - 0.7 / 5 * 400), abs=1)
    assert (seen.visibility == 2).all()
    left, top, right, bottom = seen.boxes[0]
    assert left < seen.keypoints[0, :, 0].min() < seen.keypoints[0, :, 0].max() < right
    assert top < seen.keypoints[0, :, 1].min() < seen.keypoints[0, :, 1].max() < bottom


def test_people_behind_the_camera_or_beside_the_picture_are_not_there() -> None:
    assert truth((-3.0, 0.0), (3.0, 20.0)).actor_ids.tolist() == []
    assert truth().keypoints.shape == (0, 17, 2)


def test_somebody_at_the_edge_is_partly_outside() -> None:
    seen = truth((5.0, 4.0))  # the picture ends at y = 4
    assert set(seen.visibility[0].tolist()) == {0, 2}
    assert 0.2 < float(seen.visible_share[0]) < 0.8
    assert seen.boxes[0, 0] == 0
    assert seen.full_boxes[0, 0] < 0


def test_who_stands_behind_somebody_is_hidden_and_not_the_other_way_round() -> None:
    seen = truth((8.0, 0.0), (4.0, 0.0), (8.0, 3.0))
    assert seen.visible_share[1] == 1
    assert seen.visible_share[2] == 1
    assert seen.visible_share[0] < 0.4


def test_the_same_seed_makes_the_same_errors() -> None:
    seen = truth((5.0, 0.0), (6.0, 2.0))
    first, second, other = (NoisyTruth(seed).people(seen) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    assert not np.array_equal(first.keypoints, other.keypoints)


def test_errors_have_the_size_asked_for_and_last() -> None:
    seen = truth((5.0, 0.0))
    maker = NoisyTruth(3, EstimatorNoise(spread=1.5, lasting=0.8, swaps=0, misses=0))
    off = np.stack([maker.people(seen).keypoints[0] - seen.keypoints[0] for _ in range(4000)])
    left, top, right, bottom = seen.full_boxes[0]
    scale = np.sqrt((right - left) * (bottom - top) * 0.53)
    assert off.std(axis=0) == pytest.approx(np.tile(1.5 * COCO_SIGMAS * scale, (2, 1)).T, rel=0.15)
    one = off[:, 0, 0]
    assert np.corrcoef(one[:-1], one[1:])[0, 1] == pytest.approx(0.8, abs=0.05)


def test_hidden_people_are_missed_more_often_and_their_points_are_doubtful() -> None:
    seen = truth((8.0, 0.3), (4.0, 0.0))
    maker = NoisyTruth(4)
    reported = [maker.people(seen) for _ in range(400)]
    counts = [len(people) for people in reported]
    assert 0.5 < np.mean([count == 2 for count in counts]) < 0.95
    far = [people.keypoint_scores[np.argmin(people.boxes[:, 3])] for people in reported if len(people) == 2]
    hidden = seen.visibility[0] == 1
    assert hidden.any()
    assert np.mean(far, axis=0)[hidden].max() < 0.6 < np.mean(far, axis=0)[~hidden].min()


def test_nobody_is_nobody() -> None:
    assert len(NoisyTruth(1).people(truth())) == 0
