"""What a camera looks at, as a viewpoint is told."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.capture.viewpoint import HEIGHT, SAMPLE_PERIOD_NS, SAMPLES, WIDTH, Viewpoint

_RANDOM = np.random.default_rng(11)
_VIEWS = [cv2.resize(_RANDOM.integers(0, 250, (9, 12), np.uint8), (WIDTH, HEIGHT)) for _ in range(2)]
USUAL: NDArray[np.uint8] = _VIEWS[0].astype(np.uint8)
ELSEWHERE: NDArray[np.uint8] = _VIEWS[1].astype(np.uint8)


def look(viewpoint: Viewpoint, view: NDArray[np.uint8], samples: int = 24 * SAMPLES) -> None:
    """Show it `view` for so many samples (a quarter of an hour), after a pause in which nothing was seen."""
    viewpoint.interrupt()
    for index in range(samples):
        viewpoint.update(view + _RANDOM.integers(0, 4, view.shape, np.uint8), index * SAMPLE_PERIOD_NS)


def look_elsewhere(viewpoint: Viewpoint) -> None:
    """It has its view, and shows another one for a minute and a half."""
    look(viewpoint, USUAL)
    look(viewpoint, ELSEWHERE, 3 * SAMPLES)
