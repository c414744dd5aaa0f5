"""One service over labelled clips, each through a pipeline of its own as `analyze` would run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.config.schema import AgentConfig
from agent.drift.card import CardMeter
from agent.errors import ConfigError, ConfigProblem, DataError, SourceError
from agent.evaluate.action import Clip, ClipResult
from agent.evaluate.strips import StripMaker, save_strip
from agent.offline import ScoreCollector, run_video
from agent.recognition import Recognition, open_recognition
from agent.types import ActionScores, Frame, ImageArray, People, Tracks


@dataclass(frozen=True, slots=True)
class Examples:
    """Where strips of the clips with the worst calls go, and how many of them."""

    folder: Path
    count: int


@dataclass(frozen=True, slots=True)
class ClipRun:
    """results: of all clips that could be read; failed: clips with a problem; strips: title -> file.

    baseline: `CardMeter.means` over every frame and window, those of clips that broke off included.
    """

    results: list[ClipResult]
    failed: int
    strips: dict[str, Path]
    models: dict[str, str]
    baseline: dict[str, dict[str, float]]


class _Watcher(ScoreCollector):
    """Keeps the highest probability and, for the worst examples, a few frames; tells the meter what it sees."""

    def __init__(self, service: str, strips: StripMaker | None, meter: CardMeter) -> None:
        super().__init__(service)
        self.strips = strips
        self._meter = meter

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        self._meter.observe_people(people)
        if self.strips is not None:
            self.strips.add(frame, people, tracks)

    def on_scores(self, scores: ActionScores) -> None:
        super().on_scores(scores)
        self._meter.observe_scores(scores)


def only_service(config: AgentConfig, service: str) -> AgentConfig:
    """`config` with this service alone, enabled: who names it wants it. Raises ConfigError when there is none of that name."""
    if service not in config.services:
        known = ", ".join(config.services) or "none"
        raise ConfigError([ConfigProblem(f"there is no service {service!r}", path="services", hint=f"known: {known}")])
    wanted = config.services[service].model_copy(update={"enabled": True})
    return config.model_copy(update={"services": {service: wanted}})


async def run_clips(
    config: AgentConfig,
    clips: Sequence[Clip],
    tell: Callable[[str], None],
    *,
    examples: Examples | None = None,
    progress: Callable[[Sequence[Clip]], Iterable[Clip]] = iter,
) -> ClipRun:
    """Classify `clips` with the one service of `config` (see `only_service`).

    tell: takes a line for the user about a clip that cannot be read (it is left out), that is damaged, or on which
    inferences failed (its probability counts, but it is not what the model would have said).
    Raises ModelError, DataError (not one clip could be read).
    """
    (service,) = config.services
    worst, meter = _Worst(examples), CardMeter()
    results: list[ClipResult] = []
    failed = 0
    async with open_recognition(config) as recognition:
        models = recognition.models
        for clip in progress(clips):
            watcher = _Watcher(service, StripMaker() if worst.wanted else None, meter)
            if not await _run_clip(recognition, clip, watcher, tell):
                failed += 1
                continue
            failed += bool(watcher.failures)
            results.append(ClipResult(clip.file, clip.label, watcher.probability, clip.source))
            if watcher.strips is not None:
                worst.offer(results[-1], service, watcher.strips.strip())
    if not results:
        raise DataError(f"none of its {len(clips)} clips could be read")
    return ClipRun(results, failed, worst.save(), models, meter.means())


async def _run_clip(recognition: Recognition, clip: Clip, watcher: _Watcher, tell: Callable[[str], None]) -> bool:
    """Whether the clip could be read."""
    try:
        lost = await run_video(recognition, clip.path, watcher)
    except SourceError as error:
        tell(f"error: {error}")
        return False
    if watcher.failures:
        tell(f"error: {clip.path}: {len(watcher.failures)} failed inferences, the first: {watcher.failures[0]}")
    if lost:
        tell(f"warning: {lost}")
    return True


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
