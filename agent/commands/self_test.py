"""`recognizer-agent doctor --self-test`: action models on the true poses of a simulated scene, estimator and tracking on its pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from agent.commands.finding import Finding
from agent.config.schema import AgentConfig, TrackingConfig
from agent.errors import ModelError, RecognizerError
from agent.evaluate.runs.scenes import run_scenes
from agent.evaluate.scenarios import ScenarioRuns, ScenePlan
from agent.observe.logging import mask_text
from agent.pipeline.worker import BatchWorker
from agent.ports import PoseEstimator
from agent.recognition import close_model, create_estimator
from agent.simulation.scene import build_scene
from agent.simulation.scripts import build_script
from agent.simulation.values import Shot
from agent.tracking.association import assign, pairwise_iou
from agent.tracking.bytetrack import ByteTracker
from agent.types import ImageArray, People

PLAN = ScenePlan(runs=(ScenarioRuns(scenario="mixed", seeds=(1_000_001,), seconds=45.0),))
"""A fight and a fall among passers-by."""
PICTURES = 30
"""Of the scene, evenly spread, for the estimator."""
ENOUGH = 0.5
"""Share of the people that an estimator who knows drawn ones finds at least, and of these, that tracking keeps."""
_SHOWN = 0.5
"""Who is hidden more than this need not be found."""
_SAME_IOU = 0.5
_HINT = (
    "an estimator trained on photographs may not know drawn people: try `recognizer-agent analyze` on a clip of a real "
    "camera"
)
_UNTRACKED = "this estimator's scores are below tracking.track_threshold + new_margin, where tracks start: lower them"


def self_test(config: AgentConfig) -> Iterator[Finding]:
    """The action models by themselves, then the configured estimator by itself.

    A service: bad when it finds nothing of what there is, warn for single mistakes. The estimator: bad when it fails or
    answers malformed, or when it finds people and the configured tracking keeps none, warn when it finds or tracking keeps few,
    or it is slower than a camera. Models that cannot be loaded are bad too.
    """
    yield from _attempt("self-test", lambda: _services(config))
    yield from _attempt("self-test: pose model", lambda: _pose(config))


def _attempt(check: str, part: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from part()
    except RecognizerError as error:
        yield Finding(check, "bad", mask_text(str(error)))


def _services(config: AgentConfig) -> Iterator[Finding]:
    run = asyncio.run(run_scenes(config, PLAN, truth_poses=True, score_tracks=False))  # a box has no TrackEval
    for problem in run.problems:
        yield Finding("self-test", "bad", problem)
    for name, figures in run.report["services"].items():
        yield _service(name, figures)


def _service(name: str, figures: dict[str, float]) -> Finding:
    check = f"self-test: {name}"
    if not figures["incidents"]:
        return Finding(check, "warn", f"the scene shows no {name}: not tested")
    text = f"{figures['found']} of {figures['incidents']} found, {figures['false_alarms']} false alarms, on true poses"
    right = figures["found"] == figures["incidents"] and not figures["false_alarms"]
    return Finding(check, "good" if right else "warn" if figures["found"] else "bad", text)


def _pose(config: AgentConfig) -> Iterator[Finding]:
    estimator = create_estimator(config)
    try:
        trial = asyncio.run(try_estimator(estimator, drawn_shots(), config.tracking))
    finally:
        close_model(estimator)
    yield _seen(trial)
    speed = f"{trial.ms_per_picture:.1f} ms a picture, {1e3 / trial.ms_per_picture:.1f} pictures/s"
    quick = trial.ms_per_picture * PLAN.fps <= 1e3
    text = speed if quick else f"{speed}: of a camera's {PLAN.fps:g} some will be left out"
    yield Finding("self-test: speed", "good" if quick else "warn", text)


@dataclass(frozen=True, slots=True)
class Trial:
    """People clearly to be seen in all pictures together, how many of them were found and tracked; median time of a picture."""

    shown: int
    found: int
    tracked: int
    ms_per_picture: float


def _seen(trial: Trial) -> Finding:
    text = f"{trial.found} of {trial.shown} people of a drawn scene found, {trial.tracked} tracked"
    state, hint = "good", ""
    if trial.found < ENOUGH * trial.shown:
        state, hint = "warn", _HINT
    elif trial.tracked < ENOUGH * trial.found:
        state, hint = "warn" if trial.tracked else "bad", _UNTRACKED
    return Finding("self-test: pose model", state, f"{text} ({hint})" if hint else text)


async def try_estimator(estimator: PoseEstimator, shots: Iterable[Shot], tracking: TrackingConfig) -> Trial:
    """`estimator` on one or more pictures whose truth is known, one at a time on an inference thread, as a camera's come. For tracking
    each picture is two frames of a camera of its own.

    Raises RecognizerError: the estimator's own, or ModelError for its bugs and for an answer that is not one finite People.
    """
    times_s: list[float] = []
    worker: BatchWorker[ImageArray, People] = BatchWorker(
        "pose", estimator.estimate, on_batch=lambda _, seconds: times_s.append(seconds)
    )
    worker.start()
    shown = found = tracked = 0
    try:
        for shot in shots:
            people = _well_formed(await worker.submit(shot.image))
            boxes = shot.truth.boxes[shot.truth.visible_share >= _SHOWN]
            shown += len(boxes)
            found += _matched(people.boxes, boxes)
            tracker = ByteTracker(tracking)
            for _ in range(2):
                tracks = tracker.track(people.boxes, people.scores)
            tracked += _matched(tracks.boxes, boxes)
    finally:
        await worker.close()
    return Trial(shown, found, tracked, float(np.median(times_s)) * 1e3)


def drawn_shots() -> Iterator[Shot]:
    """`PICTURES` pictures of the scene, each drawn when it is asked for."""
    (run,) = PLAN.scenes()
    script = build_script(run.scenario, seed=run.seed, people=run.people)
    scene = build_scene(script, seed=run.seed, width=PLAN.size[0], height=PLAN.size[1])
    for t_s in np.linspace(0, run.seconds, PICTURES, endpoint=False).tolist():
        yield scene.shot(t_s)


def _well_formed(answer: object) -> People:
    if not isinstance(answer, People):
        raise ModelError(f"the estimator returned a {type(answer).__name__}, expected People")
    for name in ("boxes", "keypoints", "keypoint_scores", "scores"):
        values = getattr(answer, name)
        if not np.isfinite(values).all():
            raise ModelError(f"the estimator returned {name} that are not finite")
    return answer


def _matched(found: np.ndarray, boxes: np.ndarray) -> int:
    """How many of the true boxes (N, 4) xyxy px one of the found (M, 4) covers."""
    overlap = pairwise_iou(boxes.T.astype(np.float64), found.T.astype(np.float64))
    return len(assign(1 - overlap, 1 - _SAME_IOU).rows)
