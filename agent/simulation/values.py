"""Values of the simulation. A leaf module.

World frame: metres, right-handed, z up, the floor at z = 0. Everything is a function of the seed and the time: the same
call gives the same people and the same picture on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.types import NUM_KEYPOINTS, FloatArray, ImageArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class ActorState:
    """One person at one moment.

    actor_id: 1, 2, ... for as long as the person is part of the script; joints: (17, 3) float32, metres in the world
    frame, COCO order; action: what the person does now, one of `ACTIONS`.
    """

    actor_id: int
    joints: FloatArray
    action: str

    def __post_init__(self) -> None:
        if self.joints.shape != (NUM_KEYPOINTS, 3):
            raise ValueError(f"ActorState.joints: expected shape ({NUM_KEYPOINTS}, 3), got {self.joints.shape}")
        if self.action not in ACTIONS:
            raise ValueError(f"ActorState.action: {self.action!r} is not one of {', '.join(ACTIONS)}")


ACTIONS = (
    "stand", "walk", "run", "sit", "rise", "bend", "exercise", "hug", "talk", "fight", "fall", "lie",
)  # fmt: skip
"""What a person may be doing. `fight` and `fall` are what the services look for, the others are what they must not alarm at."""

MIN_VISIBLE_SHARE = 0.05
"""Of whom less is seen, nobody can be asked to find: left out of MOT, `iscrowd` (ignored) in COCO."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Something that happens from start_s to end_s (scene time): the truth that events are judged by."""

    action: str
    start_s: float
    end_s: float
    actor_ids: tuple[int, ...]


class Script(Protocol):
    """Who does what when: people in metres, no picture."""

    @property
    def name(self) -> str: ...

    @property
    def length_s(self) -> float:
        """After this the scene starts again with other choices (time goes on)."""
        ...

    def actors(self, t_s: float) -> tuple[ActorState, ...]:
        """Everybody in the scene at `t_s` >= 0, in no particular order."""
        ...

    def intervals(self, start_s: float, end_s: float) -> tuple[Interval, ...]:
        """What overlaps [start_s, end_s), in order of start; `fight` and `fall` exactly, other actions as they come."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Exact ground truth of one picture, for the N actors of whom at least one key point lies inside it.

    actor_ids: (N,) int64; boxes: (N, 4) float32 xyxy px, around the visible body, clipped to the picture;
    full_boxes: the same unclipped and as if nothing stood in front; keypoints: (N, 17, 2) float32 px;
    visibility: (N, 17) int64 as in COCO: 0 outside the picture, 1 hidden by something, 2 seen;
    visible_share: (N,) float32, part of the body's pixels that are seen, 0-1; actions: N names of `ACTIONS`.
    """

    t_s: float
    actor_ids: IntArray
    boxes: FloatArray
    full_boxes: FloatArray
    keypoints: FloatArray
    visibility: IntArray
    visible_share: FloatArray
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A picture and what is in it. image: (H, W, 3) uint8 BGR."""

    image: ImageArray
    truth: Truth


class Scene(Protocol):
    """A script in front of a camera."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    def shot(self, t_s: float) -> Shot:
        """The picture at `t_s` with its truth."""
        ...
