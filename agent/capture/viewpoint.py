"""A camera that shows another view than it did: turned, knocked or hung elsewhere. Pure: no I/O, no clock.

What is there without the people (the median of half a minute, in 64 x 48 grey cells) is compared with what used to be
there, by the directions of edges: light changes how strong an edge is and which side of it is brighter, hardly where it
runs. Each cell has its direction with the angle doubled, so that an edge has no sign, and a weight of 0 to 1 by how it
stands out from its neighbours, so that a lamp or a dark corner counts no more than the rest. The likeness of two views
is the correlation of directions where both have edges; what is common to all places, uprights and levels, is taken off
first. Normalised gradients as in Tzimiropoulos et al., "Robust FFT-based scale-invariant image registration with image
gradients" (PAMI 2010); figures behind the thresholds: docs/adr/0003-capture.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.capture.base import NS_PER_S
from agent.types import FloatArray, ImageArray

ComplexArray = NDArray[np.complexfloating]
ByteArray = NDArray[np.uint8]

WIDTH, HEIGHT = 64, 48
"""Cells of a thumbnail, whatever the picture's shape."""
EDGES_SHAPE = (HEIGHT - 2, WIDTH - 2, 2)
"""Of a reference that is kept."""
SAMPLE_PERIOD_NS = 2 * NS_PER_S
SAMPLES = 16
"""Thumbnails whose median is the view without people: half a minute."""
JUDGED_EVERY = 4
"""Samples between two comparisons, which cost some milliseconds."""
STEADY = 0.5
"""Likeness of a view's two halves in time. Below: a crowd, a camera on tour, noise in the dark; nothing is concluded."""
OTHER = 0.25
"""Less likeness with the reference than this is another view."""
BACK = 0.4
"""A moved camera is back from this likeness on."""
FOLLOW_S = 3600.0
"""Time constant with which the reference follows light, season and furniture."""
SETTLED_AFTER_S = 600.0
"""A reference that was seen for less gives way without a word: a camera is aimed while it is put up."""
ACCEPTED_AFTER_S = 86_400.0
"""A view that was reported for so long is the right one from now on."""

_MIN_EDGE = 0.7
"""Grey levels a cell: less is noise and compression."""
_BLACK = 6
"""Grey levels below which there is nothing: a privacy mask, bars, what a round lens leaves. Their borders never move."""
_AT_THE_BORDER = np.ones((5, 5), np.uint8)
_NEIGHBOURS = 4.0
"""Standard deviation of the surroundings that an edge is measured against, cells."""
_MAX_STRIDE_WIDTH = 320
_GREEN = 1  # of BGR: most of the luma
_SCALE = 127.0
_LONGEST_STEP_S = 10.0
"""What passes between two samples beyond this was not watched."""


def thumbnail(image: ImageArray) -> ByteArray:
    """(H, W, 3) uint8 BGR -> (48, 64) uint8 grey: mean of each cell."""
    stride = max(1, image.shape[1] // _MAX_STRIDE_WIDTH)
    green = np.ascontiguousarray(image[::stride, ::stride, _GREEN])
    small: ByteArray = cv2.resize(green, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return small


def edges(view: FloatArray) -> ComplexArray:
    """(48, 64) grey levels -> (46, 62): direction of each cell's edge, angle doubled; length 0-1 = how clear it is."""
    smooth = cv2.GaussianBlur(view.astype(np.float32), (0, 0), 0.7)
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    gradient = (across + 1j * down)[1:-1, 1:-1]
    strength = np.abs(gradient)
    around = cv2.GaussianBlur(strength, (0, 0), _NEIGHBOURS)
    weight = strength / (strength + np.maximum(around, _MIN_EDGE))
    weight = np.where(strength < _MIN_EDGE, 0.3 * weight, weight)
    weight[cv2.dilate((view < _BLACK).astype(np.uint8), _AT_THE_BORDER)[1:-1, 1:-1] > 0] = 0
    directions: ComplexArray = (gradient / np.maximum(strength, 1e-6)) ** 2 * weight
    return directions


def likeness(one: ComplexArray, other: ComplexArray) -> float:
    """Correlation of two `edges`, -1 to 1, the best of those shifted by up to a cell against each other (a mast in the
    wind). 0 when there is nothing to compare."""
    return max(_correlation(*pair) for pair in _shifted(one, other))


def _shifted(one: ComplexArray, other: ComplexArray) -> Iterator[tuple[ComplexArray, ComplexArray]]:
    height, width = one.shape
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            yield (
                one[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)],
                other[max(0, -y) : height + min(0, -y), max(0, -x) : width + min(0, -x)],
            )


def _correlation(one: ComplexArray, other: ComplexArray) -> float:
    lengths = np.abs(one), np.abs(other)
    weight = lengths[0] * lengths[1]
    total = float(weight.sum())
    if total < 1e-6:
        return 0.0
    centred = []
    for directions, length in zip((one, other), lengths, strict=True):
        unit = directions / np.maximum(length, 1e-6)
        centred.append(unit - (weight * unit).sum() / total)
    first, second = centred
    spread = (weight * np.abs(first) ** 2).sum() * (weight * np.abs(second) ** 2).sum()
    return float((weight * first * second.conj()).real.sum() / np.sqrt(max(float(spread), 1e-12)))


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What is known of a camera's view.

    reference: (46, 62, 2) int8, the `edges` of what is taken for the right view times 127, real and imaginary part; known_s: how long it was seen, as far as that matters; other_s: how long another one
    has been seen since, 0 = it is not; accept: somebody has said that what comes next is right.
    """

    reference: NDArray[np.int8]
    known_s: float
    other_s: float
    accept: bool = False


def _complex(parts: NDArray[np.int8]) -> ComplexArray:
    reference: ComplexArray = np.ascontiguousarray(parts, np.float32).view(np.complex64)[..., 0] / np.float32(_SCALE)
    return reference


class Viewpoint:
    """Follows what one camera looks at. `update` belongs to the thread that decodes; the rest may be asked from any.

    moved_after_s: another view for this long = moved, in any case half a minute; 0 = do not look. learned: by an earlier one.
    Outlives connections, so that a camera that is unplugged, turned and plugged in is noticed.
    """

    def __init__(self, moved_after_s: float, learned: Learned | None = None) -> None:
        self.moved_after_s = moved_after_s
        # Edges, not a picture: where light turns edges round, as infrared does, a mean of pictures has none of them.
        self._reference = None if learned is None else _complex(learned.reference)
        self._known_s, self._other_s = (0.0, 0.0) if learned is None else (learned.known_s, learned.other_s)
        self._samples: deque[tuple[int, ByteArray]] = deque(maxlen=SAMPLES)
        self._accept = learned is not None and learned.accept
        self._unjudged = 0
        self._unjudged_s = 0.0

    @property
    def moved(self) -> bool:
        """Whether the camera shows another view than its reference, for long enough."""
        return bool(self.moved_after_s) and self._other_s >= self.moved_after_s

    @property
    def learned(self) -> Learned | None:
        """To go on with later; None before the first half a minute."""
        reference = self._reference
        if reference is None:
            return None
        parts = np.stack([reference.real, reference.imag], axis=-1)
        return Learned(np.round(parts * _SCALE).astype(np.int8), self._known_s, self._other_s, self._accept)

    def accept(self) -> None:
        """What the camera shows is right, from the next half a minute that can be judged on."""
        self._accept = True

    def interrupt(self) -> None:
        """The pictures before have nothing to do with those that come: another connection, or there was nothing to see."""
        self._samples.clear()

    def due(self, now_ns: int) -> bool:
        """Whether the picture at `now_ns` should be sampled (every other second)."""
        return bool(self.moved_after_s) and not (self._samples and now_ns < self._samples[-1][0] + SAMPLE_PERIOD_NS)

    def update(self, sample: ByteArray, now_ns: int) -> bool:
        """Judge with one more `thumbnail`; whether the camera has moved. Times are ns on a line that does not go back."""
        elapsed_s = (now_ns - self._samples[-1][0]) / NS_PER_S if self._samples else 0.0
        self._samples.append((now_ns, sample))
        self._unjudged += 1
        self._unjudged_s += min(elapsed_s, _LONGEST_STEP_S)
        if len(self._samples) == SAMPLES and self._unjudged >= JUDGED_EVERY:
            self._judge(self._unjudged_s, (now_ns - self._samples[0][0]) / NS_PER_S)
            self._unjudged, self._unjudged_s = 0, 0.0
        return self.moved

    def _judge(self, elapsed_s: float, span_s: float) -> None:
        samples = [sample for _, sample in self._samples]
        earlier, later = (edges(np.median(half, axis=0)) for half in (samples[: SAMPLES // 2], samples[SAMPLES // 2 :]))
        if _correlation(earlier, later) < STEADY:
            return
        view = edges(np.median(samples, axis=0))
        if self._reference is None or self._accept:
            self._take(view)
        elif likeness(self._reference, view) >= (BACK if self.moved else OTHER):
            self._reference = self._reference + (view - self._reference) * min(1.0, elapsed_s / FOLLOW_S)
            self._known_s, self._other_s = min(self._known_s + elapsed_s, SETTLED_AFTER_S), 0.0
        else:
            other_s = self._other_s + (elapsed_s if self._other_s else span_s)
            settled = self._known_s >= SETTLED_AFTER_S
            if other_s >= self.moved_after_s + (ACCEPTED_AFTER_S if settled else 0.0):
                self._take(view)
            else:
                self._other_s = other_s

    def _take(self, view: ComplexArray) -> None:
        self._reference, self._known_s, self._other_s, self._accept = view, 0.0, 0.0, False
