"""Windows of both services from simulated scenes: scripted people, a random camera, the errors of a pose estimator, then the
agent's own tracker and window code.

    python models/training/simulated.py --out runs/simulated-train.npz --seeds 0 120
    python models/training/simulated.py --out runs/simulated-hold.npz  --seeds 10000 10060

No picture is drawn: the key points of `agent.simulation` are enough, and a hundred scenes take minutes. Seeds of
`HOLD_OUT` and above are for tests only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from clips import EPOCH, TRACKING
from dataset import fall_label
from extract_poses import save
from numpy.typing import NDArray
from recipes import RECIPES, WINDOW

from agent.action.windows import ActionWindows
from agent.config.schema import ServiceConfig
from agent.evaluate.truth_poses import COCO_SIGMAS
from agent.simulation.camera import NEAR_M, Camera, hang_camera
from agent.simulation.episodes import EPISODE_S
from agent.simulation.scripts import simulate_joints
from agent.simulation.values import Interval
from agent.tracking.bytetrack import ByteTracker
from agent.types import FrameStamp, People, Tracks, Window

Array = NDArray[np.float64]
HOLD_OUT = 10000
"""First seed that is never trained on; recipes were compared on 10000-10041."""
SCENARIOS = (
    "fight",
    "near-misses",
    "fight",
    "crowd",
    "fall",
    "hug",
    "fall-rise",
    "exercise",
    "fight",
    "sit",
    "mixed",
    "bend",
    "fall",
    "fall-rise",
    "near-misses",
    "mixed",
    "bend",
    "crowd",
)
"""Taken in turn by the seed."""
SECONDS = 24.0
"""Of a scene, from any moment of its first episode on: who meets whom, and how they part, comes late in one."""
FALL_STRIDE = 25
SERVICES = ("fight", "fall")
WIDTH, HEIGHT = 640, 480
EDGE = np.array([WIDTH - 1, HEIGHT - 1], np.float64)
WINDOW_S = WINDOW.length / WINDOW.rate_hz
MIRROR = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])
LOOSE = np.array([0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 1.0, 1.0, 1.3, 1.3, 0.9, 0.9, 1.0, 1.0, 1.2, 1.2])
"""Wrists and ankles are found worse than the trunk by PoseNet."""
ANNOTATED = COCO_SIGMAS / COCO_SIGMAS.mean()
"""COCO's annotators differ most about hips, least about eyes; estimators of its kind follow them."""
_SCALE = 0.46
"""Of COCO, the square root of the area, in body sizes: the median over people of simulated scenes."""
RATES_HZ = (10.0, 12.0, 15.0, 25.0, 30.0)


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Errors of one estimator on one camera.

    jitter: standard deviation from frame to frame, body sizes; lasting: the same of the part that stays for `tau_s`;
    joints: (17,) factors of both; jumps: chance that a joint is somewhere else in a frame; misses: chance that a person is not
    reported; swaps: chance that left and right are exchanged; score: mean of the key points' scores, spread: between joints;
    inside: key points outside the picture are put inside it, as networks do that cannot point out of it; least_score: key points
    that score less count as not seen (score 0).
    """

    jitter: float
    lasting: float
    tau_s: float
    joints: Array
    jumps: float
    misses: float
    swaps: float
    score: float
    spread: float
    inside: bool = False
    least_score: float = 0.0

    def __post_init__(self) -> None:
        if self.joints.shape != (17,):
            raise ValueError(f"Noise.joints: expected shape (17,), got {self.joints.shape}")


def draw_noise(rng: np.random.Generator) -> Noise:
    """One of three kinds of estimator: like PoseNet (40 %), with errors like those of COCO's annotators (35 %), better (25 %).

    PoseNet: quantiles measured on 105 tracks of training clips (second differences, so real motion hardly counts): jitter
    0.004 / 0.013 / 0.032 body sizes at 10 / 50 / 90 % of which a part is movement, misses 0 / 0.12 / 0.43, mean score
    0.38 / 0.53 / 0.69, its spread between joints 0.22-0.35; largest errors 4.5 times the median. COCO's kind: 0.4 to 1.6 times
    COCO's sigmas, of which a person's scale is about 0.46 body sizes. Those like PoseNet and half of the others put key points of
    legs below the picture inside it (pose-nano: 92 % of them, with half the score); a third hide key points that score little.
    """
    kind = rng.random()
    inside = bool(kind < 0.4 or rng.random() < 0.5)
    least_score = float(rng.uniform(0.1, 0.35)) if rng.random() < 1 / 3 else 0.0
    if kind < 0.4:
        return Noise(
            jitter=float(np.exp(rng.normal(np.log(0.007), 0.5))),
            lasting=float(np.exp(rng.normal(np.log(0.014), 0.5))),
            tau_s=0.4,
            joints=LOOSE,
            jumps=float(rng.uniform(0, 0.05)),
            misses=float(np.clip(rng.exponential(0.1), 0, 0.5)),
            swaps=float(rng.uniform(0, 0.05)),
            score=float(np.clip(rng.normal(0.58, 0.1), 0.35, 0.8)),
            spread=float(rng.uniform(0.15, 0.3)),
            inside=inside,
            least_score=least_score,
        )
    annotated = kind < 0.75
    whole = _SCALE * COCO_SIGMAS.mean() * float(rng.uniform(0.4, 1.6))
    fresh = float(rng.uniform(0, 0.5))  # of the variance
    return Noise(
        jitter=whole * fresh**0.5 if annotated else float(np.exp(rng.normal(np.log(0.004), 0.5))),
        lasting=whole * (1 - fresh) ** 0.5 if annotated else float(np.exp(rng.normal(np.log(0.008), 0.5))),
        tau_s=float(rng.uniform(0.08, 0.6)),
        joints=ANNOTATED if annotated else LOOSE,
        jumps=float(rng.uniform(0, 0.01)),
        misses=float(np.clip(rng.exponential(0.02), 0, 0.5)),
        swaps=float(rng.uniform(0, 0.01)),
        score=float(rng.uniform(0.65, 0.9)),
        spread=float(rng.uniform(0.05, 0.15)),
        inside=inside,
        least_score=least_score,
    )


class Watcher:
    """Turns people in metres into what an estimator reports; frames in order."""

    def __init__(self, camera: Camera, noise: Noise, people: int, fps: float, rng: np.random.Generator) -> None:
        self._camera, self._noise, self._rng = camera, noise, rng
        self._keep = float(np.exp(-1 / (noise.tau_s * fps)))  # of the lasting error, a frame
        self._error = rng.normal(size=(people, 17, 2))
        self._gone = np.zeros(people, np.int64)  # frames for which somebody stays lost

    def look(self, joints: Array) -> tuple[People, list[int]]:
        """(P, 17, 3) m, NaN = not on stage -> the reported people and the column of `joints` that each of them is."""
        rng, noise = self._rng, self._noise
        fresh = rng.normal(size=self._error.shape)
        self._error = self._keep * self._error + np.sqrt(1 - self._keep**2) * fresh
        present = np.flatnonzero(np.isfinite(joints[:, 0, 0]))
        pixels, depth = self._camera.project(joints[present].astype(np.float32))
        inside = (depth > NEAR_M) & np.all((pixels >= 0) & (pixels < (WIDTH, HEIGHT)), axis=-1)
        hidden = _hidden(pixels, depth)
        self._gone = np.maximum(self._gone - 1, 0)
        rows, reported = [], []
        for row, person in enumerate(present.tolist()):
            seen = inside[row] & ~hidden[row]
            lost = noise.misses + (1 - noise.misses) * max(0.0, 0.5 - float(seen.mean()))
            if rng.random() < 0.35 * lost:
                self._gone[person] = 1 + int(rng.exponential(3))
            if seen.sum() >= 5 and not self._gone[person]:
                rows.append(self._pose(pixels[row], seen, self._error[person]))
                reported.append(person)
        if not rows:
            return People.empty(), []
        keypoints, scores = np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])
        order = rng.permutation(len(rows))
        return _people(keypoints[order], scores[order]), [reported[i] for i in order]

    def _pose(self, pixels: Array, seen: NDArray[np.bool_], error: Array) -> tuple[Array, Array]:
        rng, noise = self._rng, self._noise
        size = 3.5 * float(np.sqrt(((pixels - pixels.mean(axis=0)) ** 2).sum(axis=-1).mean()))
        blur = np.where(seen, 1.0, 3.0)[:, None] * noise.joints[:, None] * size
        points = pixels + blur * (noise.lasting * error + noise.jitter * rng.normal(size=(17, 2)))
        jumped = rng.random(17) < noise.jumps * LOOSE * np.where(seen, 1, 3)
        points = points + jumped[:, None] * rng.normal(0, 0.12 * size, (17, 2))
        if rng.random() < noise.swaps:
            points = points[MIRROR]
        if noise.inside:
            depth = np.abs(rng.normal(0, 0.04 * size, (17, 2)))
            points = np.where(points < 0, np.minimum(depth, EDGE), points)
            points = np.where(points > EDGE, np.maximum(EDGE - depth, 0), points)
        mean = noise.score - 0.35 * ~seen - 0.15 * jumped
        scores = np.clip(mean + noise.spread * rng.normal(size=17), 0.02, 0.99)
        return points, np.where(scores < noise.least_score, 0.0, scores)


def _hidden(pixels: NDArray[np.float32], depth: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N, 17): behind the trunk of somebody nearer, taken as an ellipse around shoulders and hips."""
    trunk = pixels[:, [5, 6, 11, 12]]
    centre = trunk.mean(axis=1)
    long = np.linalg.norm(trunk[:, :2].mean(axis=1) - trunk[:, 2:].mean(axis=1), axis=-1)
    half = np.stack((0.4 * long, 0.7 * long), axis=-1) + 1e-3
    away = ((pixels[None] - centre[:, None, None]) / half[:, None, None]) ** 2  # (by whom, who, 17, 2)
    nearer = depth.mean(axis=1)[:, None] < depth.mean(axis=1)[None] - 0.1
    hidden: NDArray[np.bool_] = ((away.sum(axis=-1) < 1) & nearer[..., None]).any(axis=0)
    return hidden


def _people(keypoints: Array, scores: Array) -> People:
    low, high = keypoints.min(axis=1), keypoints.max(axis=1)
    margin = 0.08 * (high - low)
    boxes = np.concatenate((low - margin, high + margin), axis=1)
    return People(
        boxes.astype(np.float32), keypoints.astype(np.float32), scores.astype(np.float32),
        scores.mean(axis=1).astype(np.float32),
    )  # fmt: skip


def scene_windows(seed: int) -> list[tuple[str, Window, int]]:
    """(service, window, label) of one scene; label 1 the action is in it, 0 it is not, -1 neither clearly."""
    rng = np.random.default_rng((seed, 71))
    scenario = SCENARIOS[seed % len(SCENARIOS)]
    fps = float(rng.choice(RATES_HZ))
    people = int(rng.integers(2, 6))
    start_s = beginning(rng)
    script = simulate_joints(scenario, seed, people, SECONDS, fps, start_s=start_s)
    joints = script.joints
    if not joints.shape[1]:
        return []
    places = joints[np.isfinite(joints[..., 0])].reshape(-1, 17, 3).mean(axis=1)
    camera = hang_camera(places.astype(np.float32), rng, width=WIDTH, height=HEIGHT)
    watcher = Watcher(camera, draw_noise(rng), joints.shape[1], fps, rng)
    tracker = ByteTracker(TRACKING, fps=fps)
    windows = ActionWindows("simulated", services())
    actor_of: dict[int, set[int]] = {}
    found = []
    for number, frame in enumerate(joints):
        seen, columns = watcher.look(frame.astype(np.float64))
        seconds = number / fps
        stamp = FrameStamp("simulated", number, round(seconds * 1e9), EPOCH + timedelta(seconds=seconds), WIDTH, HEIGHT)
        tracks = tracker.update(stamp, seen)
        _note_actors(actor_of, tracks, seen, script.actor_ids[columns].tolist())
        found += windows.push(tracks)
    found += windows.flush()
    intervals = since(start_s, script.intervals)
    return [(window.service, window, label_of(window, intervals, actor_of)) for window in found]


def beginning(rng: np.random.Generator) -> float:
    """When a scene begins, seconds of its script."""
    return float(rng.uniform(0, EPISODE_S))


def since(start_s: float, intervals: Sequence[Interval]) -> list[Interval]:
    """The same in seconds of a scene that begins at `start_s`."""
    return [replace(one, start_s=one.start_s - start_s, end_s=one.end_s - start_s) for one in intervals]


def services() -> dict[str, ServiceConfig]:
    """As trained, falls at the shorter stride of the shipped configuration: they are over soon."""
    fall = RECIPES["fall"].service_config()
    shorter = fall.window.model_copy(update={"stride": FALL_STRIDE})
    return {"fight": RECIPES["fight"].service_config(), "fall": fall.model_copy(update={"window": shorter})}


def _note_actors(actor_of: dict[int, set[int]], tracks: Tracks, people: People, actors: Sequence[int]) -> None:
    """Who a track is: the reported person with the very key points that the tracker passed on."""
    for track_id, keypoints in zip(tracks.track_ids.tolist(), tracks.people.keypoints, strict=True):
        for row, actor in enumerate(actors):
            if np.array_equal(people.keypoints[row], keypoints):
                actor_of.setdefault(track_id, set()).add(actor)


def label_of(window: Window, intervals: Sequence[Interval], actor_of: dict[int, set[int]]) -> int:
    """Fight: a second or more of it, with somebody of it among the window's people. Fall: see `dataset.fall_label`."""
    end_s = window.t_end_ns * 1e-9
    start_s = max(0.0, end_s - WINDOW_S)
    people = set().union(*(actor_of.get(track, set()) for track in window.track_ids))
    marks = [0]
    for interval in intervals:
        if interval.action != window.service:
            continue
        if window.service == "fight":
            overlap = min(end_s, interval.end_s) - max(start_s, interval.start_s)
            mark = 1 if overlap >= 1.0 else -1 if overlap > 0 else 0
        else:
            mark = fall_label(start_s, end_s, interval.start_s)
        if mark and not people & set(interval.actor_ids):
            mark = -1  # it happens, but nobody of it is seen
        marks.append(mark)
    return 1 if 1 in marks else min(marks)


def save_windows(file: Path, rows: Sequence[tuple[str, Window, int, int]]) -> None:
    """Rows of service, window, label and seed as one npz file, which `pools.simulated_pool` reads; whole or not at all."""
    label = np.array([row[2] for row in rows], np.int8)
    service = np.array([row[0] for row in rows])
    arrays = {
        "tensor": np.stack([_four_channels(row[1].tensor) for row in rows]),
        "service": service,
        "label": label,
        "seed": np.array([row[3] for row in rows], np.int32),
        "scenario": np.array([SCENARIOS[row[3] % len(SCENARIOS)] for row in rows]),
    }
    save(arrays, file)
    for name in SERVICES:
        print(name, np.unique(label[service == name], return_counts=True))


def _four_channels(tensor: NDArray[np.float32]) -> NDArray[np.float16]:
    """(M, T, V, C) -> (M, T, V, 4): no change where the service does not ask for it."""
    missing = 4 - tensor.shape[-1]
    return np.pad(tensor, ((0, 0), (0, 0), (0, 0), (0, missing))).astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs=2, required=True, metavar=("FIRST", "END"))
    arguments = parser.parse_args()
    rows = []
    for seed in range(*arguments.seeds):
        rows += [(service, window, label, seed) for service, window, label in scene_windows(seed)]
        if seed % 10 == 0:
            print(seed, len(rows), flush=True)
    save_windows(arguments.out, rows)


if __name__ == "__main__":
    main()
