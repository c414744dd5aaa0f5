"""Simulated scenes through the whole pipeline: one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process

from agent.causes import first_cause
from agent.config.schema import AgentConfig, LogConfig
from agent.drift.card import CardMeter
from agent.errors import ModelError
from agent.evaluate.runs.judged import Judged, judge
from agent.evaluate.runs.mistakes import Mistake, kept_every, mistakes_of, worst
from agent.evaluate.runs.playback import SceneStream, SceneWatcher, TruthEstimator
from agent.evaluate.scenarios import ScenePlan, SceneRun
from agent.evaluate.sketch import SketchScene
from agent.evaluate.truth_poses import NoisyTruth
from agent.observe.logging import configure_logging
from agent.recognition import Recognition, open_recognition
from agent.runtime.devices import core_count
from agent.simulation.scene import SimulatedScene, build_scene
from agent.simulation.scripts import build_script
from agent.simulation.values import Truth


@dataclass(frozen=True, slots=True)
class Stage:
    """What all scenes are played on. strips: of so many mistakes."""

    plan: ScenePlan
    truth_poses: bool
    strips: int

    def estimator(self) -> TruthEstimator | None:
        """None = the configured one."""
        return TruthEstimator() if self.truth_poses else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one scene. mistakes: the worst ones."""

    judged: Judged
    mistakes: list[Mistake]
    meter: CardMeter


async def play_here(
    recognition: Recognition, estimator: TruthEstimator | None, stage: Stage, progress: Callable[[int], None]
) -> AsyncIterator[Outcome]:
    """One scene after the other."""
    for run in stage.plan.scenes():
        yield await _play(recognition, estimator, run, stage, progress)


async def play_apart(
    config: AgentConfig, stage: Stage, jobs: int, progress: Callable[[int], None]
) -> AsyncIterator[Outcome]:
    """`jobs` scenes at a time, each in a process of its own; in their order. Raises ModelError when one dies."""
    threads = config.pose.threads or max(1, core_count() // jobs)
    config = config.model_copy(update={"pose": config.pose.model_copy(update={"threads": threads})})
    runs, loop = list(stage.plan.scenes()), asyncio.get_running_loop()
    others = set(active_children())
    processes = ProcessPoolExecutor(min(jobs, len(runs)), get_context("spawn"), _end_with_parent)
    played = [loop.run_in_executor(processes, _play_alone, config, run, stage) for run in runs]
    try:
        for run, outcome in zip(runs, played, strict=True):
            yield await outcome
            progress(round(run.seconds * stage.plan.fps))
    except BrokenProcessPool as error:
        raise ModelError("a process that played a scene has died (hint: fewer --jobs take less memory)") from error
    finally:
        if not all(one.done() for one in played):  # nobody waits for minutes
            for process in set(active_children()) - others:
                process.terminate()
        processes.shutdown(cancel_futures=True)
        await asyncio.gather(*played, return_exceptions=True)  # one failure is told, not that of all that waited


def _end_with_parent() -> None:
    """However that ends: nobody would hear what this process finds."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _play_alone(config: AgentConfig, run: SceneRun, stage: Stage) -> Outcome:
    """In a process that has nothing yet."""

    async def play() -> Outcome:
        estimator = stage.estimator()
        async with open_recognition(config, estimator=estimator) as recognition:
            return await _play(recognition, estimator, run, stage, lambda _: None)

    configure_logging(LogConfig(level="warning"))
    return asyncio.run(play())


async def _play(
    recognition: Recognition,
    estimator: TruthEstimator | None,
    run: SceneRun,
    stage: Stage,
    progress: Callable[[int], None],
) -> Outcome:
    plan, meter = stage.plan, CardMeter()
    watcher = SceneWatcher(partial(progress, 1), meter, keep_every=kept_every(plan.fps) if stage.strips else 0)
    judged = await _run_scene(recognition, estimator, run, plan, watcher)
    found = mistakes_of(run, judged.matchings, watcher, recognition.config.services, plan.fps)
    return Outcome(judged, worst(found, stage.strips), meter)  # the tracks of all other moments go with the watcher


async def _run_scene(
    recognition: Recognition,
    estimator: TruthEstimator | None,
    run: SceneRun,
    plan: ScenePlan,
    watcher: SceneWatcher,
) -> Judged:
    scene = await asyncio.to_thread(build, run, plan)
    noise = NoisyTruth(run.seed)

    def on_truth(truth: Truth) -> None:
        watcher.on_truth(truth)
        if estimator is not None:
            estimator.tell(noise.people(truth))

    stage = scene if estimator is None else SketchScene(scene.script, scene.camera)
    stream = SceneStream(stage, fps=plan.fps, seconds=run.seconds, on_truth=on_truth, off_loop=estimator is None)
    camera = recognition.camera(stream, watcher, services=None, fps=lambda: plan.fps)
    try:
        await camera.pipeline.run()
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    return judge(recognition.config, run, scene.script, watcher)


def build(run: SceneRun, plan: ScenePlan) -> SimulatedScene:
    """The scene of `run`."""
    script = build_script(run.scenario, seed=run.seed, people=run.people)
    return build_scene(script, seed=run.seed, width=plan.size[0], height=plan.size[1])
