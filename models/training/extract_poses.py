"""Poses of every frame of every video in a folder: the first step of training an action model.

    python models/training/extract_poses.py --estimator posenet --model posenet_481_641.tflite \
        --data data/fight --out poses/481x641/fight [--flip] [--threads 1]
    python models/training/extract_poses.py --config configs/pose-nano.yaml --data data/fight --out poses/nano/fight

For DATA/a/b.mp4 it writes OUT/a/b.npz; videos whose file exists are skipped, so a stopped run goes on where it was.
Arrays of one file, F frames with N people in all, in the order of the frames:

    counts           (F,) int64             people per frame
    boxes            (N, 4) float32         xyxy, px of the video
    keypoints        (N, 17, 2) float32     xy, px of the video, order of COCO
    keypoint_scores  (N, 17) float32        0-1
    scores           (N,) float32           0-1
    fps, width, height                      of the video; fps 0 = unknown
    estimator        str                    name of the model

`--flip` shows the estimator the mirrored pictures and mirrors its answer back (left and right exchanged too): poses in
the same frame of reference as without it, with other errors, hence a second sample of the estimator's noise.
Keep the score threshold low: what is not written cannot be chosen later.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from agent.config.load import load_config
from agent.config.schema import PoseConfig
from agent.errors import ConfigError, DataError, RecognizerError
from agent.ports import PoseEstimator
from agent.types import ImageArray, People

SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}
GROUP = "recognizer_agent.pose_estimators"
MIRROR = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])
"""COCO's key points with left and right exchanged."""


def create_estimator(config: PoseConfig) -> PoseEstimator:
    """The estimator that `config.estimator` names among the installed plug-ins. Raises ConfigError, ModelError."""
    known = {point.name: point for point in entry_points(group=GROUP)}
    if config.estimator not in known:
        raise ConfigError(f"no pose estimator {config.estimator!r} is installed (hint: known are {sorted(known)})")
    estimator: PoseEstimator = known[config.estimator].load()(config)
    return estimator


def unmirror(people: People, width: int) -> People:
    """`people` of a mirrored picture of `width` px, as they are in the picture itself."""
    boxes = people.boxes[:, [2, 1, 0, 3]].copy()
    boxes[:, [0, 2]] = width - 1 - boxes[:, [0, 2]]
    keypoints = people.keypoints[:, MIRROR].copy()
    keypoints[..., 0] = width - 1 - keypoints[..., 0]
    return People(boxes, keypoints, people.keypoint_scores[:, MIRROR], people.scores.copy())


def pictures(video: cv2.VideoCapture) -> Iterator[ImageArray]:
    """Every picture to the end."""
    while True:
        good, image = video.read()
        if not good:
            return
        yield image


def extract(estimator: PoseEstimator, path: Path, *, flip: bool) -> dict[str, np.ndarray]:
    """The arrays of one video, see the top of this file. Raises DataError where it yields no picture."""
    video = cv2.VideoCapture(str(path))
    try:
        frames = []
        for image in pictures(video):
            people = estimator.estimate([cv2.flip(image, 1) if flip else image])[0]
            frames.append(unmirror(people, image.shape[1]) if flip else people)
        if not frames:
            raise DataError(f"{path}: no picture could be read")
        return {
            "counts": np.array([len(people) for people in frames], np.int64),
            "boxes": np.concatenate([people.boxes for people in frames]),
            "keypoints": np.concatenate([people.keypoints for people in frames]),
            "keypoint_scores": np.concatenate([people.keypoint_scores for people in frames]),
            "scores": np.concatenate([people.scores for people in frames]),
            "fps": np.array(video.get(cv2.CAP_PROP_FPS)),
            "width": np.array(int(video.get(cv2.CAP_PROP_FRAME_WIDTH))),
            "height": np.array(int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))),
            "estimator": np.array(estimator.name),
        }
    finally:
        video.release()


def save(arrays: dict[str, np.ndarray], target: Path) -> None:
    """Write `target` whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    partial.replace(target)


def pose_config(arguments: argparse.Namespace, env: Mapping[str, str]) -> PoseConfig:
    """As --config says, but for what the command line knows better. Raises ConfigError."""
    changed = {name: getattr(arguments, name) for name in ("threads", "device", "score_threshold")}
    if arguments.config is None:
        return PoseConfig(estimator=arguments.estimator, model=arguments.model, **changed)
    return load_config([arguments.config], env=env).pose.model_copy(update=changed)


def run(arguments: argparse.Namespace) -> int:
    """Extract all that is missing; 0 good, 1 some videos failed."""
    videos = sorted(path for path in arguments.data.rglob("*") if path.suffix.lower() in SUFFIXES)
    targets = {path: (arguments.out / path.relative_to(arguments.data)).with_suffix(".npz") for path in videos}
    missing = [path for path in videos if not targets[path].exists()]
    estimator = create_estimator(pose_config(arguments, os.environ))
    console, failed = Console(stderr=True), 0
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(estimator.name, total=len(videos), completed=len(videos) - len(missing))
        for path in missing:
            try:
                save(extract(estimator, path, flip=arguments.flip), targets[path])
            except DataError as error:
                failed += 1
                console.print(str(error), style="red")
            progress.advance(task)
    estimator.close()
    console.print(f"{len(missing) - failed} extracted, {len(videos) - len(missing)} were there, {failed} failed")
    return 1 if failed or not videos else 0


def main() -> int:
    """Command line; exit codes as the agent's: 0 good, 1 something failed, 78 configuration."""
    parser = argparse.ArgumentParser(description="Extract the poses of all videos below a folder.")
    parser.add_argument("--estimator", default="posenet", help="name of an installed pose estimator plug-in")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="its model file or bundle")
    model.add_argument(
        "--config", type=Path, help="a configuration: its section `pose` names estimator, model and options"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of videos, searched to any depth")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files, same layout")
    parser.add_argument("--flip", action="store_true", help="estimate on mirrored pictures, mirror the poses back")
    parser.add_argument("--threads", type=int, default=0, help="0 = one per core")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--score-threshold", type=float, default=0.1, help="people below are not written")
    try:
        return run(parser.parse_args())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    except RecognizerError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
