"""The models of a configuration, loaded and served, and a camera's pipeline built on them.

Shared by the daemon and by the offline commands, so that both recognise in the same way.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.action.windows import ActionWindows
from agent.config.schema import AgentConfig, ServiceConfig
from agent.errors import ConfigError, ConfigProblem
from agent.events.ids import Uuid7
from agent.events.rules import EventRules
from agent.pipeline.camera import CameraPipeline, Service
from agent.pipeline.worker import BatchWorker
from agent.plugins import create_action_classifier, create_pose_estimator
from agent.ports import ActionClassifier, FrameStream, PipelineListener, PoseEstimator
from agent.runtime.engines import EngineProgress
from agent.tracking.bytetrack import ByteTracker
from agent.types import POSE_SLOT, FloatArray, ImageArray, People, action_slot

SWITCH_INTERVAL_S = 0.0005
"""An inference thread that comes back from native code waits for the interpreter up to this long while the loop computes;
Python's 5 ms cost a quick estimator 5 % of its frames (benchmarks/pipeline.py estimator)."""
NOMINAL_FPS = 30.0
"""Of a stream that does not say."""


@dataclass(slots=True)
class CameraRun:
    """A camera's pipeline and the parts that a reload or the governor adjusts while it runs."""

    pipeline: CameraPipeline
    windows: ActionWindows
    rules: Mapping[str, EventRules]


class Recognition:
    """Loaded models on their inference threads. Open with `open_recognition`."""

    def __init__(
        self,
        config: AgentConfig,
        estimator: PoseEstimator,
        pose: BatchWorker[ImageArray, People],
        classifiers: Mapping[str, tuple[ActionClassifier, BatchWorker[FloatArray, FloatArray]]],
    ) -> None:
        self.config = config
        self.estimator = estimator
        self.pose = pose
        self._classifiers = classifiers
        self._new_id = Uuid7()

    @property
    def models(self) -> dict[str, str]:
        """Name of the model in each slot: `pose`, `action/<service>`."""
        actions = {action_slot(name): classifier.name for name, (classifier, _) in self._classifiers.items()}
        return {POSE_SLOT: self.estimator.name} | actions

    @property
    def slots(self) -> dict[str, PoseEstimator | ActionClassifier]:
        """The model in each slot."""
        actions = {action_slot(name): classifier for name, (classifier, _) in self._classifiers.items()}
        return {POSE_SLOT: self.estimator, **actions}

    @property
    def upgrades(self) -> dict[str, EngineProgress | None]:
        """Where the engine of each slot stands; None where none was asked for, or for plug-ins without engines."""
        return {slot: getattr(model, "upgrade", None) for slot, model in self.slots.items()}

    def camera(
        self,
        stream: FrameStream,
        listener: PipelineListener,
        *,
        services: tuple[str, ...] | None,
        fps: Callable[[], float],
    ) -> CameraRun:
        """A pipeline for one stream.

        services: names of those that watch it (None = all); fps: asked at the first frame for the stream's rate, 0 =
        unknown.
        """
        chosen = {
            name: self.config.services[name] for name in self._classifiers if services is None or name in services
        }
        rules = {
            name: EventRules(stream.camera_id, name, service.rules, self._new_id) for name, service in chosen.items()
        }
        windows = ActionWindows(stream.camera_id, chosen)
        pipeline = CameraPipeline(
            stream,
            pose=self.pose,
            tracker=lambda: ByteTracker(self.config.tracking, fps=fps() or NOMINAL_FPS),
            windows=windows,
            services={name: self._service(name, service, rules[name]) for name, service in chosen.items()},
            listener=listener,
        )
        return CameraRun(pipeline, windows, rules)

    def _service(self, name: str, config: ServiceConfig, rules: EventRules) -> Service:
        classifier, worker = self._classifiers[name]
        return Service(name, worker, classifier.labels, classifier.labels.index(config.positive or name), rules)


@asynccontextmanager
async def open_recognition(
    config: AgentConfig,
    *,
    estimator: PoseEstimator | None = None,
    on_pose_batch: Callable[[int, float], None] | None = None,
    on_action_batch: Callable[[str, int, float], None] | None = None,
) -> AsyncIterator[Recognition]:
    """Load all models of `config` (off the loop) and start their threads; ends and frees them on leaving.

    estimator: takes the place of the configured one. Raises ConfigError, ModelError, TrustError.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with AsyncExitStack() as stack:
        if estimator is None:
            estimator = await asyncio.to_thread(create_estimator, config)
        stack.callback(estimator.close)
        pose = BatchWorker(
            "pose",
            estimator.estimate,
            max_batch=min(config.pose.batch.max_size, estimator.max_batch),
            max_wait_s=config.pose.batch.max_wait_ms / 1e3,
            on_batch=on_pose_batch,
        )
        await _started(stack, pose)
        classifiers = {}
        for name, service in config.services.items():
            if service.enabled:
                classifier = await asyncio.to_thread(create_classifier, name, service)
                stack.callback(classifier.close)
                worker = BatchWorker(name, rows_of(classifier), on_batch=_named(name, on_action_batch))
                await _started(stack, worker)
                classifiers[name] = (classifier, worker)
        yield Recognition(config, estimator, pose, classifiers)


def create_estimator(config: AgentConfig) -> PoseEstimator:
    """The configured pose estimator. Blocks while it loads."""
    engine_cache = config.pose.engine_cache or config.state_dir / "engines"
    return create_pose_estimator(config.pose.model_copy(update={"engine_cache": engine_cache}))


def create_classifier(name: str, config: ServiceConfig) -> ActionClassifier:
    """The classifier of one service; checks that it knows the service's action. Blocks while it loads."""
    classifier = create_action_classifier(name, config)
    positive = config.positive or name
    if positive not in classifier.labels:
        labels = ", ".join(classifier.labels)
        path = f"services.{name}.positive"
        message = f"the model {classifier.name} has no label {positive!r}"
        raise ConfigError([ConfigProblem(message, path=path, hint=f"its labels: {labels}")])
    return classifier


async def _started(stack: AsyncExitStack, worker: BatchWorker[Any, Any]) -> None:
    worker.start()
    stack.push_async_callback(worker.close)


def rows_of(classifier: ActionClassifier) -> Callable[[list[FloatArray]], list[FloatArray]]:
    """The classifier as a function of a list of windows."""

    def classify(windows: list[FloatArray]) -> list[FloatArray]:
        return list(classifier.classify(np.stack(windows)))

    return classify


def _named(name: str, on_batch: Callable[[str, int, float], None] | None) -> Callable[[int, float], None] | None:
    if on_batch is None:
        return None
    return lambda items, seconds: on_batch(name, items, seconds)
