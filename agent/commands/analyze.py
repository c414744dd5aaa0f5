"""`recognizer-agent analyze VIDEO... --out DIR`"""

from __future__ import annotations

import argparse
import asyncio
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
from agent.errors import SourceError
from agent.offline import Recorder, Summary, count_frames, run_video
from agent.recognition import Recognition, open_recognition


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """A video that cannot be read is reported and costs exit code 1, the others are analysed all the same.

    So does a video of which a part was lost, or on which a model failed.
    """
    config = load_trial_config(args.config, env=env)
    summaries = asyncio.run(_analyze_all(config, args.videos, args.out))
    if args.json:
        print(json.dumps([asdict(summary) for summary in summaries]))
    else:
        for summary in summaries:
            print(_describe(summary))
    return EXIT_FAILED if any(summary.error or summary.failures for summary in summaries) else EXIT_GOOD


async def _analyze_all(config: AgentConfig, videos: Sequence[Path], out: Path) -> list[Summary]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        async with open_recognition(config) as recognition:
            names = output_names(videos)
            return [
                await _analyze(recognition, video, out / name, config.device_id, progress)
                for video, name in zip(videos, names, strict=True)
            ]


async def _analyze(recognition: Recognition, video: Path, out: Path, device_id: str, progress: Progress) -> Summary:
    task = progress.add_task(video.name, total=None)

    def advance(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total or None)

    recorder = Recorder(out, video, device_id=device_id, models=recognition.models, progress=advance)
    try:
        with recorder:
            if not progress.disable:
                recorder.total_frames = await asyncio.to_thread(count_frames, video)
            recorder.summary.error = await run_video(recognition, video, recorder)
    except SourceError as error:
        progress.console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    return recorder.summary


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
    failures = f"; {sum(summary.failures.values())} inference failures" if summary.failures else ""
    return (
        f"{summary.video}: {summary.frames} frames at {summary.frames_per_s:.1f}/s, {summary.tracks} tracks,"
        f" highest probability: {highest}; events: {events}{failures}"
    )
