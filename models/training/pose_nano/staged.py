"""People for simulated training pictures: captured poses in any company, limbs turned at random. Implements `Script`.

The scripted scenarios of the agent show what a camera sees; a network that learns poses needs more of them than those.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.simulation.camera import Camera, look_at
from agent.simulation.values import ActorState, Interval
from agent.types import FloatArray

RATE_HZ = 30.0
CAST_S = 4.0
"""After this a script has other people."""
SOURCES = ("cmu_asf", "deepmimic", "cmu_expmap")  # iclone_bvh is for evaluation only
_LIMBS = (  # joint that turns, what turns with it, probability, standard deviation in degrees
    (5, (7, 9), 0.5, 45.0), (6, (8, 10), 0.5, 45.0), (7, (9,), 0.5, 45.0), (8, (10,), 0.5, 45.0),
    (11, (13, 15), 0.3, 30.0), (12, (14, 16), 0.3, 30.0), (13, (15,), 0.3, 25.0), (14, (16,), 0.3, 25.0),
)  # fmt: skip
_HEAD = (0, 1, 2, 3, 4)
_SEATED = 0.15


def load_motions(folder: Path) -> list[FloatArray]:
    """Clips (T, 17, 3) m of the sources that may be trained on; z up."""
    opened = {name: np.load(folder / f"{name}.npz") for name in SOURCES}
    with (folder / "clips.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] in opened]
    clips = [opened[row["source"]][row["clip_id"]].astype(np.float32)[..., [2, 0, 1]] for row in rows]
    return [clip for clip in clips if len(clip) > 2]


@dataclass(frozen=True, slots=True, eq=False)
class _Role:
    """Somebody: where a motion starts and how it is laid into the world."""

    motion: FloatArray
    start: int
    frame: FloatArray  # (3, 3)
    shift: FloatArray  # (3,)
    turns: tuple[tuple[int, tuple[int, ...], FloatArray], ...]

    def joints(self, t_s: float) -> FloatArray:
        """(17, 3) m at `t_s` after the cast came."""
        position = min(self.start + t_s * RATE_HZ, len(self.motion) - 1.001)
        index, part = int(position), np.float32(position % 1)
        joints = self.motion[index] * (1 - part) + self.motion[index + 1] * part
        joints = joints - np.array([*self.motion[self.start, 11:13, :2].mean(axis=0), 0], np.float32)
        for pivot, members, rotation in self.turns:
            rows = list(members)
            joints[rows] = (joints[rows] - joints[pivot]) @ rotation.T + joints[pivot]
        joints = joints @ self.frame.T + self.shift
        joints[:, 2] -= min(0.0, joints[:, 2].min() - 0.03)  # nobody sinks into the floor
        return joints.astype(np.float32)


class StagedScript:
    """`casts` companies of people, one after the other, each for `CAST_S` seconds."""

    name = "staged"

    def __init__(self, motions: list[FloatArray], *, seed: int, people: int, casts: int) -> None:
        rng = np.random.default_rng([seed, 11])
        self.length_s = casts * CAST_S
        spread = float(rng.uniform(0.3, 2.2))
        self._casts = [[_role(motions, rng, spread) for _ in range(people)] for _ in range(casts)]

    def actors(self, t_s: float) -> tuple[ActorState, ...]:
        """As `Script.actors`."""
        cast = min(int(t_s / CAST_S), len(self._casts) - 1)
        roles = self._casts[cast]
        first = 1 + cast * len(roles)
        return tuple(
            ActorState(first + row, role.joints(t_s - cast * CAST_S), "stand") for row, role in enumerate(roles)
        )

    def intervals(self, start_s: float, end_s: float) -> tuple[Interval, ...]:
        """None: nothing is told here."""
        return ()


def _role(motions: list[FloatArray], rng: np.random.Generator, spread: float) -> _Role:
    motion = motions[rng.integers(len(motions))]
    heading = rng.uniform(0, 2 * np.pi)
    size = float(np.clip(rng.normal(1.0, 0.09), 0.65, 1.2))
    frame = np.diag([size] * 3).astype(np.float32) @ _rotation(np.array([0, 0, 1.0]), heading)
    shift = np.array([*rng.normal(0, spread, 2), 0], np.float32)
    turns: list[tuple[int, tuple[int, ...], FloatArray]] = []
    if rng.random() < _SEATED:  # thighs forward, shins down, as the hips face
        across = motion[0, 11] - motion[0, 12]
        bend = np.radians(rng.uniform(60, 100))
        turns += [(hip, limb, _rotation(across, -bend)) for hip, limb in ((11, (13, 15)), (12, (14, 16)))]
        turns += [
            (knee, limb, _rotation(across, bend * rng.uniform(0.8, 1.2))) for knee, limb in ((13, (15,)), (14, (16,)))
        ]
    for pivot, members, chance, degrees in _LIMBS:
        if rng.random() < chance:
            turns.append((pivot, members, _rotation(rng.normal(size=3), np.radians(rng.normal() * degrees))))
    return _Role(motion, int(rng.integers(max(len(motion) - 30, 1))), frame, shift, tuple(turns))


def _rotation(axis: FloatArray, angle: float) -> FloatArray:
    """(3, 3) about an axis (Rodrigues)."""
    x, y, z = axis / max(float(np.linalg.norm(axis)), 1e-6)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew).astype(np.float32)


def near_camera(script: StagedScript, rng: np.random.Generator, *, width: int, height: int) -> Camera:
    """A camera at about eye level, some metres from one of the people, as photographs are taken."""
    actors = script.actors(float(rng.uniform(0, script.length_s)))
    joints = actors[rng.integers(len(actors))].joints
    target = joints[rng.integers(17)] * 0.5 + joints.mean(axis=0) * 0.5
    focal = width / 2 / np.tan(np.radians(rng.uniform(35, 70)) / 2)
    distance = max(focal * 1.75 / (height * float(np.exp(rng.uniform(np.log(0.35), np.log(1.6))))), 1.2)
    azimuth = rng.uniform(0, 2 * np.pi)
    level = float(np.clip(rng.normal(1.4, 0.45), 0.3, 2.6))
    position = np.array([target[0] + distance * np.cos(azimuth), target[1] + distance * np.sin(azimuth), level])
    aim = target + rng.normal(0, 0.15, 3) * distance * 0.3
    return look_at(position, aim, focal_px=focal, width=width, height=height, roll=float(np.radians(rng.normal(0, 4))))
