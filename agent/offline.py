"""Files through the pipeline: every frame, as fast as the models go, results to files instead of a broker."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import numpy as np

from agent.capture.camera import open_camera
from agent.capture.sources import build_source
from agent.causes import first_cause
from agent.config.schema import CameraConfig
from agent.errors import RecognizerError, SourceError
from agent.evaluate.mot import write_tracks
from agent.events.cloudevents import render
from agent.ports import PipelineListener, VideoSource
from agent.recognition import Recognition
from agent.types import ActionScores, Event, FloatArray, Frame, People, Tracks

FileProgress = Callable[[int, int], None]
"""Called with (frames done, frames in all; 0 = unknown)."""


async def run_video(
    recognition: Recognition, path: Path, listener: PipelineListener, *, services: tuple[str, ...] | None = None
) -> str:
    """One file or folder through a pipeline of its own; what of it was lost (damaged, cut off), empty for nothing.

    Raises SourceError when it cannot be read, FatalError and bugs of the pipeline.
    """
    async with open_camera(_as_camera(path)) as camera:
        run = recognition.camera(camera, listener, services=services, fps=lambda: camera.report().expected_fps)
        try:
            await run.pipeline.run()
        except BaseExceptionGroup as group:
            raise first_cause(group) from group
        return camera.status().error


def count_frames(path: Path) -> int:
    """How many frames the video says it has, 0 = it does not say. Blocks while it opens."""
    source = file_source(path)
    try:
        return source.open().frame_count
    except SourceError:
        return 0
    finally:
        source.close()


def file_source(path: Path) -> VideoSource:
    """The frames of a file or folder as `run_video` sees them, for a look of one's own; not open yet."""
    return build_source(_as_camera(path)).source


def _as_camera(path: Path) -> CameraConfig:
    return CameraConfig(id=camera_id_of(path), source=str(path.absolute()), frozen_after_s=0, blind_after_s=0)


def camera_id_of(path: Path) -> str:
    """A valid camera id made of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")[:64] or "video"


@dataclass(slots=True)
class Summary:
    """summary.json. Times in s, probabilities 0-1."""

    video: str
    frames: int = 0
    duration_s: float = 0.0
    wall_s: float = 0.0
    frames_per_s: float = 0.0
    width: int = 0
    height: int = 0
    people_per_frame: float = 0.0
    tracks: int = 0
    windows: dict[str, int] = field(default_factory=dict)
    max_probability: dict[str, float] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    error: str = ""


class Recorder:
    """A PipelineListener that writes `poses.jsonl`, `tracks.txt`, `events.jsonl`, `windows.jsonl`, `summary.json`.

    Files appear under their names when the video is done; until then, and for ever after a crash, they end in
    `.partial`. Frames count from 1 in all of them, as in the MOT format.
    """

    def __init__(
        self, out: Path, video: Path, *, device_id: str, models: dict[str, str], progress: FileProgress | None = None
    ) -> None:
        self.summary = Summary(str(video), models=models)
        self._out = out
        self._device_id = device_id
        self._progress = progress
        self._files: dict[str, TextIO] = {}
        self._track_ids: set[int] = set()
        self._people = 0
        self._sequence = 0
        self._failures: Counter[str] = Counter()
        self._started = time.perf_counter()
        self.total_frames = 0

    def __enter__(self) -> Self:
        self._out.mkdir(parents=True, exist_ok=True)
        for name in ("poses.jsonl", "tracks.txt", "windows.jsonl", "events.jsonl"):
            self._files[name] = (self._out / f"{name}.partial").open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        if error is not None and not isinstance(error, RecognizerError):
            return
        for name in self._files:
            (self._out / f"{name}.partial").replace(self._out / name)
        self._finish(str(error) if error else self.summary.error)

    def _finish(self, error: str) -> None:
        summary = self.summary
        summary.error = error
        summary.wall_s = round(time.perf_counter() - self._started, 3)
        summary.frames_per_s = round(summary.frames / summary.wall_s, 2) if summary.wall_s else 0.0
        summary.people_per_frame = round(self._people / summary.frames, 3) if summary.frames else 0.0
        summary.tracks = len(self._track_ids)
        summary.failures = dict(self._failures)
        (self._out / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, _tracking_s: float) -> None:
        stamp, summary = frame.stamp, self.summary
        summary.frames += 1
        summary.duration_s = round(stamp.t_mono_ns / 1e9, 3)
        summary.width, summary.height = stamp.width, stamp.height
        self._people += len(people)
        self._track_ids.update(tracks.track_ids.tolist())
        line = {"frame": summary.frames, "t": summary.duration_s, "people": _people_json(people)}
        self._files["poses.jsonl"].write(json.dumps(line, separators=(",", ":")) + "\n")
        write_tracks(self._files["tracks.txt"], summary.frames, tracks)
        if self._progress is not None:
            self._progress(summary.frames, self.total_frames)

    def on_scores(self, scores: ActionScores) -> None:
        summary, service = self.summary, scores.service
        summary.windows[service] = summary.windows.get(service, 0) + 1
        best = max(summary.max_probability.get(service, 0.0), scores.probability)
        summary.max_probability[service] = round(best, 4)
        line = {
            "service": service, "t_start": round(scores.t_start_ns / 1e9, 3), "t_end": round(scores.t_end_ns / 1e9, 3),
            "probability": round(scores.probability, 4), "track_ids": scores.track_ids,
        }  # fmt: skip
        self._files["windows.jsonl"].write(json.dumps(line) + "\n")

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        self._failures[f"{stage}: {error}"] += 1

    async def on_event(self, event: Event) -> None:
        self._sequence += 1
        self.summary.events[event.kind] = self.summary.events.get(event.kind, 0) + (event.phase == "detected")
        payload = render(
            event, device_id=self._device_id, sequence=self._sequence, emitted_utc=datetime.now(UTC),
            models=self.summary.models,
        )  # fmt: skip
        self._files["events.jsonl"].write(payload.decode() + "\n")


def _people_json(people: People) -> list[dict[str, object]]:
    points: FloatArray = np.concatenate([people.keypoints, people.keypoint_scores[..., None]], axis=2)
    columns = zip(_rounded(people.boxes, 1), _rounded(people.scores, 3), _rounded(points, 2), strict=True)
    return [{"box": box, "score": score, "keypoints": keypoints} for box, score, keypoints in columns]


def _rounded(array: FloatArray, digits: int) -> list[object]:
    return [] if not len(array) else np.round(array.astype(np.float64), digits).tolist()


class ScoreCollector:
    """A PipelineListener that keeps the highest probability of one service."""

    def __init__(self, service: str) -> None:
        self.probability = 0.0
        self.windows = 0
        self.failures: list[str] = []
        self._service = service

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        """Frames do not matter here."""

    def on_scores(self, scores: ActionScores) -> None:
        if scores.service == self._service:
            self.windows += 1
            self.probability = max(self.probability, scores.probability)

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        self.failures.append(f"{stage}: {error}")

    async def on_event(self, event: Event) -> None:
        """Events do not matter here."""
