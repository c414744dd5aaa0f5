"""`recognizer-agent evaluate pose|tracking|action|events ... --report OUT.json [--gate FILE]`"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import Progress

from agent import __version__
from agent.cli import EXIT_FAILED, EXIT_GOOD, EXIT_USAGE
from agent.commands.trial import load_trial_config
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.evaluate.action import ClipColumns, action_report, none_positive, read_clips, read_predictions
from agent.evaluate.gate import check, read_bars
from agent.evaluate.output import drawn_in, new_pictures, prepare, write_report
from agent.evaluate.pose import read_coco
from agent.evaluate.runs.clips import Examples, only_service, run_clips
from agent.evaluate.runs.images import draw_worst, evaluate_pose
from agent.evaluate.runs.scenes import check_actions, run_scenes
from agent.evaluate.scenarios import plan_of, read_plan
from agent.evaluate.tracking import evaluate_sequences
from agent.recognition import without_own_size
from agent.types import action_slot

T = TypeVar("T")
_LINE_EVERY_S = 10.0


@dataclass(slots=True)
class Measured:
    """A report and what belongs beside it. failed: how much could not be measured, which the user has been told."""

    report: dict[str, Any]
    models: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    pictures: dict[str, Path] = field(default_factory=dict)


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Measure, write report and page, print the main figures, hold them against the gate."""
    if wrong := _unfit(args):
        _tell(f"error: {wrong}")
        return EXIT_USAGE
    config = (load_trial_config if _estimates_poses(args) else load_config)(args.config, env=env)
    config = without_own_size(config)  # figures of whole pictures, on a slow machine, too
    bars = read_bars(args.gate, args.bars or _bars_name(args)) if args.gate else None
    prepare(args.report, _sources(args))
    with new_pictures(args.report):
        with _Meter() as meter:
            measured = _MEASURE[args.what](config, args, meter)
        report = measured.report | {"about": _about(measured, args.note)}
        outcomes = None if bars is None else check(report, bars)
        if outcomes is not None:
            report["gate"] = {
                "passed": all(one.passed for one in outcomes),
                "missed": [str(one) for one in outcomes if not one.passed],
            }
        missing = write_report(args.report, args.what, report, extra=measured.pictures, gate=outcomes)
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


def _unfit(args: argparse.Namespace) -> str:
    """What is wrong with options that belong together, empty for nothing."""
    if args.bars is not None and not args.gate:
        return "--bars needs --gate, the file in which they stand"
    for first, second in _PAIRS.get(args.what, ()):
        left, right = len(getattr(args, first)), len(getattr(args, second))
        if left != right:
            return f"{left} times --{first}, but {right} times --{second}: they come in pairs"
    return ""


class _Meter:
    """Shows on standard error how far the work is: a bar on a terminal, now and then a line elsewhere, where it was stopped."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr)
        self._bar = Progress(console=console, disable=not console.is_terminal, transient=True)
        self._unit, self._done, self._total = "", 0, 0
        self._next_line_s = time.monotonic() + _LINE_EVERY_S

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            _tell(f"stopped{f' at {self._place}' if self._unit else ''}; nothing was written")

    @property
    def _place(self) -> str:
        return f"{self._unit} {self._done} of {self._total}"

    def start(self, unit: str, total: int) -> None:
        """From now on `total` times `unit` are to be done."""
        self._unit, self._total = unit, total
        self._bar.add_task(f"{unit}s", total=total)

    def advance(self, count: int = 1) -> None:
        """So many more."""
        self._done += count
        for task in self._bar.task_ids:
            self._bar.update(task, completed=self._done)
        if self._bar.disable and time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            _tell(self._place)

    def each(self, unit: str, items: Sequence[T]) -> Iterator[T]:
        """`items`, each a `unit`, counted when it is begun."""
        self.start(unit, len(items))
        for item in items:
            self.advance()
            yield item


# --- kinds ------------------------------------------------------------------------------------------------------------


def _pose(config: AgentConfig, args: argparse.Namespace, meter: _Meter) -> Measured:
    truth = read_coco(list(zip(args.annotations, args.images, strict=True)))
    report, found = evaluate_pose(
        config, truth, score_threshold=args.score_threshold, progress=lambda ids: meter.each("image", ids)
    )
    for name in report["unreadable"]:
        _tell(f"error: {name} is no image that can be read; left out")
    least_score = max(args.score_threshold, config.pose.score_threshold)
    folder = drawn_in(args.report)
    pictures = draw_worst(truth, found, report, folder, count=args.examples, least_score=least_score)
    return Measured(report, {"pose": report["model"]}, len(report["unreadable"]), pictures)


def _tracking(config: AgentConfig, args: argparse.Namespace, _: _Meter) -> Measured:
    files = list(zip(args.detections, args.truth, strict=True))
    return Measured(evaluate_sequences(files, config.tracking, fps=args.fps))


def _action(config: AgentConfig, args: argparse.Namespace, meter: _Meter) -> Measured:
    columns = ClipColumns(args.label_column, args.source_column, dict(args.where))
    if args.predictions is not None:
        results = read_predictions(args.predictions, columns)
        _warn(none_positive((one.label for one in results), args.service))
        return Measured(action_report(results, args.service, threshold=args.threshold))
    only = only_service(config, args.service)
    clips = read_clips(args.data, columns, args.sources)
    _warn(none_positive((clip.label for clip in clips), args.service))
    run = asyncio.run(
        run_clips(
            only,
            clips,
            _tell,
            examples=Examples(drawn_in(args.report), args.examples),
            progress=lambda items: meter.each("clip", items),
        )
    )
    report = action_report(run.results, args.service, threshold=args.threshold)
    if run.baseline:
        report["baseline"] = run.baseline
    return Measured(report, run.models, run.failed, run.strips)


def _events(config: AgentConfig, args: argparse.Namespace, meter: _Meter) -> Measured:
    check_actions(config)
    plan = read_plan(args.scenarios) if args.scenarios else plan_of(args.minutes, args.seeds, args.people, args.only)
    meter.start("frame", sum(round(scene.seconds * plan.fps) for scene in plan.scenes()))
    run = asyncio.run(
        run_scenes(
            config,
            plan,
            truth_poses=args.poses == "truth",
            examples=(drawn_in(args.report), args.examples),
            jobs=args.jobs,
            progress=meter.advance,
        )
    )
    for problem in run.problems:
        _tell(f"error: {problem}")
    return Measured(run.report, run.models, len(run.problems), run.strips)


_MEASURE = {"pose": _pose, "tracking": _tracking, "action": _action, "events": _events}
_PAIRS = {"pose": [("annotations", "images")], "tracking": [("detections", "truth")]}
