"""The tracker beside its peers, on the same detections in one run: milliseconds a frame and HOTA.

    python benchmarks/tracking.py [--data ../shared/data/mot] [--rounds 7]

Peers are measured where they are installed. They are no dependency of the agent and one of them pins old versions, so
give them an environment of their own:

    python -m venv /tmp/peers && . /tmp/peers/bin/activate
    pip install -e '.[evaluate]' 'trackers==2.6.1' && pip install --no-deps 'supervision==0.25.1'

All trackers get upstream's parameters, plain arrays or `sv.Detections` prepared beforehand, and one thread. In each round
every tracker runs over the whole scene, one after the other in turn; a ratio is that of two medians of the same round.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # before NumPy is loaded

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.schema import TrackingConfig
from agent.evaluate.mot import MotBoxes, read_detections, read_truth, sequence_fps
from agent.evaluate.tracking import score_tracks
from agent.tracking import ByteTracker

Floats = NDArray[np.float64]
Seen = tuple[Floats, Floats]
"""Boxes (N, 4) xyxy px and scores (N,) of one frame."""
Found = tuple[NDArray[np.int64], Floats]
"""Identities (N,) and boxes (N, 4) xyxy px."""


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
    def make(fps: float) -> Callable[[Any], Any]:
        tracker = ByteTracker(TrackingConfig(), fps=fps)
        return lambda seen: tracker.track(*seen)

    return Contestant("agent", make, lambda seen: seen, lambda found: (found.track_ids, found.boxes))


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


def crowd(people: int = 34, frames: int = 300, seed: int = 1) -> Scene:
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


def compare(scene: Scene, contestants: list[Contestant], rounds: int) -> dict[str, dict[str, float | None]]:
    """Per contestant ms a frame, times as long as the agent, and HOTA."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "mot"
    parser.add_argument("--data", type=Path, default=default, help="folder with bytetrack_palace/ and mot15/")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers warn of their own deprecations
    contestants = [agent_tracker(), *peers()]
    if len(contestants) < 3:
        print("Not every peer is installed here; the head of this file says how to measure beside them.\n")
    report = {}
    print(f"{'scene':<18}{'boxes':>6}  {'tracker':<20}{'ms/frame':>9}{'x agent':>9}{'HOTA':>7}")
    for scene in [crowd(), *recorded(arguments.data)]:
        report[scene.name] = figures = compare(scene, contestants, arguments.rounds)
        density = fmean(len(scores) for _, scores in scene.frames)
        for name, figure in figures.items():
            quality = "" if figure["HOTA"] is None else f"{figure['HOTA']:.2f}"
            print(
                f"{scene.name:<18}{density:>6.1f}  {name:<20}{figure['ms_per_frame']:>9.3f}"
                f"{figure['times_agent']:>9.2f}{quality:>7}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
