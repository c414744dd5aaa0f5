"""`recognizer-agent analyze VIDEO... --out DIR`"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agent.cli import EXIT_FAILED, EXIT_GOOD
from agent.commands.trial import load_trial_config
from agent.config.schema import AgentConfig
from agent.errors import DataError, RecognizerError, SourceError
from agent.offline import FileProgress, Recorder, Summary, count_frames, run_video
from agent.overlay_video import OVERLAY, SceneNotes, draw_overlay
from agent.ports import PipelineListener
from agent.recognition import Recognition, open_recognition


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """A video that cannot be read is reported and costs exit code 1, the others are analysed all the same.

    So does a video of which a part was lost, or on which a model failed, or whose overlay cannot be drawn.
    """
    config = load_trial_config(args.config, env=env)
    results = asyncio.run(_analyze_all(config, args.videos, args.out, overlay=args.overlay))
    summaries = [summary for summary, _ in results]
    if args.json:
        print(json.dumps([asdict(summary) for summary in summaries]))
    else:
        for summary in summaries:
            print(_describe(summary))
    failed = any(summary.error or summary.failures or not drawn for summary, drawn in results)
    return EXIT_FAILED if failed else EXIT_GOOD


async def _analyze_all(
    config: AgentConfig, videos: Sequence[Path], out: Path, *, overlay: bool
) -> list[tuple[Summary, bool]]:
    """Per video what was found in it, and whether its overlay was drawn if one was asked for."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        async with open_recognition(config) as recognition:
            job = _Job(recognition, progress, overlay=overlay)
            named = zip(videos, output_names(videos), strict=True)
            return [await job.analyze(video, out / name) for video, name in named]


class _Job:
    """Videos one after the other through the same models. overlay: draw what was found in each."""

    def __init__(self, recognition: Recognition, progress: Progress, *, overlay: bool) -> None:
        self._recognition = recognition
        self._config = recognition.config
        self._progress = progress
        self._overlay = overlay

    async def analyze(self, video: Path, out: Path) -> tuple[Summary, bool]:
        """See `_analyze_all`. What is wrong with the video or its overlay has been told."""
        recorder = Recorder(
            out,
            video,
            device_id=self._config.device_id,
            models=self._recognition.models,
            progress=self._bar(video.name),
        )
        if not self._overlay:
            await self._record(video, recorder, recorder)
            with contextlib.suppress(OSError):  # an earlier one shows other findings than those that lie beside it now
                (out / OVERLAY).unlink()
            return recorder.summary, True
        alert = {name: service.rules.alert_threshold for name, service in self._config.services.items()}
        with SceneNotes(recorder, out, alert) as notes:
            await self._record(video, recorder, notes)
            return recorder.summary, await self._draw(video, notes, out / OVERLAY)

    async def _record(self, video: Path, recorder: Recorder, listener: PipelineListener) -> None:
        try:
            with recorder:
                _require_text(video)
                if not self._progress.disable:
                    recorder.total_frames = await asyncio.to_thread(count_frames, video)
                recorder.summary.error = await run_video(self._recognition, video, listener)
        except SourceError as error:
            self._tell(error)

    async def _draw(self, video: Path, notes: SceneNotes, path: Path) -> bool:
        blur_faces, progress = self._config.evidence.blur_faces, self._bar(f"{video.name}: {path.name}")
        try:
            await draw_overlay(video, notes, path, blur_faces=blur_faces, progress=progress)
        except (DataError, SourceError) as error:
            self._tell(error)
            return False
        return True

    def _bar(self, text: str) -> FileProgress:
        task = self._progress.add_task(text, total=None)
        return lambda done, total: self._progress.update(task, completed=done, total=total or None)

    def _tell(self, error: RecognizerError) -> None:
        self._progress.console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)


def _require_text(video: Path) -> None:
    """Neither a decoder nor a configuration can be given a name that is no text. Raises SourceError."""
    try:
        str(video.absolute()).encode()
    except UnicodeEncodeError:
        raise SourceError(f"{video}: its name is not UTF-8 (hint: rename it)") from None


def output_names(videos: Sequence[Path]) -> list[str]:
    """A folder name per video: its stem, numbered where two videos share one."""
    names: list[str] = []
    for video in videos:
        stem = Path(os.path.normpath(video.absolute())).stem or "video"  # `..` must not lead out of the folder
        name, n = stem, 2
        while name in names:
            name, n = f"{stem}-{n}", n + 1
        names.append(name)
    return names


def _describe(summary: Summary) -> str:
    if summary.error:
        return f"{summary.video}: failed at {summary.frames} frames: {summary.error}"
    highest = ", ".join(f"{name} {value:.2f}" for name, value in summary.max_probability.items()) or "no window"
    events = ", ".join(f"{count} {kind}" for kind, count in summary.events.items()) or "none"
    return (
        f"{summary.video}: {summary.frames} frames at {summary.frames_per_s:.1f}/s, {summary.tracks} tracks,"
        f" highest probability: {highest}; events: {events}{_describe_failures(summary.failures)}"
    )


def _describe_failures(failures: Mapping[str, int]) -> str:
    """How many there were and the most frequent cause; summary.json has all."""
    if not failures:
        return ""
    cause, count = max(failures.items(), key=lambda item: item[1])
    often = f", most often ({count})" if len(failures) > 1 else ""
    return f"; {sum(failures.values())} inference failures{often}: {cause}"
