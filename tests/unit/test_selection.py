"""Who is in the window: each component, the weights, ties, missing joints."""

from __future__ import annotations

import numpy as np
import pytest

from agent.action.history import TrackHistory
from agent.action.selection import Candidates
from agent.types import FloatArray

WIDTH, HEIGHT = 640, 480
STANDING = np.array(
    [
        (0, -90), (3, -93), (-3, -93), (6, -91), (-6, -91), (15, -70), (-15, -70), (20, -45), (-20, -45), (22, -20),
        (-22, -20), (10, -15), (-10, -15), (11, 25), (-11, 25), (12, 65), (-12, 65),
    ],
    np.float32,
)  # fmt: skip


def person(frames: int = 30, at: tuple[float, float] = (320, 240), scale: float = 1.0) -> FloatArray:
    """(F, 17, 3): somebody who stands still."""
    joints = np.ones((frames, 17, 3), np.float32)
    joints[..., :2] = STANDING * scale + at
    return joints


def lying(frames: int = 30, at: tuple[float, float] = (320, 240)) -> FloatArray:
    joints = person(frames, at)
    joints[..., :2] = STANDING[:, ::-1] * (-1, 1) + at
    return joints


def candidates(*people: FloatArray, ids: tuple[int, ...] | None = None) -> Candidates:
    joints = np.stack(people)
    seen = (joints[..., 2] > 0).any(axis=2)
    times = np.arange(joints.shape[1], dtype=np.int64) * 33_333_333
    return Candidates(
        TrackHistory(np.array(ids or range(len(people)), np.int64), joints, seen, times, WIDTH, HEIGHT),
    )


def test_body_size_is_about_the_height_and_the_same_standing_and_lying() -> None:
    sizes = candidates(person(), lying()).size
    assert 150 < sizes[0] < 200
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)


def test_movement_counts_body_sizes_not_pixels() -> None:
    near, far = person(scale=2), person()
    near[:, :, 0] += np.arange(30)[:, None] * 4
    far[:, :, 0] += np.arange(30)[:, None] * 2
    score = candidates(person(), near, far).component("movement")
    assert score[0] == 0
    assert 0 < score[1] < 1
    assert score[1] == pytest.approx(score[2], rel=1e-3)


def test_movement_ignores_joints_that_come_and_go() -> None:
    blinking = person()
    blinking[::2, 9] = 0
    assert candidates(blinking).component("movement")[0] == 0


def test_interaction_is_high_for_the_two_who_touch() -> None:
    score = candidates(person(at=(100, 240)), person(at=(130, 240)), person(at=(600, 240))).component("interaction")
    assert score[0] == score[1] > 0.8
    assert score[2] == 0


def test_interaction_of_one_person_is_zero() -> None:
    assert candidates(person()).component("interaction")[0] == 0


def test_position_is_one_in_the_middle_and_zero_in_the_corner() -> None:
    middle, corner = person(), person()
    middle[..., :2] -= middle[..., :2].mean(axis=1, keepdims=True) - (320, 240)
    corner[..., :2] -= corner[..., :2].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(candidates(middle, corner).component("position"), (1, 0), atol=1e-5)


def test_persistence_is_the_share_of_frames() -> None:
    half = person()
    half[15:] = 0
    np.testing.assert_allclose(candidates(person(), half).component("persistence"), (1, 0.5))


def test_height_change_sees_sinking_but_not_rising() -> None:
    sinking, rising = person(), person()
    sinking[:, :, 1] += np.linspace(0, 120, 30)[:, None]
    rising[:, :, 1] -= np.linspace(0, 120, 30)[:, None]
    score = candidates(person(), sinking, rising).component("height_change")
    assert score[0] == 0
    assert score[1] == 1
    assert score[2] == 0


def test_posture_angle_is_zero_upright_and_one_lying() -> None:
    np.testing.assert_allclose(candidates(person(), lying()).component("posture_angle"), (0, 1), atol=0.02)


def test_posture_angle_needs_shoulders_and_hips() -> None:
    hidden = lying()
    hidden[:, (11, 12)] = 0
    assert candidates(hidden).component("posture_angle")[0] == 0


@pytest.mark.parametrize(
    "name", ["movement", "interaction", "position", "persistence", "height_change", "posture_angle"]
)
def test_nobody_seen_is_zero_everywhere(name: str) -> None:
    unseen = np.zeros((30, 17, 3), np.float32)
    assert candidates(unseen, unseen).component(name)[0] == 0  # type: ignore[arg-type]


def test_score_is_the_weighted_mean() -> None:
    group = candidates(person())
    expected = (3 * group.component("position")[0] + 1 * group.component("persistence")[0]) / 4
    assert group.score({"position": 3, "persistence": 1})[0] == pytest.approx(expected, abs=1e-4)


def test_best_first_and_at_most_count() -> None:
    still, moving = person(), person()
    moving[:, :, 0] += np.arange(30)[:, None] * 3
    assert candidates(still, moving, still).select({"movement": 1}, 2).tolist() == [1, 0]


def test_equal_scores_go_by_track_id() -> None:
    same = person()
    assert candidates(same, same, same, ids=(7, 3, 5)).select({"position": 1}, 2).tolist() == [1, 2]


def test_no_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        candidates(person()).score({"movement": 0})
