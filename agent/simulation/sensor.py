"""What camera electronics do to a clean picture: softness, exposure flicker, white balance drift, noise, compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from agent.types import ImageArray

_SLACK = 64
"""The noise tile is larger than the picture by this many px; every frame takes another cut-out."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """Strengths of the effects; 0 = none.

    softness: deviation of the lens blur, px; noise: deviation, grey levels of 255; flicker: share of the brightness at
    mains frequency; drift: share by which the channels wander over minutes; jpeg_quality: 1-100, 0 = not compressed;
    exposure_s: time the shutter is open (motion blur).
    """

    softness: float = 0.6
    noise: float = 3.0
    flicker: float = 0.01
    drift: float = 0.015
    jpeg_quality: int = 0
    exposure_s: float = 1 / 60
    grey: bool = False


CLEAN = Sensor(softness=0.0, noise=0.0, flicker=0.0, drift=0.0, exposure_s=0.0)
"""A perfect camera."""


def choose_sensor(rng: np.random.Generator, *, night: bool) -> Sensor:
    """A camera by chance; at night exposure and noise are higher and there is no colour."""
    return Sensor(
        softness=float(rng.uniform(0.45, 0.95)),
        noise=float(rng.uniform(3, 8) if night else rng.uniform(1.0, 5.5)),
        flicker=float(rng.choice([0.0, rng.uniform(0.003, 0.02)])),
        drift=float(rng.uniform(0.0, 0.03)),
        jpeg_quality=int(rng.integers(30, 90)) if rng.random() < 0.7 else 0,
        exposure_s=float(1 / rng.uniform(25, 50) if night else 1 / rng.uniform(40, 250)),
        grey=night,
    )


class SensorModel:
    """A `Sensor` with its noise drawn; `apply` depends on the picture and the time alone."""

    def __init__(self, sensor: Sensor, seed: int, *, width: int, height: int) -> None:
        self.sensor = sensor
        self._seed = seed
        rng = np.random.default_rng((seed, 5))
        self._phases = rng.uniform(0, 2 * np.pi, 4)
        channels = 1 if sensor.grey else 3
        noise = rng.standard_normal((height + _SLACK, width + _SLACK, channels), dtype=np.float32)
        noise = cv2.GaussianBlur(noise, (3, 3), 0.55).reshape(noise.shape) * np.float32(1.55 * sensor.noise)
        noise = np.repeat(noise, 3 // channels, axis=2)
        self._brighter = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
        self._darker = np.clip(np.rint(-noise), 0, 255).astype(np.uint8)

    def apply(self, image: ImageArray, t_s: float) -> ImageArray:
        """The picture ((H, W, 3) uint8 BGR) as the camera gives it at `t_s`."""
        sensor = self.sensor
        if sensor.softness:
            image = cv2.GaussianBlur(image, (3, 3), sensor.softness)
        if sensor.flicker or sensor.drift:
            image = cv2.LUT(image, self._curve(t_s))
        if sensor.noise:
            down, right = np.random.default_rng((self._seed, round(t_s * 1e6))).integers(0, _SLACK, 2)
            window = slice(down, down + image.shape[0]), slice(right, right + image.shape[1])
            image = cv2.subtract(cv2.add(image, self._brighter[window]), self._darker[window])
        if sensor.jpeg_quality:
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, sensor.jpeg_quality])
            return cast("ImageArray", cv2.imdecode(data, cv2.IMREAD_COLOR))
        return image

    def _curve(self, t_s: float) -> ImageArray:
        """(1, 256, 3) grey levels out for grey levels in."""
        sensor, phases = self.sensor, self._phases
        gain = (
            1
            + sensor.flicker * np.sin(2 * np.pi * 7.3 * t_s + phases[0])
            + sensor.drift * np.sin(t_s / 9.1 + phases[1])
        )
        balance = 0.0 if sensor.grey else sensor.drift * np.sin(t_s / 14.7 + phases[2])
        gains = gain * np.array([1 + balance, 1.0, 1 - balance])
        curve: ImageArray = np.clip(np.arange(256)[None, :, None] * gains, 0, 255).astype(np.uint8)
        return curve
