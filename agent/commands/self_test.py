"""`recognizer-agent doctor --self-test`: the configured models watch a simulated scene whose truth is known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from agent.commands.finding import Finding
from agent.config.schema import AgentConfig
from agent.evaluate.runs.scenes import run_scenes
from agent.evaluate.scenarios import ScenarioRuns, ScenePlan

PLAN = ScenePlan(runs=(ScenarioRuns(scenario="mixed", seeds=(1,), seconds=45.0),))
"""A fight and a fall among passers-by."""


def self_test(config: AgentConfig) -> Iterator[Finding]:
    """One finding about the speed, one a service: bad when it finds nothing of what there is, warn for single mistakes.

    Takes as long as the models need for 45 s of video.

    Raises what loading the models raises: ConfigError, ModelError, TrustError.
    """
    run = asyncio.run(run_scenes(config, PLAN, score_tracks=False))  # a box has no TrackEval
    for problem in run.problems:
        yield Finding("self-test", "bad", problem)
    speed = float(run.report["speed"])
    text = f"{speed * PLAN.fps:.1f} frames/s of a simulated camera, drawing included"
    yield Finding("self-test: speed", "good" if speed >= 1 else "warn", text)
    for name, figures in run.report["services"].items():
        yield _service(name, figures)


def _service(name: str, figures: dict[str, float]) -> Finding:
    check = f"self-test: {name}"
    if not figures["incidents"]:
        return Finding(check, "warn", f"the scene shows no {name}: not tested")
    text = f"{figures['found']} of {figures['incidents']} found, {figures['false_alarms']} false alarms"
    right = figures["found"] == figures["incidents"] and not figures["false_alarms"]
    return Finding(check, "good" if right else "warn" if figures["found"] else "bad", text)
