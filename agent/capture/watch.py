"""Frozen and blind cameras, told from a few thousand pixels of a picture twice a second. Pure: no I/O, no clock.

Frozen: a sensor always has noise, and its trace survives the camera's encoder. Averaging would remove that trace, so
single pixels are compared, and with an anchor, not with the sample before, so that slow drift counts as life. Encoders
do repeat a static scene bit by bit, but only until their next key frame; hence a time and not a count decides.

Blind: a lens that is covered, or looks into the dark or a lamp, gives no structure beyond a smooth gradient. A plane is
fitted to the brightness and the 90th percentile of what it leaves is judged: a clock drawn into the picture covers less
than a tenth of it. Figures behind both thresholds: docs/adr/0003-capture.md.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from agent.capture.base import NS_PER_S
from agent.types import FloatArray, ImageArray

SAMPLE_PERIOD_NS = NS_PER_S // 2
POINTS = 64
"""Sampled pixels per side."""
CELLS = POINTS // 2
"""Cells per side of the thumbnail that blindness is judged by."""
FROZEN_TOLERANCE = 2
"""Grey levels any sampled pixel of a frozen picture may differ from the anchor (re-encoding of equal pictures)."""
FROZEN_MIN_SAMPLES = 5
"""A slow stream is not frozen because two of its pictures agree."""
BLIND_DETAIL = 6.0
"""Grey levels: less structure than this is no view."""

_AXIS: FloatArray = np.linspace(-1, 1, CELLS, dtype=np.float32)
_HALF_DISTANCE = float(_AXIS[CELLS // 2 :].mean() - _AXIS[: CELLS // 2].mean())
_GREEN = 1  # of BGR: most of the luma, and one channel of one pixel keeps the noise an average would remove


class View(StrEnum):
    """What the pictures say about the camera."""

    CLEAR = "clear"
    FROZEN = "frozen"
    BLIND = "blind"


def sample_points(image: ImageArray) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR -> (64, 64) uint8: single pixels of the green channel on an even grid."""
    height, width = image.shape[:2]
    rows = (np.arange(POINTS) * 2 + 1) * height // (2 * POINTS)
    columns = (np.arange(POINTS) * 2 + 1) * width // (2 * POINTS)
    points: NDArray[np.uint8] = image[rows[:, None], columns[None, :], _GREEN]
    return points


def detail(points: NDArray[np.uint8]) -> float:
    """Structure of a (64, 64) uint8 sample in grey levels: 90th percentile of |brightness - fitted plane|.

    The brightness is averaged over 2 x 2 points first, against noise. The plane is fitted through the medians of the
    picture's halves: least squares would tilt it towards a bright clock.
    """
    halves = points.reshape(CELLS, 2, CELLS, 2).astype(np.float32)
    cells = (halves[:, 0, :, 0] + halves[:, 0, :, 1] + halves[:, 1, :, 0] + halves[:, 1, :, 1]) * np.float32(0.25)
    half = CELLS // 2
    slope_y = (_middle(cells[half:]) - _middle(cells[:half])) / _HALF_DISTANCE
    slope_x = (_middle(cells[:, half:]) - _middle(cells[:, :half])) / _HALF_DISTANCE
    plane = _middle(cells) + slope_y * _AXIS[:, None] + slope_x * _AXIS[None, :]
    return _ranked(np.abs(cells - plane), 0.9)


def _middle(values: FloatArray) -> float:
    return _ranked(values, 0.5)


def _ranked(values: FloatArray, share: float) -> float:
    """The value that `share` of all are below; a fraction of the cost of np.percentile."""
    flat = values.flatten()
    rank = int(flat.size * share)
    flat.partition(rank)
    return float(flat[rank])


class PictureWatch:
    """Follows one camera's pictures. Times are ns on any line that does not go back; 0 s switches a check off."""

    def __init__(self, frozen_after_s: float, blind_after_s: float) -> None:
        self._frozen_after_ns = round(frozen_after_s * NS_PER_S)
        self._blind_after_ns = round(blind_after_s * NS_PER_S)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the stream was opened again."""
        self.view = View.CLEAR
        self._next_ns: int | None = None
        self._anchor: NDArray[np.int16] | None = None
        self._anchor_ns = 0
        self._same_samples = 0
        self._blind_since_ns: int | None = None

    def due(self, now_ns: int) -> bool:
        """Whether the picture at `now_ns` should be sampled (at most 2 a second)."""
        enabled = bool(self._frozen_after_ns or self._blind_after_ns)
        return enabled and (self._next_ns is None or now_ns >= self._next_ns)

    def update(self, points: NDArray[np.uint8], now_ns: int) -> View:
        """Judge a sample, (64, 64) uint8. Both states clear with the first picture that contradicts them; a blind
        camera is usually frozen too, and blind says more."""
        self._next_ns = now_ns + SAMPLE_PERIOD_NS
        frozen = self._frozen(points, now_ns)
        if self._blind(points, now_ns):
            self.view = View.BLIND
        else:
            self.view = View.FROZEN if frozen else View.CLEAR
        return self.view

    def _frozen(self, points: NDArray[np.uint8], now_ns: int) -> bool:
        if not self._frozen_after_ns:
            return False
        sample = points.astype(np.int16)
        if self._anchor is None or int(np.abs(sample - self._anchor).max()) > FROZEN_TOLERANCE:
            self._anchor, self._anchor_ns, self._same_samples = sample, now_ns, 0
            return False
        self._same_samples += 1
        return self._same_samples >= FROZEN_MIN_SAMPLES and now_ns - self._anchor_ns >= self._frozen_after_ns

    def _blind(self, points: NDArray[np.uint8], now_ns: int) -> bool:
        if not self._blind_after_ns or detail(points) >= BLIND_DETAIL:
            self._blind_since_ns = None
            return False
        if self._blind_since_ns is None:
            self._blind_since_ns = now_ns
        return now_ns - self._blind_since_ns >= self._blind_after_ns
