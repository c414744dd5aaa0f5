"""The filter in 2x2 blocks against the textbook filter with dense 8x8 matrices."""

from __future__ import annotations

import numpy as np
import pytest

from agent.tracking import kalman

MOTION = np.eye(8) + np.eye(8, k=4)
OBSERVE = np.eye(4, 8)


def noise(height: float, position: float, velocity: float, aspect: tuple[float, float]) -> np.ndarray:
    std = np.array([height / 20 * position] * 4 + [height / 160 * velocity] * 4)
    std[2], std[6] = aspect
    return np.diag(std**2)


class DenseFilter:
    """One box, textbook equations."""

    def __init__(self, xyah: np.ndarray) -> None:
        self.mean = np.concatenate((xyah, np.zeros(4)))
        self.covariance = noise(xyah[3], 2, 10, (1e-2, 1e-5))

    def predict(self) -> None:
        process = noise(self.mean[3], 1, 1, (1e-2, 1e-5))
        self.mean = MOTION @ self.mean
        self.covariance = MOTION @ self.covariance @ MOTION.T + process

    def correct(self, xyah: np.ndarray) -> None:
        measurement = noise(self.mean[3], 1, 1, (1e-1, 0))[:4, :4]
        spread = OBSERVE @ self.covariance @ OBSERVE.T + measurement
        gain = self.covariance @ OBSERVE.T @ np.linalg.inv(spread)
        self.mean = self.mean + gain @ (xyah - OBSERVE @ self.mean)
        self.covariance = self.covariance - gain @ spread @ gain.T


def dense(state: np.ndarray, track: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (8,) and covariance (8, 8) of one track of a state array."""
    blocks = state[:, :, track]
    cross = np.diag(blocks[kalman.COVARIANCE])
    covariance = np.block(
        [[np.diag(blocks[kalman.VAR_POSITION]), cross], [cross, np.diag(blocks[kalman.VAR_VELOCITY])]]
    )
    return np.concatenate((blocks[kalman.POSITION], blocks[kalman.VELOCITY])), covariance


def measured(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.stack((rng.uniform(0, 900, n), rng.uniform(0, 900, n), rng.uniform(0.2, 1, n), rng.uniform(20, 300, n)))


def test_blocks_equal_the_dense_filter_over_many_frames() -> None:
    rng = np.random.default_rng(3)
    start = measured(rng, 5)
    state = kalman.initiate(start)
    filters = [DenseFilter(column) for column in start.T]
    for _ in range(50):
        state = kalman.predict(state, np.zeros(5, np.bool_))
        for one in filters:
            one.predict()
        seen = state[kalman.POSITION] * rng.uniform(0.95, 1.05, (4, 5))
        state = kalman.correct(state, seen)
        for one, column in zip(filters, seen.T, strict=True):
            one.correct(column)
        for track, one in enumerate(filters):
            mean, covariance = dense(state, track)
            np.testing.assert_allclose(mean, one.mean, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(covariance, one.covariance, rtol=1e-9, atol=1e-12)


def test_prediction_moves_by_the_velocity_and_a_lost_track_keeps_its_height() -> None:
    state = kalman.initiate(np.array([[10.0, 10.0], [20.0, 20.0], [0.5, 0.5], [100.0, 100.0]]))
    state[kalman.VELOCITY] = [[3.0, 3.0], [-2.0, -2.0], [0.0, 0.0], [1.0, 1.0]]
    after = kalman.predict(state, np.array([False, True]))
    np.testing.assert_allclose(after[kalman.POSITION], [[13, 13], [18, 18], [0.5, 0.5], [101, 100]])


def test_functions_leave_their_input_alone() -> None:
    state = kalman.initiate(measured(np.random.default_rng(0), 3))
    before = state.copy()
    kalman.predict(state, np.ones(3, np.bool_))
    kalman.correct(state, measured(np.random.default_rng(1), 3))
    np.testing.assert_array_equal(state, before)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_boxes_survive_the_way_through_measurement_and_state(n: int) -> None:
    boxes = np.random.default_rng(n).uniform(1, 100, (4, n))
    boxes[2:] += boxes[:2]
    np.testing.assert_allclose(kalman.to_xyxy(kalman.initiate(kalman.to_xyah(boxes))), boxes)
