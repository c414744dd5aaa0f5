"""Falls and near-falls from motion capture: real movements until the fall, an inverted pendulum after it, any camera.

There is no fall in the motion capture, so the body of a real movement is toppled: its motion slows down, the knees give way
by a random amount, and it turns about its ankles as a rod does (angle'' = 1.5 g / h sin(angle)) in a random direction until
it lies. Negatives: the movements as they are, sitting down, bending over, lying still, getting up.
A random pinhole camera gives the picture; the noise is what pose estimators make: jitter that follows the joint, missed
joints, missed people (more when they lie), left and right mixed up.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RATE_HZ = 30.0
UPPER = np.r_[0:11]
LEGS = np.r_[13:17]
SWAP = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])


def load_mocap(folder: Path) -> list[Array]:
    """Clips (T, 17, 3), metres, y up, of the sources that may be trained on; near-repeats of walking thinned out."""
    clips = []
    opened = {name: np.load(folder / f"{name}.npz") for name in ("cmu_asf", "deepmimic", "cmu_expmap")}
    with (folder / "clips.csv").open(newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            source, clip_id = row["source"], row["clip_id"]
            repeat = "walking_extra" in clip_id and number % 4
            if source in opened and not repeat:
                clips.append(opened[source][clip_id].astype(np.float64))
    return clips


def sample(rng: np.random.Generator, clips: list[Array], length: int = 100) -> tuple[NDArray[np.float32], int]:
    """One window ((T, 17, 3) normalised x, y, score) and its label (1 = a fall happens in it)."""
    body = _segment(rng, clips, length)
    kind = rng.choice(["fall", "as is", "sit", "bend", "lying"], p=[0.5, 0.2, 0.14, 0.1, 0.06])
    lying = np.zeros(length)
    if kind == "fall":
        onset = int(rng.integers(5, length - 35))
        body, lying = topple(rng, body, onset)
    elif kind == "lying":
        onset = -int(rng.integers(60, 200))
        body, lying = topple(rng, body, onset)
    elif kind == "sit":
        body = _sit(rng, body)
    elif kind == "bend":
        body = _bend(rng, body)
    picture = _project(rng, body)
    return _corrupt(rng, picture, lying), int(kind == "fall")


def _segment(rng: np.random.Generator, clips: list[Array], length: int) -> Array:
    clip = clips[int(rng.integers(len(clips)))]
    speed = rng.uniform(0.7, 1.3)
    start = rng.uniform(0, max(0.0, len(clip) - 1 - length * speed))
    position = np.clip(start + np.arange(length) * speed, 0, len(clip) - 1)
    low = np.minimum(position.astype(int), len(clip) - 2)
    part = (position - low)[:, None, None]
    body = clip[low] * (1 - part) + clip[low + 1] * part
    return body * rng.uniform(0.85, 1.1) * rng.uniform(0.93, 1.07, (1, 1, 3))


def topple(rng: np.random.Generator, body: Array, onset: int) -> tuple[Array, Array]:
    """The body falls from frame `onset` on (below 0: it fell before). Returns it and how far it lies, 0-1 per frame."""
    length = len(body)
    frames = np.arange(min(onset, 0), length)
    after = np.maximum(frames - onset, 0)
    # The movement runs out within half a second or so.
    slow = rng.uniform(4, 20)
    source = np.where(frames < onset, frames, onset + slow * (1 - np.exp(-after / slow)))
    source = np.clip(np.round(source).astype(int), 0, length - 1)
    moving = body[source].copy()
    pivot = moving[max(0, onset - frames[0])][[15, 16]].mean(axis=0) * (1, 0, 1)
    height = np.ptp(body[0, :, 1]) + 0.1
    angle = _pendulum(rng, len(frames), onset - frames[0], height)
    lying = np.clip(angle / (np.pi / 2), 0, 1)
    moving -= pivot
    give = rng.uniform(0, 0.55) * np.sin(np.clip(angle * rng.uniform(1.0, 1.6), 0, np.pi / 2))
    moving[:, :, 1] *= (1 - give)[:, None]
    moving = _rotate(moving, rng.uniform(0, 2 * np.pi), angle)
    moving[:, :, 1] = np.maximum(moving[:, :, 1], rng.uniform(0.05, 0.2, 17))
    limbs = rng.normal(0, 0.12, (17, 3)) * lying[:, None, None]
    moving += limbs * (1, 0.3, 1) + pivot
    return moving[-length:], lying[-length:]


def _pendulum(rng: np.random.Generator, frames: int, onset: int, height: float) -> Array:
    """(frames,) angle from the vertical, radians, from a small push at `onset` to the ground."""
    angle, speed = rng.uniform(0.04, 0.2), rng.uniform(0.0, 0.8)
    end = np.radians(rng.uniform(72, 95))
    pace = rng.uniform(0.85, 1.15)
    out = np.zeros(frames)
    for number in range(max(onset, 0), frames):
        out[number] = angle
        for _ in range(4):
            speed += 1.5 * 9.81 / height * np.sin(angle) * pace / RATE_HZ / 4
            angle = min(end, angle + speed * pace / RATE_HZ / 4)
    ramp = min(4, frames - max(onset, 0))
    out[max(onset, 0) : max(onset, 0) + ramp] *= np.linspace(0.3, 1, ramp)
    return out


def _rotate(body: Array, heading: float, angle: Array) -> Array:
    """Turn about a horizontal axis through the origin, towards `heading`."""
    towards = np.array([np.sin(heading), 0, np.cos(heading)])
    along = body @ towards
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    turned = body + ((along * c + body[:, :, 1] * s) - along)[..., None] * towards
    turned[:, :, 1] = np.maximum(body[:, :, 1] * c - along * s, -0.3)
    return turned


def _ramp(rng: np.random.Generator, length: int, low_s: float, high_s: float) -> Array:
    duration = rng.uniform(low_s, high_s) * RATE_HZ
    start = rng.uniform(-20, length - 30)
    return 0.5 - 0.5 * np.cos(np.pi * np.clip((np.arange(length) - start) / duration, 0, 1))


def _forward(body: Array) -> Array:
    left = (body[:, 11] - body[:, 12]).mean(axis=0) * (1, 0, 1)
    return np.cross(left / (np.linalg.norm(left) + 1e-9), (0, 1, 0))


def _sit(rng: np.random.Generator, body: Array) -> Array:
    """Sit down or get up: the trunk sinks by up to a thigh's length and moves back, the feet stay."""
    body = body[[int(rng.integers(len(body)))]].repeat(len(body), axis=0) * 0.9 + body * 0.1
    down = _ramp(rng, len(body), 0.6, 2.0)
    down = 1 - down if rng.random() < 0.3 else down
    moved = body.copy()
    trunk = np.r_[UPPER, 11, 12]
    shift = -_forward(body) * rng.uniform(0.2, 0.45) - np.array((0, rng.uniform(0.3, 0.5), 0))
    moved[:, trunk] += down[:, None, None] * shift
    return moved


def _bend(rng: np.random.Generator, body: Array) -> Array:
    """Bend over and come up again, as when picking something up."""
    bend = np.sin(np.pi * _ramp(rng, len(body), 1.2, 3.0)) * rng.uniform(0.6, 1.5)
    hips = body[:, [11, 12]].mean(axis=1, keepdims=True)
    forward = _forward(body)
    moved = body.copy()
    moved[:, UPPER] = _rotate(body[:, UPPER] - hips, float(np.arctan2(forward[0], forward[2])), bend) + hips
    moved[:, np.r_[UPPER, 11, 12], 1] -= (bend * rng.uniform(0, 0.2))[:, None]
    return moved


def _project(rng: np.random.Generator, body: Array) -> Array:
    """(T, 17, 2) in -1..1 over the picture of a random camera that sees the person at some time."""
    centre = body[int(rng.integers(len(body)))].mean(axis=0)
    azimuth, distance = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 8)
    eye = centre * (1, 0, 1) + np.array([np.sin(azimuth) * distance, rng.uniform(0.9, 3.5), np.cos(azimuth) * distance])
    target = centre + rng.normal(0, 0.15, 3) * distance
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0, 1, 0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    aspect = rng.choice([4 / 3, 16 / 9])
    tangent = np.tan(np.radians(rng.uniform(45, 85)) / 2)
    relative = body - eye
    depth = np.maximum(relative @ forward, 0.3)
    return np.stack((relative @ right / depth / tangent, -(relative @ up) / depth / tangent * aspect), axis=-1)


def _corrupt(rng: np.random.Generator, xy: Array, lying: Array) -> NDArray[np.float32]:
    length = len(xy)
    size = np.median(np.hypot(*np.ptp(xy, axis=1).T))
    noise = rng.normal(0, 1, xy.shape)
    slow = np.zeros_like(noise)
    for step in range(1, length):
        slow[step] = 0.85 * slow[step - 1] + 0.5 * noise[step]
    sigma = rng.uniform(0.004, 0.022) * size * (1 + 1.5 * lying)[:, None, None]
    xy = xy + sigma * (slow + rng.normal(0, 0.7, xy.shape))
    for _ in range(rng.poisson(2)):
        start = int(rng.integers(length))
        part = slice(start, start + int(rng.integers(1, 8)))
        xy[part] = xy[part][:, SWAP]
    score = np.clip(rng.uniform(0.35, 0.95) + rng.normal(0, 0.12, (length, 17)) - 0.2 * lying[:, None], 0.02, 1)
    unseen = rng.random((length, 17)) < rng.uniform(0, 0.15)
    unseen |= rng.random(17) < rng.choice([0, 0.15])
    frames = np.zeros(length, bool)
    for _ in range(rng.poisson(1 + 2 * lying.mean())):
        start = int(rng.integers(length))
        frames[start : start + int(rng.integers(2, 15))] = True
    if rng.random() < 0.25:
        frames |= (lying > 0.95) & (np.cumsum(lying > 0.95) > rng.integers(0, 25))
    frames |= ~((np.abs(xy) < 1.02).mean(axis=1) > 0.6).all(axis=-1)
    if rng.random() < 0.3:
        frames[: int(rng.integers(0, length // 3))] = True
    out = np.concatenate((xy, score[..., None]), axis=-1)
    out[unseen | (np.abs(xy) > 1.05).any(axis=-1)] = 0
    out[frames] = 0
    return out.astype(np.float32)
