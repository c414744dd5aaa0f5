"""`recognizer-agent evaluate pose|tracking|action|events ... --report OUT.json [--gate FILE]`"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, track

from agent import __version__
from agent.cli import EXIT_FAILED, EXIT_GOOD, EXIT_USAGE
from agent.commands.trial import load_trial_config
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.evaluate.action import ClipColumns, action_report, none_positive, read_clips, read_predictions
from agent.evaluate.gate import check, read_bars
from agent.evaluate.output import clear_pictures, pictures_of, prepare, write_page, write_report
from agent.evaluate.pose import read_coco
from agent.evaluate.runs.clips import Examples, only_service, run_clips
from agent.evaluate.runs.images import draw_worst, evaluate_pose
from agent.evaluate.runs.scenes import check_actions, run_scenes
from agent.evaluate.scenarios import plan_of, read_plan
from agent.evaluate.tracking import evaluate_sequences
from agent.recognition import without_own_size
from agent.types import action_slot

T = TypeVar("T")


@dataclass(slots=True)
class Measured:
    """A report and what belongs beside it. failed: how much could not be measured, which the user has been told."""

    report: dict[str, Any]
    models: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    pictures: dict[str, Path] = field(default_factory=dict)


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Measure, write report and page, print the main figures, hold them against the gate."""
    if wrong := _unpaired(args):
        _tell(f"error: {wrong}")
        return EXIT_USAGE
    config = (load_trial_config if _estimates_poses(args) else load_config)(args.config, env=env)
    config = without_own_size(config)  # figures of whole pictures, on a slow machine, too
    bars = read_bars(args.gate, args.bars or _bars_name(args)) if args.gate else None
    prepare(args.report, _sources(args))
    measured = _MEASURE[args.what](config, args)
    report = measured.report | {"about": _about(measured, args.note)}
    outcomes = None if bars is None else check(report, bars)
    if outcomes is not None:
        report["gate"] = {
            "passed": all(one.passed for one in outcomes),
            "missed": [str(one) for one in outcomes if not one.passed],
        }
    write_report(args.report, report)
    missing = write_page(args.report, args.what, report, extra=measured.pictures, gate=outcomes)
    _print_figures(report)
    _warn(missing)
    missed = [one for one in outcomes or () if not one.passed]
    for one in missed:
        _tell(f"missed: {one}")
    return EXIT_FAILED if measured.failed or missed else EXIT_GOOD


def _sources(args: argparse.Namespace) -> list[Path]:
    """Files and folders that the options name for reading."""
    options = [value for name, value in vars(args).items() if name != "report"]
    values = [one for value in options for one in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, Path)]


def _estimates_poses(args: argparse.Namespace) -> bool:
    if args.what == "events":
        return bool(args.poses == "estimator")
    return args.what == "pose" or (args.what == "action" and args.data is not None)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _warn(what: str) -> None:
    if what:
        _tell(f"warning: {what}")


def _about(measured: Measured, note: str) -> dict[str, Any]:
    about: dict[str, Any] = {"version": __version__}
    if measured.models:
        about["models"] = measured.models
    if note:
        about["note"] = note
    return about


def _bars_name(args: argparse.Namespace) -> str:
    return action_slot(args.service) if args.what == "action" else str(args.what)


def _print_figures(report: Mapping[str, Any]) -> None:
    for name, value in report.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            print(f"{name:>16} {value:.4f}" if isinstance(value, float) else f"{name:>16} {value}")
    for name, figures in report.get("services", {}).items():
        median = figures["delay_s"]["median"]
        after = "" if median is None else f" after {median:.1f} s"
        print(
            f"{name:>16} {figures['found']} of {figures['incidents']} found{after},"
            f" {figures['false_alarms']} false alarms ({figures['false_alarms_per_hour']:.1f} an hour)"
        )


def _unpaired(args: argparse.Namespace) -> str:
    """What is wrong with options that belong together in pairs, empty for nothing."""
    for first, second in _PAIRS.get(args.what, ()):
        left, right = len(getattr(args, first)), len(getattr(args, second))
        if left != right:
            return f"{left} times --{first}, but {right} times --{second}: they come in pairs"
    return ""


def _shown(what: str, items: Sequence[T]) -> Iterable[T]:
    """`items` with a progress bar where there is a terminal."""
    console = Console(file=sys.stderr)
    return track(items, what, console=console, disable=not console.is_terminal, transient=True)


# --- kinds ------------------------------------------------------------------------------------------------------------


def _pose(config: AgentConfig, args: argparse.Namespace) -> Measured:
    truth = read_coco(list(zip(args.annotations, args.images, strict=True)))
    clear_pictures(args.report)
    report, found = evaluate_pose(
        config, truth, score_threshold=args.score_threshold, progress=lambda ids: _shown("images", ids)
    )
    for name in report["unreadable"]:
        _tell(f"error: {name} is no image that can be read; left out")
    least_score = max(args.score_threshold, config.pose.score_threshold)
    folder = pictures_of(args.report)
    pictures = draw_worst(truth, found, report, folder, count=args.examples, least_score=least_score)
    return Measured(report, {"pose": report["model"]}, len(report["unreadable"]), pictures)


def _tracking(config: AgentConfig, args: argparse.Namespace) -> Measured:
    files = list(zip(args.detections, args.truth, strict=True))
    return Measured(evaluate_sequences(files, config.tracking, fps=args.fps))


def _action(config: AgentConfig, args: argparse.Namespace) -> Measured:
    columns = ClipColumns(args.label_column, args.source_column, dict(args.where))
    if args.predictions is not None:
        results = read_predictions(args.predictions, columns)
        _warn(none_positive((one.label for one in results), args.service))
        return Measured(action_report(results, args.service, threshold=args.threshold))
    only = only_service(config, args.service)
    clips = read_clips(args.data, columns, args.sources)
    _warn(none_positive((clip.label for clip in clips), args.service))
    clear_pictures(args.report)
    run = asyncio.run(
        run_clips(
            only,
            clips,
            _tell,
            examples=Examples(pictures_of(args.report), args.examples),
            progress=lambda items: _shown("clips", items),
        )
    )
    report = action_report(run.results, args.service, threshold=args.threshold)
    if run.baseline:
        report["baseline"] = run.baseline
    return Measured(report, run.models, run.failed, run.strips)


def _events(config: AgentConfig, args: argparse.Namespace) -> Measured:
    check_actions(config)
    plan = read_plan(args.scenarios) if args.scenarios else plan_of(args.minutes, args.seeds, args.people, args.only)
    clear_pictures(args.report)
    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("frames", total=sum(round(scene.seconds * plan.fps) for scene in plan.scenes()))
        run = asyncio.run(
            run_scenes(
                config,
                plan,
                truth_poses=args.poses == "truth",
                examples=(pictures_of(args.report), args.examples),
                jobs=args.jobs,
                progress=lambda frames: bar.advance(task, frames),
            )
        )
    for problem in run.problems:
        _tell(f"error: {problem}")
    return Measured(run.report, run.models, len(run.problems), run.strips)


_MEASURE = {"pose": _pose, "tracking": _tracking, "action": _action, "events": _events}
_PAIRS = {"pose": [("annotations", "images")], "tracking": [("detections", "truth")]}
