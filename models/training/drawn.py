"""Windows of both services from drawn scenes through a real estimator: its own errors, not what we think they are.

    python models/training/drawn.py --config configs/pose-nano.yaml --out runs/drawn.npz --seeds 7000 7100

The file is one of `simulated.py`'s kind. A scene takes some 10 s of one core, two hundred times what key points alone take, so
there are few. The seeds should be plays that the estimator was not trained on (pose_nano/README.md); those from
`simulated.HOLD_OUT` on are for tests.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
from clips import EPOCH
from simulated import HOLD_OUT, SCENARIOS, SECONDS, beginning, label_of, save_windows, services, since

from agent.action.windows import ActionWindows
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.ports import PoseEstimator
from agent.recognition import create_estimator
from agent.simulation.scene import build_scene
from agent.simulation.scripts import build_script
from agent.simulation.values import Truth
from agent.tracking.association import pairwise_iou
from agent.tracking.bytetrack import ByteTracker
from agent.types import FrameStamp, Tracks, Window

RATES_HZ = (10.0, 15.0, 30.0)
_SAME_IOU = 0.4
_OFTEN = 0.3
"""Share of a track's frames in which an actor must be the nearest to count as one of whom the track shows."""


def scene_windows(
    seed: int, config: AgentConfig, estimator: PoseEstimator, seconds: float = SECONDS
) -> list[tuple[str, Window, int]]:
    """(service, window, label) of one scene, as `simulated.scene_windows`."""
    rng = np.random.default_rng((seed, 72))
    fps = float(rng.choice(RATES_HZ))
    script = build_script(SCENARIOS[seed % len(SCENARIOS)], seed=seed, people=int(rng.integers(2, 6)))
    scene = build_scene(script, seed=seed)
    start_s = beginning(rng)
    tracker, windows = ByteTracker(config.tracking, fps=fps), ActionWindows("drawn", services())
    shown: dict[int, Counter[int]] = defaultdict(Counter)
    found = []
    for number in range(round(seconds * fps)):
        t_s = number / fps
        shot = scene.shot(start_s + t_s)
        (people,) = estimator.estimate([shot.image])
        height, width = shot.image.shape[:2]
        stamp = FrameStamp("drawn", number, round(t_s * 1e9), EPOCH + timedelta(seconds=t_s), width, height)
        tracks = tracker.update(stamp, people)
        _count_actors(shown, tracks, shot.truth)
        found += windows.push(tracks, shot.image, people)
    found += windows.flush()
    actor_of = {
        track: {actor for actor, count in actors.items() if count >= _OFTEN * actors.total()}
        for track, actors in shown.items()
    }
    intervals = since(start_s, script.intervals(start_s, start_s + seconds))
    return [(window.service, window, label_of(window, intervals, actor_of)) for window in found]


def _count_actors(shown: dict[int, Counter[int]], tracks: Tracks, truth: Truth) -> None:
    """Whom each track shows in this frame: the actor whose box it overlaps most."""
    if not len(tracks.people) or not len(truth.boxes):
        return
    overlap = pairwise_iou(tracks.people.boxes.T.astype(np.float64), np.nan_to_num(truth.boxes.T.astype(np.float64)))
    best = overlap.argmax(axis=1)
    for row, track in enumerate(tracks.track_ids.tolist()):
        if overlap[row, best[row]] >= _SAME_IOU:
            shown[track][int(truth.actor_ids[best[row]])] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    seeds = parser.add_mutually_exclusive_group(required=True)
    seeds.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "END"))
    seeds.add_argument("--pick", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each scene; a whole episode takes some 40")
    arguments = parser.parse_args()
    chosen = arguments.pick or range(*arguments.seeds)
    if max(chosen, default=0) >= HOLD_OUT:
        parser.error(f"seeds from {HOLD_OUT} on are for tests")
    cv2.setNumThreads(1)
    config = load_config(arguments.config, env=os.environ)
    estimator = create_estimator(config.model_copy(update={"pose": config.pose.model_copy(update={"threads": 1})}))
    rows = []
    for seed in chosen:
        rows += [
            (s, window, label, seed) for s, window, label in scene_windows(seed, config, estimator, arguments.seconds)
        ]
        print(seed, len(rows), flush=True)
    save_windows(arguments.out, rows)


if __name__ == "__main__":
    main()
