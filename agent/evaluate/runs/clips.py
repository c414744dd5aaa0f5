"""One service over labelled clips, each through a pipeline of its own as `analyze` would run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.config.schema import AgentConfig
from agent.errors import ConfigError, ConfigProblem, DataError, SourceError
from agent.evaluate.action import Clip, ClipResult
from agent.evaluate.strips import StripMaker, save_strip
from agent.offline import ScoreCollector, run_video
from agent.recognition import Recognition, open_recognition
from agent.types import Frame, ImageArray, People, Tracks


@dataclass(frozen=True, slots=True)
class Examples:
    """Where strips of the clips with the worst calls go, and how many of them."""

    folder: Path
    count: int


@dataclass(frozen=True, slots=True)
class ClipRun:
    """results: of all clips that could be read; problems, warnings: what to tell the user; strips: title -> file."""

    results: list[ClipResult]
    problems: list[str]
    warnings: list[str]
    strips: dict[str, Path]
    models: dict[str, str]


class _Watcher(ScoreCollector):
    """Keeps the highest probability and, for the worst examples, a few frames."""

    def __init__(self, service: str, strips: StripMaker | None) -> None:
        super().__init__(service)
        self.strips = strips

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        if self.strips is not None:
            self.strips.add(frame, people, tracks)


async def run_clips(
    config: AgentConfig,
    service: str,
    clips: Sequence[Clip],
    *,
    examples: Examples | None = None,
    progress: Callable[[Sequence[Clip]], Iterable[Clip]] = iter,
) -> ClipRun:
    """Classify `clips` with `service`. A clip that cannot be read is left out and a problem.

    A clip with failed inferences is a problem too, though its probability counts: it is not what the model would have said.
    Raises ConfigError (no such service), ModelError, DataError (not one clip could be read).
    """
    if service not in config.services:
        known = ", ".join(config.services) or "none"
        raise ConfigError([ConfigProblem(f"there is no service {service!r}", path="services", hint=f"known: {known}")])
    only = config.model_copy(update={"services": {service: config.services[service]}})
    worst = _Worst(examples)
    run = ClipRun([], [], [], {}, {})
    async with open_recognition(only) as recognition:
        run.models.update(recognition.models)
        for clip in progress(clips):
            await _run_clip(recognition, service, clip, run, worst)
    if not run.results:
        raise DataError(f"none of the {len(clips)} clips could be read, the first: {run.problems[0]}")
    run.strips.update(worst.save())
    return run


async def _run_clip(recognition: Recognition, service: str, clip: Clip, run: ClipRun, worst: _Worst) -> None:
    watcher = _Watcher(service, StripMaker() if worst.wanted else None)
    try:
        lost = await run_video(recognition, clip.path, watcher)
    except SourceError as error:
        run.problems.append(str(error))
        return
    if watcher.failures:
        count, first = len(watcher.failures), watcher.failures[0]
        run.problems.append(f"{clip.path}: {count} failed inferences, the first: {first}")
    if lost:
        run.warnings.append(lost)
    result = ClipResult(clip.file, clip.label, watcher.probability, clip.source)
    run.results.append(result)
    if watcher.strips is not None:
        worst.offer(result, service, watcher.strips.strip())


class _Worst:
    """The strips of the clips whose probability is farthest from the truth, no more than wanted in memory."""

    def __init__(self, examples: Examples | None) -> None:
        self._examples = examples
        self._kept: list[tuple[float, ClipResult, ImageArray]] = []

    @property
    def wanted(self) -> bool:
        return self._examples is not None and self._examples.count > 0

    def offer(self, result: ClipResult, service: str, strip: ImageArray | None) -> None:
        if strip is None or self._examples is None:
            return
        error = abs(float(result.label == service) - result.probability)
        self._kept = sorted([*self._kept, (error, result, strip)], key=lambda one: -one[0])[: self._examples.count]

    def save(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for number, (_, result, strip) in enumerate(self._kept, start=1):
            if self._examples is not None:
                path = self._examples.folder / f"worst-{number}.jpg"
                save_strip(path, strip)
                files[f"{result.file}: {result.label}, probability {result.probability:.3f}"] = path
        return files
