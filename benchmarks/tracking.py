"""The tracker beside its peers, on the same detections in one run: milliseconds a frame and HOTA.

    python benchmarks/tracking.py [--data ../shared/data/mot] [--rounds 5]

Peers are measured where they are installed. They are no dependency of the agent and one of them is an old version, so
give them an environment of their own:

    python -m venv /tmp/peers && . /tmp/peers/bin/activate
    pip install -e '.[evaluate]' 'trackers==2.6.1' && pip install --no-deps 'supervision==0.25.1'

All trackers get upstream's parameters, input prepared beforehand in their own type, and one thread. In each round every
tracker runs over the whole scene, one after the other in turn; a ratio is that of two medians of the same round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from agent.config.schema import TrackingConfig
from agent.evaluate.mot import MotBoxes, read_detections, read_truth, sequence_fps
from agent.evaluate.tracking import score_tracks
from agent.tracking import ByteTracker
from agent.types import NUM_KEYPOINTS, FrameStamp, People

Floats = NDArray[np.float64]
Seen = tuple[Floats, Floats]
"""Boxes (N, 4) xyxy px and scores (N,) of one frame."""
Found = tuple[NDArray[np.int64], Floats]
"""Identities (N,) and boxes (N, 4) xyxy px."""


class Figures(TypedDict):
    """ms_per_frame: median; times_agent: as many times the agent's time; HOTA: percent, None without truth."""

    ms_per_frame: float
    times_agent: float
    HOTA: float | None


@dataclass(frozen=True, slots=True)
class Scene:
    """Detections of a sequence and, if there is any, its truth."""

    name: str
    fps: float
    frames: list[Seen]
    truth: MotBoxes | None


@dataclass(frozen=True, slots=True)
class Contestant:
    """make: a fresh tracker's step for a frame rate. prepare: what that step takes. read: its result."""

    name: str
    make: Callable[[float], Callable[[Any], Any]]
    prepare: Callable[[Seen], Any]
    read: Callable[[Any], Found]


def agent_tracker() -> Contestant:
    stamp = FrameStamp("benchmark", 0, 0, datetime.fromtimestamp(0, UTC), 1920, 1080)

    def make(fps: float) -> Callable[[Any], Any]:
        tracker = ByteTracker(TrackingConfig(), fps=fps)
        return lambda people: tracker.update(stamp, people)

    def prepare(seen: Seen) -> People:
        boxes, scores = seen
        n = len(scores)
        joints = np.zeros((n, NUM_KEYPOINTS, 2), np.float32), np.zeros((n, NUM_KEYPOINTS), np.float32)
        return People(boxes.astype(np.float32), *joints, scores.astype(np.float32))

    return Contestant("agent", make, prepare, lambda tracks: (tracks.track_ids, tracks.people.boxes.astype(np.float64)))


def peers() -> list[Contestant]:
    """The peers that are installed here."""
    if importlib.util.find_spec("supervision") is None:
        return []
    import supervision as sv

    def prepare(seen: Seen) -> Any:
        boxes, scores = seen
        return sv.Detections(
            xyxy=boxes.astype(np.float32), confidence=scores.astype(np.float32), class_id=np.zeros(len(scores), int)
        )

    def read(found: Any) -> Found:
        ids = np.asarray(found.tracker_id if found.tracker_id is not None else [], np.int64)
        known = ids >= 0
        return ids[known], np.asarray(found.xyxy, np.float64).reshape(-1, 4)[known]

    contestants = []
    if importlib.util.find_spec("trackers") is not None:
        from trackers import ByteTrackTracker

        def make_trackers(fps: float) -> Callable[[Any], Any]:
            step: Callable[[Any], Any] = ByteTrackTracker(frame_rate=fps).update  # its defaults are upstream's
            return step

        contestants.append(Contestant(f"trackers {version('trackers')}", make_trackers, prepare, read))
    if hasattr(sv, "ByteTrack"):

        def make_supervision(fps: float) -> Callable[[Any], Any]:
            tracker = sv.ByteTrack(track_activation_threshold=0.6, minimum_matching_threshold=0.9, frame_rate=int(fps))
            step: Callable[[Any], Any] = tracker.update_with_detections
            return step

        contestants.append(Contestant(f"supervision {version('supervision')}", make_supervision, prepare, read))
    return contestants


def crowd(people: int = 34, frames: int = 200, seed: int = 1) -> Scene:
    """People on straight ways across 1920x1080 that bounce off its edges; about 32 of them are detected in a frame."""
    rng = np.random.default_rng(seed)
    edge = np.array([1920.0, 1080.0])
    centre, velocity = rng.uniform(0, edge, (people, 2)), rng.normal(0, 3, (people, 2))
    height = rng.uniform(80, 250, people)
    half = np.stack((rng.uniform(0.3, 0.5, people) * height, height), axis=1) / 2
    seen: list[Seen] = []
    truth: list[MotBoxes] = []
    for frame in range(1, frames + 1):
        centre = centre + velocity
        velocity = np.where((centre < 0) | (centre > edge), -velocity, velocity)
        boxes = np.concatenate((centre - half, centre + half), axis=1)
        truth.append(MotBoxes(np.full(people, frame), np.arange(people), boxes, np.ones(people)))
        detected = rng.random(people) > 0.05
        scores = np.clip(rng.normal(0.75, 0.15, people), 0.05, 0.99)
        seen.append(((boxes + rng.normal(0, 2, boxes.shape))[detected], scores[detected]))
    return Scene("crowd (made up)", 30.0, seen, MotBoxes.join(truth))


def recorded(data: Path) -> list[Scene]:
    """The scenes of the data folder, if it is there."""
    scenes = []
    palace = data / "bytetrack_palace" / "detection_results.json"
    if palace.is_file():
        rows = json.loads(palace.read_text())["results"]
        table = np.array(
            [[float(row[key]) for key in ("frame_id", "x", "y", "width", "height", "prob")] for row in rows]
        )
        boxes = np.concatenate((table[:, 1:3], table[:, 1:3] + table[:, 3:5]), axis=1)
        found = MotBoxes(table[:, 0].astype(np.int64), np.full(len(table), -1), boxes, table[:, 5])
        scenes.append(Scene("palace", 30.0, [(f.boxes, f.scores) for f in found.by_frame(0, int(table[-1, 0]))], None))
    for folder in sorted((data / "mot15").glob("*")):
        detections = folder / "det" / "det.txt"
        found, truth = read_detections(detections), read_truth(folder / "gt" / "gt.txt")
        last = int(max(found.frames.max(), truth.frames.max()))
        frames = [(frame.boxes, frame.scores) for frame in found.by_frame(1, last)]
        scenes.append(Scene(folder.name, sequence_fps(detections) or 30.0, frames, truth))
    return scenes


def run(contestant: Contestant, scene: Scene) -> tuple[float, list[Found]]:
    """Median time of a frame in ms, and what was found."""
    step = contestant.make(scene.fps)
    inputs = [contestant.prepare(seen) for seen in scene.frames]
    times_ns, found = [], []
    for value in inputs:
        start_ns = time.perf_counter_ns()
        result = step(value)
        times_ns.append(time.perf_counter_ns() - start_ns)
        found.append(contestant.read(result))
    return median(times_ns) / 1e6, found


def hota(scene: Scene, found: list[Found]) -> float | None:
    """HOTA in percent, None without truth."""
    if scene.truth is None:
        return None
    tracks = MotBoxes.join(
        [
            MotBoxes(np.full(len(ids), frame), ids, boxes, np.ones(len(ids)))
            for frame, (ids, boxes) in enumerate(found, 1)
        ]
    )
    return 100 * float(score_tracks(scene.truth, tracks, 1, len(found))["HOTA"])


def compare(scene: Scene, contestants: list[Contestant], rounds: int) -> dict[str, Figures]:
    """The figures of every contestant."""
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    quality: dict[str, float | None] = {}
    for turn in range(rounds + 1):
        shift = turn % len(contestants)
        for contestant in contestants[shift:] + contestants[:shift]:
            ms, found = run(contestant, scene)
            if turn:  # the first round warms up
                times[contestant.name].append(ms)
            else:
                quality[contestant.name] = hota(scene, found)
    return {
        name: {
            "ms_per_frame": median(values),
            "times_agent": median(value / own for value, own in zip(values, times["agent"], strict=True)),
            "HOTA": quality[name],
        }
        for name, values in times.items()
    }


def row(scene: str, density: float, name: str, figures: Figures) -> str:
    quality = "" if figures["HOTA"] is None else f"{figures['HOTA']:.2f}"
    return f"{scene:<18}{density:>6.1f}  {name:<20}{figures['ms_per_frame']:>9.3f}{figures['times_agent']:>9.2f}{quality:>7}"


def mean_of(reports: list[dict[str, Figures]]) -> dict[str, Figures]:
    """The plain mean over sequences."""
    return {
        name: {
            "ms_per_frame": fmean(report[name]["ms_per_frame"] for report in reports),
            "times_agent": fmean(report[name]["times_agent"] for report in reports),
            "HOTA": fmean(report[name]["HOTA"] or 0.0 for report in reports),
        }
        for name in reports[0]
    }


def use_one_thread() -> None:
    """Start again with one thread for linear algebra: libraries read these variables while they are loaded."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def main() -> None:
    use_one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "mot"
    parser.add_argument("--data", type=Path, default=default, help="folder with bytetrack_palace/ and mot15/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers warn of their own deprecations
    contestants = [agent_tracker(), *peers()]
    if len(contestants) < 3:
        print("Not every peer is installed here; the head of this file says how to measure beside them.\n")
    report: dict[str, dict[str, Figures]] = {}
    print(f"{'scene':<18}{'boxes':>6}  {'tracker':<20}{'ms/frame':>9}{'x agent':>9}{'HOTA':>7}")
    scenes = [crowd(), *recorded(arguments.data)]
    density = {scene.name: fmean(len(scores) for _, scores in scene.frames) for scene in scenes}
    for scene in scenes:
        report[scene.name] = compare(scene, contestants, arguments.rounds)
        for name, figures in report[scene.name].items():
            print(row(scene.name, density[scene.name], name, figures), flush=True)
    sequences = [scene.name for scene in scenes[1:] if scene.truth is not None]
    if sequences:
        for name, figures in mean_of([report[sequence] for sequence in sequences]).items():
            print(row("mean of sequences", fmean(density[sequence] for sequence in sequences), name, figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
