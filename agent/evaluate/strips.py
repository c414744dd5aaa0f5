"""A clip as one picture: a few of its frames side by side, heads made unrecognisable, people drawn on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from agent.events.privacy import FaceBlur
from agent.overlay import Mode, draw
from agent.types import Frame, ImageArray, People, Tracks

FRAMES = 6
WIDTH_PX = 240
"""Of one frame in a strip."""


class StripMaker:
    """Takes every frame of a clip whose length is not known and keeps FRAMES to 2 x FRAMES of them, evenly spaced."""

    def __init__(self) -> None:
        self._blur = FaceBlur()
        self._kept: list[ImageArray] = []
        self._every = 1
        self._seen = 0

    def add(self, frame: Frame, people: People, tracks: Tracks) -> None:
        """people: everybody found in it, for their faces; tracks: who is drawn."""
        small = shrink(frame.image, WIDTH_PX)
        scale = WIDTH_PX / frame.stamp.width
        self._blur.apply(small, people, frame.stamp.t_mono_ns, scale)  # every frame: it remembers where heads were
        if self._seen % self._every == 0:
            self._kept.append(draw(small, tracks, mode=Mode.MINIMAL))
            if len(self._kept) > 2 * FRAMES:
                self._kept = self._kept[::2]
                self._every *= 2
        self._seen += 1

    def strip(self) -> ImageArray | None:
        """FRAMES frames side by side, fewer for a shorter clip; None for a clip without a frame."""
        if not self._kept:
            return None
        chosen = np.unique(np.linspace(0, len(self._kept) - 1, FRAMES).round().astype(int))
        return side_by_side([self._kept[index] for index in chosen])


def shrink(image: ImageArray, width: int) -> ImageArray:
    """A copy of `image` that is `width` px wide."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    small: ImageArray = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return small


def side_by_side(pictures: Sequence[ImageArray]) -> ImageArray:
    """Pictures of one height next to each other, a white line between two."""
    gap = np.full((pictures[0].shape[0], 3, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    return np.concatenate(parts, axis=1)


def save_strip(path: Path, strip: ImageArray) -> None:
    """JPEG; its folder is made. Raises OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, 85])
    path.write_bytes(data.tobytes())
