"""Overlap, pose similarity and assignment against plain definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agent.tracking.association import assign, pairwise_iou, pairwise_oks

NOT_A_NUMBER = float("nan")


def columns(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(boxes, np.float64).reshape(-1, 4).T


def test_overlap_of_known_boxes() -> None:
    iou = pairwise_iou(columns((0, 0, 10, 10)), columns((0, 0, 10, 10), (5, 0, 15, 10), (20, 20, 30, 30)))
    np.testing.assert_allclose(iou, [[1.0, 1 / 3, 0.0]])


def test_overlap_counts_corner_pixels_when_asked() -> None:
    iou = pairwise_iou(columns((0, 0, 9, 9)), columns((0, 0, 9, 4)), pixel=1.0)
    np.testing.assert_allclose(iou, [[0.5]])


@pytest.mark.parametrize("bad", [(5, 5, 5, 5), (9, 9, 1, 1), (9, 0, 1, 9)])
def test_overlap_with_a_box_without_extent_is_zero(bad: tuple[float, float, float, float]) -> None:
    np.testing.assert_array_equal(pairwise_iou(columns(bad), columns(bad, (0, 0, 10, 10))), [[0.0, 0.0]])


def test_overlap_of_nothing_is_empty() -> None:
    assert pairwise_iou(columns(), columns((0, 0, 1, 1))).shape == (0, 1)


def pose(x: float, y: float, score: float = 1.0) -> np.ndarray:
    joints = np.arange(17, dtype=np.float64)
    return np.stack((x + joints, y + 2 * joints, np.full(17, score)), axis=1)


def test_pose_similarity_is_one_for_the_same_pose_and_falls_with_distance() -> None:
    oks = pairwise_oks(pose(0, 0)[None], np.stack((pose(0, 0), pose(3, 0), pose(50, 0))), np.full(3, 5000.0))
    assert oks[0, 0] == pytest.approx(1.0)
    assert oks[0, 0] > oks[0, 1] > oks[0, 2]


def test_pose_similarity_follows_the_coco_definition() -> None:
    nose = np.zeros((1, 17, 3))
    nose[0, 0] = 10, 10, 1
    moved = nose.copy()
    moved[0, 0, 0] = 12
    expected = np.exp(-(2.0**2) / (2 * 400.0 * (2 * 0.026) ** 2))
    assert pairwise_oks(nose, moved, np.array([400.0]))[0, 0] == pytest.approx(expected)


def test_joints_that_are_not_finite_do_not_count() -> None:
    broken = pose(0, 0)
    broken[3] = NOT_A_NUMBER, float("inf"), 0.9
    broken[4, 2] = NOT_A_NUMBER
    assert pairwise_oks(pose(0, 0)[None], broken[None], np.array([5000.0]))[0, 0] == pytest.approx(1.0)


def test_poses_without_a_common_joint_have_no_similarity() -> None:
    assert np.isnan(pairwise_oks(pose(0, 0, score=0.0)[None], pose(0, 0)[None], np.array([5000.0]))).all()


def best_total(cost: np.ndarray, limit: float) -> float:
    """Least total over all ways to pair rows and columns, a row and a column left free costing half the limit each."""
    rows, cols = cost.shape
    best = limit * (rows + cols) / 2
    for size in range(1, min(rows, cols) + 1):
        for some_rows in itertools.combinations(range(rows), size):
            for some_cols in itertools.permutations(range(cols), size):
                free = limit * (rows + cols - 2 * size) / 2
                best = min(best, free + sum(cost[r, c] for r, c in zip(some_rows, some_cols, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_assignment_is_the_cheapest_one_and_accounts_for_everybody(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.random((int(rng.integers(1, 5)), int(rng.integers(1, 5))))
    limit = float(rng.uniform(0.2, 0.9))
    result = assign(cost, limit)
    free = len(result.free_rows) + len(result.free_columns)
    total = cost[result.rows, result.columns].sum() + limit * free / 2
    assert total == pytest.approx(best_total(cost, limit))
    assert (cost[result.rows, result.columns] <= limit).all()
    assert sorted([*result.rows, *result.free_rows]) == list(range(cost.shape[0]))
    assert sorted([*result.columns, *result.free_columns]) == list(range(cost.shape[1]))


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 3)])
def test_assignment_without_partners_leaves_everybody_free(shape: tuple[int, int]) -> None:
    result = assign(np.zeros(shape), 0.5)
    assert len(result.rows) == len(result.columns) == 0
    assert (len(result.free_rows), len(result.free_columns)) == shape
