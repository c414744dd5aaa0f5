"""Where people move: the area in front of the camera, paths through it, room between people.

The area is x from -4 to 4 m and y from -3 to 3 m, origin in its middle. A camera looks at it from the side of negative y.
People come and go beyond its left, right and far border, at most `WINGS_M` outside.
"""

from __future__ import annotations

import numpy as np

from agent.simulation.curves import smooth
from agent.simulation.motion import RATE_HZ
from agent.simulation.skeleton import Array

AREA_M = (-4.0, 4.0, -3.0, 3.0)
"""x from, x to, y from, y to."""
WINGS_M = 1.5
ROOM_M = 0.85
"""People who have nothing to do with each other keep this far apart, hips to hips, where they can."""
TRIES = 12


def inside(rng: np.random.Generator, margin: float = 0.6) -> Array:
    """A random place (2,) in the area, `margin` metres from its border."""
    return np.array([
        rng.uniform(AREA_M[0] + margin, AREA_M[1] - margin), rng.uniform(AREA_M[2] + margin, AREA_M[3] - margin),
    ])  # fmt: skip


def wing(rng: np.random.Generator, side: int | None = None) -> Array:
    """A place (2,) outside the area: 0 left, 1 right, 2 far; None: any of them, far seldom."""
    side = int(rng.choice(3, p=(0.42, 0.42, 0.16))) if side is None else side
    if side == 2:
        return np.array([rng.uniform(AREA_M[0] * 0.8, AREA_M[1] * 0.8), AREA_M[3] + WINGS_M])
    x = AREA_M[0] - WINGS_M if side == 0 else AREA_M[1] + WINGS_M
    return np.array([x, rng.uniform(AREA_M[2] * 0.7, AREA_M[3])])


def curve(points: Array, spacing: float = 0.05) -> Array:
    """A line (N, 2) through `points` (K, 2), evenly spaced, its corners rounded."""
    lengths = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1))
    along = np.concatenate([[0], np.cumsum(lengths)])
    count = max(3, int(along[-1] / spacing))
    line = np.stack([np.interp(np.linspace(0, along[-1], count), along, points[:, k]) for k in range(2)], axis=1)
    if len(points) > 2:
        reach = min(count // 3, int(0.7 / spacing))
        kernel = np.hanning(2 * reach + 3)[1:-1]
        kernel /= kernel.sum()
        before = 2 * line[0] - line[reach:0:-1]
        after = 2 * line[-1] - line[-2 : -reach - 2 : -1]
        padded = np.concatenate([before, line, after])
        line = np.stack([np.convolve(padded[:, k], kernel, "valid") for k in range(2)], axis=1)
    return line


def pace(length: float, speed: float, *, from_speed: float = 0.0, to_speed: float = 0.0, gain: float = 1.3) -> Array:
    """Distance covered (T,) frame by frame: a trapezoid of speed with `gain` m/s^2 at both ends."""
    top = float(np.sqrt(gain * length + (from_speed**2 + to_speed**2) / 2))
    speed = max(min(speed, top), from_speed, to_speed, 0.2)
    rise_s, fall_s = (speed - from_speed) / gain, (speed - to_speed) / gain
    risen, fallen = (speed + from_speed) / 2 * rise_s, (speed + to_speed) / 2 * fall_s
    even_s = max(0.0, length - risen - fallen) / speed
    time = np.arange(int((rise_s + even_s + fall_s) * RATE_HZ) + 2) / RATE_HZ
    left_s = np.maximum(rise_s + even_s + fall_s - time, 0)
    rising = from_speed * time + gain / 2 * time**2
    falling = length - to_speed * left_s - gain / 2 * left_s**2
    covered = np.where(time < rise_s, rising, np.where(left_s > fall_s, risen + speed * (time - rise_s), falling))
    return np.asarray(np.maximum.accumulate(np.clip(covered, 0.0, length)))


def travel(
    points: Array, heading: float, speed: float, *, end_speed: float = 0.0, start_speed: float = 0.0
) -> tuple[Array, Array]:
    """Path (T, 2) and heading (T,) of somebody who goes along `points` (K, 2), turning on the spot first where needed."""
    line = curve(points)
    steps = np.sqrt((np.diff(line, axis=0) ** 2).sum(axis=1))
    along = np.concatenate([[0], np.cumsum(steps)])
    gain = 1.2 if speed < 2 else 2.6
    covered = pace(float(along[-1]), speed, from_speed=start_speed, to_speed=end_speed, gain=gain)
    turn = turn_between(heading, towards(line[0], line[min(8, len(line) - 1)]))
    waiting = int(abs(turn) / 3.2 * RATE_HZ) if abs(turn) > 0.5 and start_speed == 0 else 0
    covered = np.concatenate([np.zeros(waiting), covered])
    xy = np.stack([np.interp(covered, along, line[:, k]) for k in range(2)], axis=1)
    tangent = np.gradient(line, axis=0)
    facing = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
    facing += heading + turn - facing[0]
    wanted = np.interp(covered, along, facing)
    if waiting:
        wanted[:waiting] = heading + turn * np.linspace(0, 1, waiting)
    wanted[0] = heading
    return xy, smooth(wanted, 0.10)


def towards(start: Array, goal: Array) -> float:
    """Heading from one place to another, radians."""
    return float(np.arctan2(goal[1] - start[1], goal[0] - start[0]))


def turn_between(heading: float, wanted: float) -> float:
    """The shorter turn from `heading` to `wanted`, radians, anticlockwise positive."""
    return float((wanted - heading + np.pi) % (2 * np.pi) - np.pi)


class Room:
    """Who is where when, so that the next one finds a way between. Frames are those of the episode."""

    __slots__ = ("_tracks",)

    def __init__(self) -> None:
        self._tracks: list[tuple[int, Array]] = []

    def add(self, first: int, xy: Array) -> None:
        """Somebody is at xy (T, 2) from frame `first` on."""
        self._tracks.append((first, xy))

    def clearance(self, first: int, xy: Array) -> float:
        """Metres to the nearest of the others along a track (T, 2) that begins at frame `first`; inf when alone."""
        nearest = np.inf
        for other_first, other in self._tracks:
            low, high = max(first, other_first), min(first + len(xy), other_first + len(other))
            if high > low:
                gap = xy[low - first : high - first : 6] - other[low - other_first : high - other_first : 6]
                nearest = min(nearest, float(np.sqrt((gap**2).sum(axis=1)).min()))
        return nearest
