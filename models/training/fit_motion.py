"""Fits the motion model of the simulated camera to motion capture: coefficients only, no captured frame.

    python models/training/fit_motion.py --mocap ../shared/data/mocap --out models/human-motion/motion.npz

Gait: per clip a Fourier series over the phase of the stride (0 = the left ankle passes the right one), in a frame that
travels with the body; over clips a line in the speed (Froude number, so that it carries over to other leg lengths) and
principal components of what the line leaves: the style of the performers. Feet: the share of the stride for which the
ankle rests, and how it travels in between. Other movements: B-splines over time, then a low-rank factorisation.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.simulation import skeleton as sk

Array = NDArray[np.float64]
RATE_HZ = 30.0
GRAVITY = 9.81
HARMONICS = 4
STYLES = 4
ANKLE_M = 0.053  # height of the resting ankle in every source; pelvis heights are counted from there
PHASES = np.arange(32) / 32
SOURCES = ("cmu_asf", "deepmimic", "cmu_expmap")  # iclone_bvh is for evaluation only

# name: clip, start s, end s, moment of contact s (0 = none), knots a second
PRIMITIVES: dict[str, tuple[str, float, float, float, float]] = {
    "punch_lunge": ("punch", 0.30, 2.07, 0.93, 10),
    "punch_high": ("02_05", 0.90, 2.20, 1.45, 8),
    "punch_up": ("02_05", 3.70, 5.10, 4.40, 8),
    "punch_straight": ("02_05", 6.50, 8.00, 7.20, 8),
    "punch_body": ("02_05", 9.50, 10.90, 10.20, 8),
    "kick_front": ("kick", 0.20, 1.40, 0.74, 10),
    "kick_ball": ("train_soccer_1", 4.20, 6.20, 5.03, 8),
    "rise_prone": ("getup_facedown", 0.60, 3.02, 0, 8),
    "rise_supine": ("getup_faceup", 0.00, 3.76, 0, 8),
    "scoop": ("02_06", 3.05, 4.80, 0, 6),
    "bend": ("test_washwindow_1", 0.30, 2.10, 0, 6),
    "bend_again": ("test_washwindow_1", 12.20, 13.60, 0, 6),
    "wipe": ("test_washwindow_1", 7.40, 9.80, 0, 6),
    "reach_up": ("02_06", 4.60, 6.10, 0, 6),
    "gesture_point": ("train_directing_traffic_4", 0.50, 4.00, 0, 6),
    "gesture_come": ("train_directing_traffic_4", 5.40, 9.60, 0, 6),
    "gesture_wide": ("train_directing_traffic_4", 13.00, 16.00, 0, 6),
    "gesture_low": ("train_basketball_signal_1", 0.80, 6.00, 0, 4),
    "gesture_high": ("train_basketball_signal_1", 15.60, 19.20, 0, 4),
    "dance": ("dance_b", 0.00, 2.50, 0, 8),
    "jump": ("jump", 0.00, 1.75, 0, 10),
    "crawl": ("crawl", 0.00, 2.90, 0, 6),
}
RANK = 10


def load_clips(folder: Path) -> dict[str, Array]:
    """Clip id -> joints (T, 17, 3), metres, x forward at heading 0, z up; sources that may be trained on."""
    opened = {name: np.load(folder / f"{name}.npz") for name in SOURCES}
    with (folder / "clips.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] in opened]
    # (x, y up, z) to (forward, left, up) is a rotation: z, x, y
    return {row["clip_id"]: opened[row["source"]][row["clip_id"]].astype(np.float64)[..., [2, 0, 1]] for row in rows}


def smooth(values: Array, sigma: float) -> Array:
    """Gaussian filter along the first axis, edges held."""
    reach = int(3 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.concatenate([np.repeat(values[:1], reach, 0), values, np.repeat(values[-1:], reach, 0)])
    flat = padded.reshape(len(padded), -1)
    out = np.stack([np.convolve(column, kernel, "valid") for column in flat.T], axis=1)
    return out.reshape(values.shape)


def legs_of(joints: Array) -> float:
    """Length of the leg, hip to ankle, metres."""
    thigh = np.linalg.norm(joints[:, sk.HIP_L] - joints[:, sk.KNEE_L], axis=-1)
    shank = np.linalg.norm(joints[:, sk.KNEE_L] - joints[:, sk.ANKLE_L], axis=-1)
    return float(np.median(thigh + shank))


@dataclass(frozen=True, slots=True, eq=False)
class Stride:
    """One stride of steady, straight travel. joints: (32, 17, 3) metres in a frame that travels with the body."""

    joints: Array
    duration_s: float
    speed_mps: float
    leg_m: float

    @property
    def froude(self) -> float:
        return float(self.speed_mps / np.sqrt(GRAVITY * self.leg_m))

    @property
    def length_m(self) -> float:
        return self.duration_s * self.speed_mps


def strides(joints: Array) -> list[Stride]:
    """The strides of a clip that go straight on."""
    joints = smooth(joints, 0.8)
    leg = legs_of(joints)
    root = joints[:, [sk.HIP_L, sk.HIP_R]].mean(axis=1)
    velocity = np.gradient(smooth(root[:, :2], 6), axis=0) * RATE_HZ
    heading = np.arctan2(velocity[:, 1], velocity[:, 0])
    ahead = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    apart = ((joints[:, sk.ANKLE_L, :2] - joints[:, sk.ANKLE_R, :2]) * ahead).sum(axis=1)
    apart = smooth(apart, 1.5)
    up = np.flatnonzero((apart[:-1] < 0) & (apart[1:] >= 0))
    crossings = up + apart[up] / (apart[up] - apart[up + 1])
    found = []
    for start, end in itertools.pairwise(crossings):
        if not 15 <= end - start <= 60 or end > len(joints) - 2:
            continue
        middle = int((start + end) / 2)
        travelled = np.unwrap(heading[int(start) : int(end) + 2])
        time = np.linspace(start, end, 33)[:-1]
        low = time.astype(int)
        part = (time - low)[:, None, None]
        cycle = joints[low] * (1 - part) + joints[low + 1] * part
        first, last = root[int(start)], root[int(end)]
        speed = float(np.linalg.norm((last - first)[:2])) / ((int(end) - int(start)) / RATE_HZ)
        facing = joints[middle, sk.HIP_L] - joints[middle, sk.HIP_R]
        forward = facing[1] * ahead[middle, 0] - facing[0] * ahead[middle, 1] > 0
        if speed < 0.4 or np.ptp(travelled) > 0.45 or not forward:
            continue
        line = np.arctan2(*(last - first)[[1, 0]])
        mean = cycle[:, [sk.HIP_L, sk.HIP_R]].mean(axis=(0, 1))
        progress = (np.arange(32) / 32 - 0.5) * (end - start) / RATE_HZ * speed
        local = sk.turned(cycle - mean * (1, 1, 0), np.full(32, -line))
        local[:, :, 0] -= progress[:, None]
        found.append(Stride(local, (end - start) / RATE_HZ, speed, leg))
    return found


def fourier(phase: Array) -> Array:
    """(..., 1 + 2 H) values of the series' terms at the phases (turns)."""
    angles = 2 * np.pi * phase[..., None] * np.arange(1, HARMONICS + 1)
    return np.concatenate([np.ones((*phase.shape, 1)), np.cos(angles), np.sin(angles)], axis=-1)


def cycle_features(local: Array, leg: float) -> Array:
    """(32, 30): nine bone directions above the hips, then the pelvis: swing forward, sideways, height, per leg length."""
    root, bones = sk.bones_of(local)
    pelvis = (root - (0, 0, ANKLE_M)) / leg
    pelvis[:, 1] -= pelvis[:, 1].mean()
    return np.concatenate([bones[:, sk.UPPER].reshape(len(local), -1), pelvis], axis=1)


def symmetric(coefficients: Array) -> Array:
    """The mean of a gait and its mirror image half a stride later: nobody limps."""
    values = fourier(PHASES) @ coefficients
    bones = np.concatenate([values[:, :27].reshape(32, 9, 3), np.zeros((32, 4, 3))], axis=1)
    flipped = np.concatenate([sk.mirrored(bones)[:, :9].reshape(32, 27), values[:, 27:] * (1, -1, 1)], axis=1)
    flipped = np.roll(flipped, 16, axis=0)
    return np.linalg.lstsq(fourier(PHASES), (values + flipped) / 2, rcond=None)[0]


def foot_profile(cycles: list[Stride]) -> tuple[float, float, Array]:
    """Landing and heel-off of the left foot (turns) and its travel in between: (24, 2) progress 0-1, height / leg."""
    ahead, height = [], []
    for cycle in cycles:
        foot = cycle.joints[:, sk.ANKLE_L]
        ahead.append(foot[:, 0] / cycle.length_m + PHASES - 0.5)
        height.append((foot[:, 2] - np.percentile(foot[:, 2], 10)) / cycle.leg_m)
    x, z = np.mean(ahead, axis=0), np.mean(height, axis=0)
    pace = np.gradient(np.concatenate([x - 1, x, x + 1]))[32:64] * 32  # 1 = the body's own pace
    resting = pace < 0.30
    middle = 16  # half a stride after mid-swing the foot stands under the body
    landing = middle - int(np.argmin(resting[middle::-1])) + 1
    lift = middle + int(np.argmin(resting[middle:])) - 1
    turns = np.linspace(lift / 32, landing / 32 + 1, 24)
    grid = np.arange(-32, 96) / 32
    track = np.interp(turns, grid, np.concatenate([x - 1, x, x + 1, x + 2]))
    lifted = np.interp(turns, grid, np.tile(z, 4))
    progress = np.clip((track - track[0]) / (track[-1] - track[0]), 0, 1)
    base = np.linspace(lifted[0], lifted[-1], 24)
    return landing / 32, lift / 32, np.stack([progress, np.maximum(lifted - base, 0)], axis=1)


def fit_gait(clips: dict[str, Array], names: list[str], prefix: str) -> dict[str, Array]:
    """Mean, slope over speed and styles of one gait, its stride length and foot travel."""
    rows, speeds, lengths, every = [], [], [], []
    for name in names:
        cycles = strides(clips[name])
        if not cycles:
            continue
        series = [np.linalg.lstsq(fourier(PHASES), cycle_features(c.joints, c.leg_m), rcond=None)[0] for c in cycles]
        lengths.extend((c.froude, c.length_m / c.leg_m) for c in cycles)
        every.extend(cycles)
        rows.append(symmetric(np.mean(series, axis=0)))
        speeds.append(np.mean([c.froude for c in cycles]))
    froude = np.array(speeds)
    data = np.array(rows).reshape(len(rows), -1)
    centre = froude.mean()
    design = np.stack([np.ones_like(froude), froude - centre], axis=1)
    line = np.linalg.lstsq(design, data, rcond=None)[0]
    _, spread, styles = np.linalg.svd(data - design @ line, full_matrices=False)
    table = np.array(lengths)
    stride = np.linalg.lstsq(np.stack([np.ones(len(table)), table[:, 0]], axis=1), table[:, 1], rcond=None)[0]
    landing, lift, travel = foot_profile(every)
    shape = (1 + 2 * HARMONICS, -1)
    print(
        f"{prefix}: {len(rows)} clips, {len(every)} strides, Froude {froude.min():.2f}-{froude.max():.2f}, stride/leg = {stride[0]:.2f} + {stride[1]:.2f} Fr, foot rests {landing:.2f}-{lift:.2f}"
    )
    return {
        f"{prefix}_mean": line[0].reshape(shape), f"{prefix}_slope": line[1].reshape(shape),
        f"{prefix}_styles": (styles[:STYLES] * spread[:STYLES, None] / np.sqrt(len(rows))).reshape(STYLES, *shape),
        f"{prefix}_froude": np.array([centre, froude.min(), froude.max()]), f"{prefix}_stride": stride,
        f"{prefix}_rest": np.array([landing, lift]), f"{prefix}_swing": travel,
    }  # fmt: skip


def spline_basis(samples: int, knots: int) -> Array:
    """(samples, knots) uniform cubic B-splines over 0..1 with repeated ends (de Boor)."""
    inner = np.linspace(0, 1, knots - 2)
    grid = np.concatenate([np.zeros(3), inner, np.ones(3)])
    x = np.clip(np.linspace(0, 1, samples), 0, 1 - 1e-9)[:, None]
    basis = ((grid[:-1] <= x) & (x < grid[1:])).astype(np.float64)
    for degree in range(1, 4):
        left, right = grid[degree:-1] - grid[: -degree - 1], grid[degree + 1 :] - grid[1:-degree]
        first = np.where(left > 0, (x - grid[: -degree - 1]) / np.where(left > 0, left, 1), 0)
        second = np.where(right > 0, (grid[degree + 1 :] - x) / np.where(right > 0, right, 1), 0)
        basis = first * basis[:, :-1] + second * basis[:, 1:]
    return basis


def fit_primitive(joints: Array, start_s: float, end_s: float, knots_hz: float) -> tuple[Array, Array, float]:
    """Time and pose factors (K, r) and (r, 43), and the error of the joints, metres.

    Columns: 13 bone directions in the frame of the heading, pelvis x, y, z per leg length in the frame of the start,
    turn of the heading since the start (radians).
    """
    joints = smooth(joints, 0.7)[int(start_s * RATE_HZ) : int(end_s * RATE_HZ) + 1]
    leg = legs_of(joints)
    root, bones = sk.bones_of(joints)
    across = (
        joints[:, sk.HIP_L, :2]
        - joints[:, sk.HIP_R, :2]
        + (joints[:, sk.SHOULDER_L, :2] - joints[:, sk.SHOULDER_R, :2]) * 0.3
    )
    heading = np.unwrap(np.arctan2(-across[:, 0], across[:, 1]))
    local = sk.turned(bones, -heading)
    moved = (
        sk.turned((root - root[0] * (1, 1, 0) - (0, 0, ANKLE_M))[:, None], np.full(len(root), -heading[0]))[:, 0] / leg
    )
    data = np.concatenate([local.reshape(len(local), -1), moved, (heading - heading[0])[:, None]], axis=1)
    knots = max(6, int((end_s - start_s) * knots_hz))
    basis = spline_basis(len(data), knots)
    control = np.linalg.lstsq(basis, data, rcond=None)[0]
    left, size, right = np.linalg.svd(control, full_matrices=False)
    rank = min(RANK, knots)
    time, pose = left[:, :rank] * size[:rank], right[:rank]
    back = basis @ time @ pose
    error = sk.unit(back[:, :39].reshape(-1, 13, 3)) - local
    return time, pose, float(np.sqrt((error**2).sum(-1).mean()) * 0.3)


def fit_sway(clips: dict[str, Array]) -> Array:
    """Mean standing pose (27 directions above the hips), from the first and last moments of clips that begin at rest."""
    poses = []
    for name in ("02_05", "02_06", "train_directing_traffic_4", "test_washwindow_1", "train_soccer_1"):
        joints = clips[name][:8]
        _, bones = sk.bones_of(joints)
        across = joints[:, sk.HIP_L, :2] - joints[:, sk.HIP_R, :2]
        local = sk.turned(bones, -np.arctan2(-across[:, 0], across[:, 1])).mean(axis=0)
        poses.append((local + sk.mirrored(local)) / 2)
    return sk.unit(np.mean(poses, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mocap", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    clips = load_clips(arguments.mocap)
    walks = [
        name
        for name in clips
        if "walking" in name or name in {"walk", "02_01", "02_02", "long_walk1", "long_walk2", "long_walk3"}
    ]
    runs = [name for name in clips if "running" in name or name in {"run", "jog", "02_03"}]
    coefficients = {**fit_gait(clips, walks, "walk"), **fit_gait(clips, runs, "run"), "stand": fit_sway(clips)}
    for name, (clip, start, end, contact, knots) in PRIMITIVES.items():
        time, pose, error = fit_primitive(clips[clip], start, end, knots)
        coefficients[f"primitive_{name}_time"] = time
        coefficients[f"primitive_{name}_pose"] = pose
        coefficients[f"primitive_{name}_span"] = np.array([end - start, max(0.0, contact - start)])
        print(f"{name}: {time.shape[0]} knots, rank {time.shape[1]}, {error * 1000:.0f} mm")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **{name: value.astype(np.float32) for name, value in coefficients.items()})
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
