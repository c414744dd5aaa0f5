"""All tracks of one camera as columns of arrays: every step of the tracker works on whole columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from agent.tracking.association import Indices
from agent.tracking.kalman import Floats
from agent.types import NUM_KEYPOINTS

LIFE = np.dtype(
    [
        ("id", np.int64),
        ("first_frame", np.int64),
        ("last_frame", np.int64),
        ("detection", np.int64),  # row of the input matched in this frame, -1 = none
        ("confirmed", np.bool_),
        ("lost", np.bool_),
        ("expired", np.bool_),  # lost for longer than the buffer
    ]
)
"""What the tracker knows of a track besides where it is."""


@dataclass(slots=True, eq=False)
class TrackTable:
    """N tracks. life: (N,) of LIFE; motion: (5, 4, N), see kalman.py; boxes: (4, N) xyxy px, what detections are
    compared with; poses: (N, 17, 3) last matched x, y px from the centre of the box and score, (N, 0, 3) if unused.
    """

    life: NDArray[np.void]
    motion: Floats
    boxes: Floats
    poses: Floats

    @classmethod
    def empty(cls, *, with_poses: bool, n: int = 0) -> Self:
        """N blank tracks."""
        joints = NUM_KEYPOINTS if with_poses else 0
        return cls(np.zeros(n, LIFE), np.zeros((5, 4, n)), np.zeros((4, n)), np.zeros((n, joints, 3)))

    def __len__(self) -> int:
        return len(self.life)

    def take(self, rows: Indices) -> Self:
        """The tracks `rows`, in that order."""
        return type(self)(
            self.life.take(rows), self.motion.take(rows, -1), self.boxes.take(rows, -1), self.poses.take(rows, 0)
        )

    def extended(self, other: Self) -> Self:
        """These tracks, then the others."""
        return type(self)(
            np.concatenate((self.life, other.life)),
            np.concatenate((self.motion, other.motion), axis=-1),
            np.concatenate((self.boxes, other.boxes), axis=-1),
            np.concatenate((self.poses, other.poses)),
        )
