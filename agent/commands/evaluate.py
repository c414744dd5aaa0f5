"""`recognizer-agent evaluate pose|tracking|action ... --report OUT.json`"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from agent.cli import EXIT_FAILED, EXIT_GOOD, EXIT_USAGE
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.errors import ConfigError, ConfigProblem, DataError, SourceError
from agent.evaluate.action import ClipResult, action_report, read_clips
from agent.evaluate.pose import read_coco
from agent.evaluate.runs.images import evaluate_pose
from agent.evaluate.tracking import evaluate_tracking
from agent.offline import ScoreCollector, run_video
from agent.recognition import open_recognition


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Write the report and print its main figures."""
    config = load_config(args.config, env=env)
    if args.what == "pose" and len(args.annotations) != len(args.images):
        print("error: as many --images as --annotations are needed", file=sys.stderr)
        return EXIT_USAGE
    args.report.parent.mkdir(parents=True, exist_ok=True)
    _partial(args.report).touch()  # an hour of work must not end at a folder that cannot be written
    if args.what == "tracking":
        report = evaluate_tracking(args.detections, args.truth, config.tracking, fps=args.fps)
        failed = 0
    elif args.what == "pose":
        report, failed = _evaluate_pose(config, args)
    else:
        report, failed = asyncio.run(_evaluate_action(config, args.service, args.data, args.threshold))
    write_report(args.report, report)
    for name, value in report.items():
        if isinstance(value, int | float):
            print(f"{name:>16} {value:.4f}" if isinstance(value, float) else f"{name:>16} {value}")
    return EXIT_FAILED if failed else EXIT_GOOD


def _evaluate_pose(config: AgentConfig, args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The report, and how many images could not be read."""
    console = Console(file=sys.stderr)
    truth = read_coco(list(zip(args.annotations, args.images, strict=True)))
    report, _ = evaluate_pose(
        config,
        truth,
        score_threshold=args.score_threshold,
        progress=lambda ids: track(ids, "images", console=console, disable=not console.is_terminal, transient=True),
    )
    for name in report["unreadable"]:
        print(f"error: {name} is no image that can be read; left out", file=sys.stderr)
    return report, len(report["unreadable"])


async def _evaluate_action(
    config: AgentConfig, service: str, data: Path, threshold: float
) -> tuple[dict[str, Any], int]:
    """The report, and on how many clips something failed. Those that cannot be read are left out of it.

    Raises DataError when that leaves none.
    """
    if service not in config.services:
        known = ", ".join(config.services) or "none"
        raise ConfigError([ConfigProblem(f"there is no service {service!r}", path="services", hint=f"known: {known}")])
    only = config.model_copy(update={"services": {service: config.services[service]}})
    clips = read_clips(data)
    results: list[ClipResult] = []
    failed = 0
    console = Console(file=sys.stderr)
    async with open_recognition(only) as recognition:
        for clip in track(clips, "clips", console=console, disable=not console.is_terminal, transient=True):
            collector = ScoreCollector(service)
            try:
                lost = await run_video(recognition, clip.path, collector)
            except SourceError as error:
                print(f"error: {error}", file=sys.stderr)
                failed += 1
                continue
            if collector.failures:  # its probability counts, but it is not what the model would have said
                count, first = len(collector.failures), collector.failures[0]
                print(f"error: {clip.path}: {count} failed inferences, the first: {first}", file=sys.stderr)
                failed += 1
            if lost:
                print(f"warning: {lost}", file=sys.stderr)
            results.append(ClipResult(clip.file, clip.label, collector.probability))
    if not results:
        raise DataError(f"{data}: none of its {len(clips)} clips could be read")
    return action_report(results, service, threshold=threshold), failed


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """JSON, written whole or not at all."""
    partial = _partial(path)
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
