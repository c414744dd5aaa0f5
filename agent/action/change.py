"""How much the picture changes where people are: motion that the pose estimator need not have understood.

Where people clinch or blur, joints jump and tracks break, but the pixels between them still move. The difference of two frames at
the joints is the oldest and cheapest measure of it (with optical flow in its place: Cai et al. 2021, "JOLO-GCN"). It is taken
of everybody who is reported, tracked or not: in a fight the tracker is the first to lose people. Pure OpenCV and NumPy, no clock.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from agent.types import NUM_KEYPOINTS, FloatArray, ImageArray

WIDTH = 160
"""About how many px wide the pictures are that are compared."""
NEAREST_NS, FARTHEST_NS = 55_000_000, 130_000_000
"""How far apart two frames are that are compared: as near as frames come at 10 to 60 frames/s."""
RESTLESS = 4
"""People of a frame that are told."""
_SMOOTH_PX = 3
_MOST_FRAMES = 16


class PictureChange:
    """The frames of one camera, in order."""

    def __init__(self) -> None:
        self._past: deque[tuple[int, ImageArray]] = deque(maxlen=_MOST_FRAMES)

    def reset(self) -> None:
        """Forget all frames."""
        self._past.clear()

    def push(self, t_ns: int, image: ImageArray, keypoints: FloatArray) -> FloatArray:
        """Take a frame and say how much it changed where its people are.

        image: (H, W, 3) or (H, W) uint8; keypoints: (N, 17, 2) float32, px of the image, outside = its nearest edge.
        Returns (RESTLESS, 17) float32, the joints of those of whom most changes, in that order, zeros for people not there: 0 nothing to 1
        black to white, the mean difference of green around the joint, between this frame and the latest one that is `NEAREST_NS` older
        or more; all 0 where there is none within `FARTHEST_NS`.
        """
        step = 2 * max(1, round(image.shape[1] / (2 * WIDTH)))
        small = _small(image, step)
        before = self._before(t_ns, small.shape)
        self._past.append((t_ns, small))
        found = np.zeros((RESTLESS, NUM_KEYPOINTS), np.float32)
        if before is None or not len(keypoints):
            return found
        change = cv2.blur(cv2.absdiff(before, small), (_SMOOTH_PX, _SMOOTH_PX))
        height, width = change.shape
        places = np.nan_to_num(keypoints / step)
        columns = np.clip(places[..., 0], 0, width - 1).astype(np.intp)
        rows = np.clip(places[..., 1], 0, height - 1).astype(np.intp)
        joints = change[rows, columns].astype(np.float32) / np.float32(255)
        order = np.argsort(-joints.mean(axis=1), kind="stable")[:RESTLESS]
        found[: len(order)] = joints[order]
        return found

    def _before(self, t_ns: int, shape: tuple[int, ...]) -> ImageArray | None:
        while self._past and t_ns - self._past[0][0] > FARTHEST_NS:
            self._past.popleft()
        for then_ns, grey in reversed(self._past):
            if t_ns - then_ns >= NEAREST_NS:
                return grey if grey.shape == shape else None
        return None


def _small(image: ImageArray, step: int) -> ImageArray:
    """Green of four pixels in each square of `step` x `step`: a tenth of what a mean over all pixels and colours takes."""
    half = step // 2
    samples = image[::half, ::half, 1] if image.ndim == 3 else image[::half, ::half]
    height, width = max(1, samples.shape[0] // 2), max(1, samples.shape[1] // 2)
    part = np.ascontiguousarray(samples[: 2 * height, : 2 * width])
    small: ImageArray = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    return small
