"""Comparing people: what counts as the same answer, and what the difference is called."""

from __future__ import annotations

import numpy as np
import pytest

from agent.runtime.people import Tolerance, compare_people

TOLERANCE = Tolerance(min_score=0.3, score=0.02, position_px=1.0)
Answer = tuple[np.ndarray, np.ndarray]


def answer(*people: tuple[float, float], pad: int = 0) -> Answer:
    """One picture with people of (left edge, score); key points on their diagonal; `pad` rows of zeros."""
    dets = [[x, 10, x + 20, 70, score] for x, score in people] + [[0] * 5] * pad
    points = [[[x + k, 10 + 3 * k, score] for k in range(17)] for x, score in people] + [[[0] * 3] * 17] * pad
    return np.array([dets], np.float32).reshape(1, -1, 5), np.array([points], np.float32).reshape(1, -1, 17, 3)


WANT = answer((10, 0.9), (100, 0.6), (200, 0.2))


@pytest.mark.parametrize(
    "have",
    [
        pytest.param(WANT, id="itself"),
        pytest.param(answer((100, 0.6), (200, 0.2), (10, 0.9)), id="another order"),
        pytest.param(answer((10, 0.9), (100, 0.6), (200, 0.2), pad=47), id="padded rows"),
        pytest.param(answer((10.9, 0.89), (99.5, 0.61)), id="a little off, without the doubtful one"),
        pytest.param(answer((10, 0.9), (100, 0.6), (300, 0.31)), id="a doubtful one more"),
    ],
)
def test_the_same_people_are_the_same_answer(have: Answer) -> None:
    assert compare_people(WANT, have, TOLERANCE) == ""


@pytest.mark.parametrize(
    ("have", "words"),
    [
        (answer(), "the person of score 0.90 at [10, 10, 30, 70] is not found"),
        (answer(pad=50), "is not found"),
        (answer((10, 0.9)), "the person of score 0.60 at [100, 10, 120, 70] is not found"),
        (answer((10, 0.9), (104, 0.6)), "the nearest box is 4.0 px off"),
        (answer((10, 0.8), (100, 0.6)), "the score of the person of score 0.90 at [10, 10, 30, 70] is off by 0.100"),
        (answer((10, 0.9), (100, 0.6), (300, 0.8)), "a person of score 0.80 at [300, 10, 320, 70] should not be there"),
        ((answer((10, 0.9))[0], np.zeros((1, 1, 16, 3), np.float32)), "should have the shapes (1, N, 5) and (1, N, 17, 3)"),
        ((WANT[0][0], WANT[1][0]), "found (3, 5) and (3, 17, 3)"),
        ((np.repeat(WANT[0], 2, 0), np.repeat(WANT[1], 2, 0)), "found (2, 3, 5)"),
    ],
)  # fmt: skip
def test_a_difference_is_named(have: Answer, words: str) -> None:
    assert words in compare_people(WANT, have, TOLERANCE)


@pytest.mark.parametrize(
    "want",
    [
        (WANT[0][0], WANT[1]), (WANT[0], WANT[1][0]), (WANT[0][..., :4], WANT[1]), (WANT[0], WANT[1][..., :2]),
        (WANT[0], WANT[1][:, :1]), (WANT[0][0, 0, 0], WANT[1][0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_known_answers_that_are_no_people_are_named(want: Answer) -> None:
    words = f"outputs are of the shapes {want[0].shape} and {want[1].shape}, not (B, N, 5) and (B, N, K, 3)"
    assert compare_people(want, WANT, TOLERANCE) == words


def test_a_key_point_that_moved_is_named_unless_it_was_a_guess() -> None:
    dets, points = answer((10, 0.9))
    moved = points.copy()
    moved[0, 0, 5, 0] += 7
    assert "is 7.0 px off (allowed: 1)" in compare_people((dets, points), (dets, moved), TOLERANCE)
    points[0, 0, 5, 2] = moved[0, 0, 5, 2] = 0.1
    assert compare_people((dets, points), (dets, moved), TOLERANCE) == ""


def test_what_is_not_finite_is_nobody() -> None:
    dets, points = answer((10, 0.9))
    broken = np.full_like(points, np.nan)
    assert "is not found" in compare_people((dets, points), (dets, broken), TOLERANCE)


def test_an_empty_scene_stays_empty() -> None:
    assert compare_people(answer(), answer(pad=3), TOLERANCE) == ""
    assert "should not be there" in compare_people(answer(), answer((10, 0.9)), TOLERANCE)


def test_the_picture_is_named() -> None:
    two = tuple(np.concatenate([part, part]) for part in answer((10, 0.9)))
    worse = two[0].copy()
    worse[1, :, 4] = 0.5
    assert compare_people((two[0], two[1]), (worse, two[1]), TOLERANCE).startswith("picture 1: ")
