"""The configured pose estimator over annotated images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agent.config.schema import AgentConfig
from agent.drift.card import CardMeter
from agent.errors import DataError, ModelError, RecognizerError
from agent.evaluate.pose import CocoTruth, annotated_people, pose_report
from agent.evaluate.strips import save_strip, shrink, side_by_side
from agent.events.privacy import head_regions, obscure
from agent.overlay import Mode, draw
from agent.plugins import Group, check_people
from agent.ports import PoseEstimator
from agent.recognition import close_model, create_estimator
from agent.types import FrameStamp, ImageArray, People, Tracks, TrackState

_PANEL_PX = 480
Progress = Callable[[list[int]], Iterable[int]]
"""Wraps the image ids to show how far the work is."""


def evaluate_pose(
    config: AgentConfig, truth: CocoTruth, *, score_threshold: float = 0.0, progress: Progress = iter
) -> tuple[dict[str, Any], dict[int, People]]:
    """The report of `pose_report` with `model`, `ms_per_image` and `unreadable`, and the people found per image id.

    score_threshold: people below it are dropped; 0, as the COCO protocol has it, since AP ranks everybody by score.
    baseline: `CardMeter.means` over the people whom the configuration's own threshold lets through, as on a device; absent
    when there are none, or when `score_threshold` is higher and has dropped some of them.
    ms_per_image: median of one call with one image, decoding of the file excluded. Images that OpenCV cannot read are left
    out and named in `unreadable`.
    Raises ConfigError, ModelError (the estimator's own failure on an image included), DataError (not one image is readable).
    """
    pose = config.pose.model_copy(update={"score_threshold": score_threshold})
    estimator = create_estimator(config.model_copy(update={"pose": pose}))
    try:
        found, times_ms, unreadable = _estimate_all(estimator, pose.estimator, truth, progress)
        name = estimator.name
    finally:
        close_model(estimator)
    kept = truth.without(unreadable)
    if not kept.people:
        raise DataError(f"no annotated image can be read, the first: {next(iter(truth.paths.values()))}")
    report = {"model": name, **pose_report(kept, found), "ms_per_image": float(np.median(times_ms))}
    report["unreadable"] = [truth.names[image_id] for image_id in sorted(unreadable)]
    if score_threshold <= config.pose.score_threshold and (means := _means(found, config.pose.score_threshold)):
        report["baseline"] = means
    return report, found


def _means(found: Mapping[int, People], score_threshold: float) -> dict[str, dict[str, float]]:
    """`CardMeter.means` of the people with that score or more."""
    meter = CardMeter()
    for people in found.values():
        meter.observe_people(people.take(people.scores >= score_threshold))
    return meter.means()


def _estimate_all(
    estimator: PoseEstimator, plugin: str, truth: CocoTruth, progress: Progress
) -> tuple[dict[int, People], list[float], set[int]]:
    """People and time (ms) of each image, and the ids of those that cannot be read.

    plugin: its name, for errors. Raises ModelError that names it and the image it failed on.
    """
    found: dict[int, People] = {}
    times_ms: list[float] = []
    unreadable: set[int] = set()
    for image_id in progress(list(truth.paths)):
        path = truth.paths[image_id]
        image = read_image(path)
        if image is None:
            unreadable.add(image_id)
            continue
        with _blamed(plugin, path):
            if not found:
                estimator.estimate([image])  # the first call pays for what is made lazily
            started = time.perf_counter()
            answers = estimator.estimate([image])
            times_ms.append((time.perf_counter() - started) * 1e3)
            found[image_id] = _only(check_people(estimator.name, answers))
    return found, times_ms, unreadable


def _only(answers: list[People]) -> People:
    if len(answers) != 1:
        raise ModelError(f"{len(answers)} results for one image")
    return answers[0]


@contextmanager
def _blamed(plugin: str, path: Path) -> Iterator[None]:
    """Whatever is raised becomes a ModelError that names the plug-in and the image at `path`."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a plug-in's bug is not the agent's: name whose it is
        what = str(error) if isinstance(error, RecognizerError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"plug-in {plugin!r} of {Group.POSE.value} failed on {path}: {what}") from error


def draw_worst(
    truth: CocoTruth,
    found: Mapping[int, People],
    report: Mapping[str, Any],
    folder: Path,
    *,
    count: int,
    least_score: float,
) -> dict[str, Path]:
    """The `count` images of which most people were missed, in `folder`: title -> picture of truth and answer side by side.

    Heads are made unrecognisable, of people who were annotated and of those who were found. least_score: of people drawn; half of
    it: of those whose heads go.
    """
    drawn: dict[str, Path] = {}
    for number, row in enumerate([row for row in report["missed"] if row["missed"]][:count], 1):
        image_id = row["image_id"]
        image = read_image(truth.paths[image_id])
        if image is None:
            continue
        wanted, answer = annotated_people(truth, image_id), found[image_id]
        for people in (wanted, answer.take(answer.scores >= least_score / 2)):  # the rest is mostly floor
            for regions in head_regions(people):
                obscure(image, regions)
        panels = [_drawn(image, people) for people in (wanted, answer.take(answer.scores >= least_score))]
        title = f"Annotated and found: {row['file']}, {row['missed']} of {row['people']} people missed at OKS 0.5"
        drawn[title] = folder / f"missed-{number}.jpg"
        save_strip(drawn[title], side_by_side(panels))
    return drawn


def _drawn(image: ImageArray, people: People) -> ImageArray:
    small = shrink(image, _PANEL_PX)
    height, width = image.shape[:2]
    stamp = FrameStamp("image", 0, 0, datetime(1970, 1, 1, tzinfo=UTC), width, height)
    count = len(people)
    tracks = Tracks(stamp, people, np.arange(1, count + 1), np.full(count, int(TrackState.TRACKED)))
    return draw(small, tracks, mode=Mode.MINIMAL)


def read_image(path: Path) -> ImageArray | None:
    """(H, W, 3) uint8 BGR; None when OpenCV cannot read it."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the caller names the file, once
    try:
        image: ImageArray | None = cv2.imread(str(path), cv2.IMREAD_COLOR)
    finally:
        cv2.utils.logging.setLogLevel(level)
    return image
