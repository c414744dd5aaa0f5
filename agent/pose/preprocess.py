"""Letterbox: pictures of any size into a network's fixed canvas, keeping their proportions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError
from agent.ports import as_image
from agent.types import FloatArray, ImageArray

Anchor = Literal["top_left", "center"]
Channels = Literal["bgr", "rgb"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a picture lies on the canvas, and the way back.

    width, height: of the source, px; resized_width, resized_height: of its copy on the canvas; left, top: the copy's corner.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int
    left: int
    top: int

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas px per source px in x and y; they differ by the rounding to whole pixels."""
        return self.resized_width / self.width, self.resized_height / self.height

    def to_source(self, xy: NDArray[np.floating[Any]]) -> FloatArray:
        """Canvas points (..., 2) to source px, float32. Pixel corners count from 0 in both frames."""
        offset = np.array([self.left, self.top], np.float32)
        return ((xy - offset) / np.array(self.scale, np.float32)).astype(np.float32, copy=False)


def fit(width: int, height: int, canvas_width: int, canvas_height: int, anchor: Anchor = "top_left") -> Geometry:
    """The largest placement of a picture that keeps its proportions; sizes in px, rounded down as rtmlib does.

    >>> fit(1920, 1080, 640, 640)
    Geometry(width=1920, height=1080, resized_width=640, resized_height=360, left=0, top=0)
    """
    ratio = min(canvas_width / width, canvas_height / height)
    resized_width = max(1, int(width * ratio))
    resized_height = max(1, int(height * ratio))
    left = top = 0
    if anchor == "center":
        left, top = (canvas_width - resized_width) // 2, (canvas_height - resized_height) // 2
    return Geometry(width, height, resized_width, resized_height, left, top)


def scaled(canvas: tuple[int, int], scale: float, step: int) -> tuple[int, int]:
    """`scale` (0-1] of `canvas` (H, W), its sides multiples of `step`.

    >>> scaled((480, 640), 0.8, 32), scaled((480, 640), 1.0, 32), scaled((640, 640), 0.5, 32)
    ((384, 512), (480, 640), (320, 320))
    """
    height, width = (max(1, round(side * scale / step)) * step for side in canvas)
    return height, width


class Letterbox:
    """Fills a preallocated (B, 3, H, W) batch: bilinear resize, padding, planes; values 0-255, not normalised.

    The default anchor is the one of the pipeline that the published RTMO ONNX files are used with (rtmlib: picture at the top
    left, padding right and below); mmpose's own evaluation centres it. The network is convolutional, so both work; what
    counts is that points are mapped back the same way.
    """

    def __init__(
        self,
        canvas: tuple[int, int],
        batch: int = 1,
        *,
        anchor: Anchor = "top_left",
        channels: Channels = "bgr",
        pad_value: int = 114,
        dtype: np.dtype[Any] | type = np.float32,
    ) -> None:
        """canvas: (H, W) px, the largest there will be; dtype: float32 or float16."""
        self._anchor: Anchor = anchor
        self._planes = (0, 1, 2) if channels == "bgr" else (2, 1, 0)
        self._pad_value = pad_value
        pixels = canvas[0] * canvas[1]
        self._storage: NDArray[Any] = np.full(batch * 3 * pixels, pad_value, dtype)
        self._placed: list[Geometry | None] = [None] * batch
        self._resized = np.empty(3 * pixels, np.uint8)
        self._split = np.empty_like(self._resized)
        self._lay_out(canvas)

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) px."""
        return self._height, self._width

    def resize(self, canvas: tuple[int, int]) -> None:
        """Fill canvases of (H, W) px from now on, no more px than the first one had."""
        if canvas != self.canvas:
            self._lay_out(canvas)

    def _lay_out(self, canvas: tuple[int, int]) -> None:
        self._height, self._width = canvas
        self._placed = [None] * len(self._placed)
        self._batch = self._storage[: len(self._placed) * 3 * canvas[0] * canvas[1]].reshape(-1, 3, *canvas)

    @property
    def capacity(self) -> int:
        """B."""
        return len(self._batch)

    @property
    def whole(self) -> NDArray[Any]:
        """The batch with all its slots, (B, 3, H, W)."""
        return self._batch

    def fill(self, images: Sequence[ImageArray]) -> tuple[NDArray[Any], list[Geometry]]:
        """Place `images` ((H, W, 3) uint8 BGR each, at most `capacity`).

        Returns a view (len(images), 3, H, W) that the next call overwrites, and the geometry of each image.
        Raises DataError that says which image is unusable.
        """
        if len(images) > self.capacity:
            raise ValueError(f"at most {self.capacity} images, got {len(images)}")
        geometries = [self._place(slot, check_image(image, slot)) for slot, image in enumerate(images)]
        return self._batch[: len(images)], geometries

    def _place(self, slot: int, image: ImageArray) -> Geometry:
        import cv2

        height, width = image.shape[:2]
        place = fit(width, height, self._width, self._height, self._anchor)
        rows, columns = place.resized_height, place.resized_width
        resized = self._resized[: rows * columns * 3].reshape(rows, columns, 3)
        split = self._split[: rows * columns * 3].reshape(3, rows, columns)
        cv2.resize(np.ascontiguousarray(image), (columns, rows), dst=resized, interpolation=cv2.INTER_LINEAR)
        cv2.split(resized, list(split))
        target = self._region(slot, place)
        previous = self._placed[slot]
        if previous is None:  # what lies there was laid out otherwise
            self._batch[slot] = self._pad_value
        elif previous != place:  # padding of the same placement is still there
            self._region(slot, previous)[...] = self._pad_value
        self._placed[slot] = place
        for source, plane in enumerate(self._planes):
            np.copyto(target[plane], split[source])
        return place

    def _region(self, slot: int, place: Geometry) -> NDArray[Any]:
        bottom, right = place.top + place.resized_height, place.left + place.resized_width
        return self._batch[slot, :, place.top : bottom, place.left : right]


def check_image(image: ImageArray, index: int = 0) -> ImageArray:
    """`image`, or a DataError that names its place in the batch and what is wrong with it."""
    try:
        return as_image(image)
    except (ValueError, AttributeError) as error:
        raise DataError(f"image {index}: {error}") from error
