"""A plug-in package made on the spot: replayed poses and scripted verdicts for an agent in a process of its own.

`install` writes a distribution with entry points into a folder; with that folder on PYTHONPATH the agent finds the
pose estimator `replay` and the action classifier `scripted` as it finds any plug-in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.config.schema import PoseConfig, ServiceConfig
from agent.errors import ModelError
from agent.types import FloatArray, ImageArray, People

_ENTRY_POINTS = """[recognizer_agent.pose_estimators]
replay = fakes.plugin:create_estimator
failing = fakes.plugin:create_failing_estimator
[recognizer_agent.action_classifiers]
scripted = fakes.plugin:create_classifier
"""


_CRASHING = """[recognizer_agent.action_classifiers]
crashing = fakes.crashing:create
"""


_GATED = """[recognizer_agent.pose_estimators]
gated = fakes.gated:create_estimator
[recognizer_agent.sources]
scripted = fakes.gated:create_source
"""


def install(folder: Path) -> str:
    """Make the plug-in visible in `folder`; returns the PYTHONPATH for the agent's process."""
    return _install(folder, _ENTRY_POINTS)


def install_crashing(folder: Path) -> str:
    """As `install`, for the classifier of `fakes.crashing`."""
    return _install(folder, _CRASHING)


def install_gated(folder: Path) -> str:
    """As `install`, for the estimator and the sources of `fakes.gated`."""
    return _install(folder, _GATED)


def _install(folder: Path, entry_points: str) -> str:
    info = folder / "recognizer_fakes-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recognizer-fakes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    tests = Path(__file__).resolve().parent.parent
    return f"{folder}:{tests}"


def save_recording(path: Path, recording: Sequence[People]) -> Path:
    """Write poses for `create_estimator`."""
    np.savez(
        path,
        counts=np.array([len(people) for people in recording]),
        boxes=np.concatenate([people.boxes for people in recording]),
        keypoints=np.concatenate([people.keypoints for people in recording]),
        keypoint_scores=np.concatenate([people.keypoint_scores for people in recording]),
        scores=np.concatenate([people.scores for people in recording]),
    )
    return path


def load_recording(path: Path) -> list[People]:
    """The inverse of `save_recording`."""
    with np.load(path) as arrays:
        ends = np.cumsum(arrays["counts"])[:-1]
        names = ("boxes", "keypoints", "keypoint_scores", "scores")
        parts = [np.split(arrays[name], ends) for name in names]
    return [People(*(part.copy() for part in frame)) for frame in zip(*parts, strict=True)]


class _ReplayEstimator:
    """The n-th image gets the n-th recorded People, over and over."""

    name = "replay-1"
    max_batch = 8

    def __init__(self, recording: list[People]) -> None:
        self._recording = recording
        self._next = 0

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        first, self._next = self._next, self._next + len(images)
        return [self._recording[n % len(self._recording)] for n in range(first, self._next)]

    def close(self) -> None:
        """Nothing to free."""


class _FailingEstimator:
    """Sees nobody in the first `good` calls; the next raises, or answers with, what `how` says; so does its end."""

    name = "failing-1"
    max_batch = 1

    def __init__(self, how: str, good: int) -> None:
        self._how = how
        self._good = good

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        self._good -= 1
        if self._good >= 0:
            return [People.empty() for _ in images]
        match self._how:
            case "exit":
                sys.exit(3)
            case "model":
                raise ModelError("out of order")
            case "nothing":
                return []
            case "text":
                return ["nobody"]  # type: ignore[list-item]  # on purpose
        raise ValueError("a bug")

    def close(self) -> None:
        match self._how:
            case "close":
                raise ValueError("a bug")
            case "exit at close":
                sys.exit(3)


class _ScriptedClassifier:
    """Answers with the probabilities of the option `script`, over and over; with `broken_close` its end raises."""

    def __init__(self, service: str, config: ServiceConfig) -> None:
        window = config.window
        self.name = f"scripted-{service}"
        self.labels = (service, "other")
        self.input_shape = (window.people, window.length, 17, window.channels)
        self._script: list[float] = list(config.options.get("script", [0.0]))
        self._next = 0
        self._broken = bool(config.options.get("broken_close"))

    def classify(self, batch: FloatArray) -> FloatArray:
        answers = []
        for _ in batch:
            probability = self._script[self._next % len(self._script)]
            self._next += 1
            answers.append((probability, 1 - probability))
        return np.array(answers, np.float32)

    def close(self) -> None:
        if self._broken:
            raise ValueError("a bug")


def create_estimator(config: PoseConfig) -> Any:
    """Entry point `replay`; `pose.model` names the recording."""
    assert config.model is not None
    return _ReplayEstimator(load_recording(config.model))


def create_failing_estimator(config: PoseConfig) -> Any:
    """Entry point `failing`; options `how` and `good`."""
    return _FailingEstimator(str(config.options["how"]), int(config.options["good"]))


def create_classifier(name: str, config: ServiceConfig) -> Any:
    """Entry point `scripted`."""
    return _ScriptedClassifier(name, config)
