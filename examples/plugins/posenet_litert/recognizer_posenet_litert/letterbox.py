"""Fitting a picture of any size into the network's input, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from agent.types import ImageArray
from numpy.typing import NDArray

PADDING = 128
"""Grey, the zero of the network's input."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a picture lies in the input: its top left corner is the input's, (width, height) px are its own there."""

    width: int
    height: int
    source_width: int
    source_height: int

    def to_source(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., 2) xy px of the input to xy px of the picture, moved on to it where they lie outside.

        Pixel centres are at whole numbers in both frames, as in cv2.resize.
        """
        scale = np.array([self.source_width / self.width, self.source_height / self.height], np.float32)
        last = np.array([self.source_width - 1, self.source_height - 1], np.float32)
        moved: NDArray[np.float32] = np.clip((points + np.float32(0.5)) * scale - np.float32(0.5), 0, last)
        return moved


class Letterbox:
    """Resizes into one buffer kept for all pictures: aspect ratio kept, top left, the rest grey, BGR to RGB.

    Top left rather than centred: the way back is a scale alone, and no figure of the COCO sample prefers centring.
    height, width: of the network's input, px.
    """

    def __init__(self, height: int, width: int) -> None:
        self._buffer = np.full((1, height, width, 3), PADDING, np.uint8)
        self._resized = np.empty((0, 0, 3), np.uint8)

    @property
    def buffer(self) -> ImageArray:
        """(1, height, width, 3) uint8 RGB: the last picture, valid until the next call."""
        return self._buffer

    def __call__(self, image: ImageArray) -> Fit:
        """Put `image` (H, W, 3) uint8 BGR into the buffer."""
        _, height, width, _ = self._buffer.shape
        source_height, source_width, _ = image.shape
        scale = min(height / source_height, width / source_width)
        # A sliver thinner than half a pixel still gets one row or column.
        fit = Fit(
            width=min(max(round(source_width * scale), 1), width),
            height=min(max(round(source_height * scale), 1), height),
            source_width=source_width,
            source_height=source_height,
        )
        if self._resized.shape[:2] != (fit.height, fit.width):
            self._resized = np.empty((fit.height, fit.width, 3), np.uint8)
            self._buffer.fill(PADDING)
        cv2.resize(image, (fit.width, fit.height), dst=self._resized, interpolation=cv2.INTER_LINEAR)
        cv2.cvtColor(self._resized, cv2.COLOR_BGR2RGB, dst=self._buffer[0, : fit.height, : fit.width])
        return fit
