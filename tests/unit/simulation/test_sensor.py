"""Noise, flicker, compression: as strong as asked for, and the same again."""

from __future__ import annotations

import numpy as np
import pytest

from agent.simulation.sensor import CLEAN, Sensor, SensorModel, choose_sensor

GREY = np.full((120, 160, 3), 120, np.uint8)


def model(**more: float) -> SensorModel:
    options = {"softness": 0.0, "noise": 0.0, "flicker": 0.0, "drift": 0.0, **more}
    return SensorModel(Sensor(**options), 1, width=160, height=120)  # type: ignore[arg-type]  # floats, one int


def test_a_clean_sensor_changes_nothing() -> None:
    assert np.array_equal(SensorModel(CLEAN, 1, width=160, height=120).apply(GREY, 1.0), GREY)


@pytest.mark.parametrize("noise", [2.0, 6.0])
def test_noise_has_the_deviation_asked_for_and_no_bias(noise: float) -> None:
    noisy = model(noise=noise).apply(GREY, 1.0).astype(np.float64)
    assert noisy.std() == pytest.approx(noise, rel=0.2)
    assert noisy.mean() == pytest.approx(120, abs=0.3)


def test_every_frame_has_other_noise_and_the_same_time_the_same() -> None:
    one = model(noise=3.0)
    assert not np.array_equal(one.apply(GREY, 1.0), one.apply(GREY, 1.04))
    assert np.array_equal(one.apply(GREY, 1.0), model(noise=3.0).apply(GREY, 1.0))


def test_exposure_flickers_within_its_bound() -> None:
    means = [model(flicker=0.05).apply(GREY, t_s).mean() for t_s in np.arange(0, 1, 0.03)]
    assert 120 * 0.94 < min(means) < 120 * 0.97
    assert 120 * 1.03 < max(means) < 120 * 1.06


def test_white_balance_drifts_over_seconds() -> None:
    drifting = model(drift=0.05)
    balance = [float(np.subtract(*drifting.apply(GREY, t_s)[0, 0, [0, 2]].astype(float))) for t_s in (0.0, 20.0, 45.0)]
    assert np.ptp(balance) > 2


def test_compression_leaves_its_marks() -> None:
    rng = np.random.default_rng(1)
    busy = rng.integers(0, 255, (120, 160, 3)).astype(np.uint8)
    mild, harsh = (
        np.abs(model(jpeg_quality=quality).apply(busy, 0.0).astype(int) - busy).mean() for quality in (90, 25)
    )
    assert 0 < mild < harsh


def test_nights_are_grey_noisier_and_slower() -> None:
    days, nights = (
        [choose_sensor(np.random.default_rng(seed), night=night) for seed in range(30)] for night in (False, True)
    )
    assert all(sensor.grey for sensor in nights)
    assert not any(sensor.grey for sensor in days)
    assert np.mean([s.noise for s in nights]) > np.mean([s.noise for s in days])
    assert min(s.exposure_s for s in nights) >= 1 / 50
    noisy = SensorModel(Sensor(0.0, 5.0, 0.0, 0.0, grey=True), 1, width=160, height=120).apply(GREY, 0.0)
    assert np.array_equal(noisy[..., 0], noisy[..., 2])
