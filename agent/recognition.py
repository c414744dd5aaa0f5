"""The models of a configuration, loaded and served, and a camera's pipeline built on them.

Shared by the daemon and by the offline commands, so that both recognise in the same way. Each model has a slot (`pose`,
`action/<service>`); what serves a slot can be exchanged while cameras run.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from agent.action.windows import ActionWindows
from agent.config.schema import AgentConfig, PoseConfig, ServiceConfig
from agent.errors import ConfigError, ConfigProblem, DeviceMemoryError, ModelError, RecognizerError, TrustError
from agent.events.ids import Uuid7
from agent.events.rules import EventRules
from agent.pipeline.camera import CameraPipeline, Service
from agent.pipeline.worker import BatchWorker
from agent.plugins import check_people, check_probabilities, create_action_classifier, create_pose_estimator
from agent.ports import ActionClassifier, FrameStream, PipelineListener, PoseEstimator, ScalableEstimator
from agent.runtime.bundle import Bundle
from agent.runtime.engines import EngineProgress
from agent.runtime.manifest import SkeletonInput
from agent.tracking.bytetrack import ByteTracker
from agent.types import POSE_SLOT, FloatArray, ImageArray, People, action_slot

_log = structlog.get_logger(__name__)
SWITCH_INTERVAL_S = 0.0005
"""An inference thread that comes back from native code waits for the interpreter up to this long while the loop computes;
Python's 5 ms cost a quick estimator 5 % of its frames (benchmarks/pipeline.py estimator)."""
NOMINAL_FPS = 30.0
"""Of a stream that does not say."""
_WARM_UP_PX = (480, 640)

Model = PoseEstimator | ActionClassifier
LeftAside = Callable[[str, Path, RecognizerError], None]
"""Slot, bundle that was to serve it, and why it cannot."""


@dataclass(slots=True)
class CameraRun:
    """A camera's pipeline and the parts that a reload or the governor adjusts while it runs."""

    pipeline: CameraPipeline
    windows: ActionWindows
    rules: Mapping[str, EventRules]


class Recognition:
    """Loaded models on their inference threads, both by slot. Open with `open_recognition`."""

    def __init__(
        self, config: AgentConfig, models: dict[str, Model], workers: Mapping[str, BatchWorker[Any, Any]]
    ) -> None:
        """models: whoever gave it closes what is in it at the end."""
        self.config = config
        self._models = models
        self._workers = workers
        # The order in which cameras read verdicts, whatever the order of a model that comes later.
        self._labels = {slot: model.labels for slot, model in models.items() if not isinstance(model, PoseEstimator)}
        self._new_id = Uuid7()
        self._picture_scale = 1.0
        self._own_scale = getattr(models[POSE_SLOT], "own_scale", 1.0)
        self._candidates: list[weakref.ref[ScalableEstimator]] = []  # for the pose estimator's place, loaded
        self.smaller_pictures = False
        """The pose estimator that serves sees less than it is configured to, because of `scale_pictures`."""

    @property
    def pose(self) -> BatchWorker[ImageArray, People]:
        """The thread of the pose estimator."""
        return self._workers[POSE_SLOT]

    @property
    def models(self) -> dict[str, str]:
        """Name of the model in each slot: `pose`, `action/<service>`."""
        return {slot: model.name for slot, model in self._models.items()}

    @property
    def slots(self) -> dict[str, Model]:
        """The model in each slot."""
        return dict(self._models)

    @property
    def upgrades(self) -> dict[str, EngineProgress | None]:
        """Where the engine of each slot stands; None where none was asked for, or for plug-ins without engines."""
        return {slot: getattr(model, "upgrade", None) for slot, model in self._models.items()}

    def worker(self, slot: str) -> BatchWorker[Any, Any]:
        """The thread that runs the model of `slot`. Raises KeyError for a slot that is not served."""
        return self._workers[slot]

    def labels(self, slot: str) -> tuple[str, ...]:
        """What the columns of the verdicts of `slot` mean, whichever model gives them. Raises KeyError for other slots."""
        return self._labels[slot]

    def function(self, slot: str, model: Model) -> Callable[[list[Any]], Sequence[Any]]:
        """`model` as the function of a list of pictures or windows that the thread of `slot` runs."""
        return function_of(model, self._labels.get(slot))

    def path(self, slot: str) -> Path | None:
        """The bundle that serves `slot`, as far as its model says; else the configured one. None = the slot is not served."""
        model = self._models.get(slot)
        if model is None:
            return None
        if (bundle := bundle_of(model)) is not None:
            return bundle.path
        return self.config.pose.model if slot == POSE_SLOT else self.config.services[_service_of(slot)].model

    # --- exchange -----------------------------------------------------------------------------------------------------

    async def load(self, slot: str, path: Path | None, *, threads: int | None = None) -> Model:
        """A model for `slot` from the bundle `path` (None: what the configuration names), loaded off the loop beside the
        one that serves, found to fit where that one is, and warmed up.

        threads: of the CPU, in place of the configured number. Raises KeyError (the slot is not served), ConfigError and
        ModelError (it does not fit, cannot be loaded, answers wrongly), TrustError, DeviceMemoryError, FatalError.
        """
        running = self._models[slot]
        config = with_models(self.config, {slot: path} if path is not None else {})
        if threads is not None:
            config = _with_threads(config, slot, threads)
        images = self.pose.submitters if slot == POSE_SLOT else 1
        config = without_own_size(config)  # it sees what the one that serves sees

        def work() -> Model:
            model = create_model(config, slot)
            try:
                check_fit(running, model)
                _warm_up(model, images)
            except BaseException:
                close_model(model)
                raise
            return model

        loaded = await _off_the_loop(work)
        if slot == POSE_SLOT and isinstance(loaded, ScalableEstimator):
            self._candidates = [weak for weak in self._candidates if weak() is not None]
            self._candidates.append(weakref.ref(loaded))
            self._scale(loaded)
        return loaded

    def swap(self, slot: str, model: Model) -> asyncio.Future[None]:
        """Let `model`, which `load` gave, serve `slot` from the next batch on: between two frames, none is lost.

        The future is done when the model before is not used any more; it is the caller's to close.
        """
        done = self._workers[slot].replace(self.function(slot, model), max_batch=_batch_of(self.config, model))
        done.add_done_callback(lambda _: self._serves(slot, model))
        return done

    def _serves(self, slot: str, model: Model) -> None:
        self._models[slot] = model
        if slot == POSE_SLOT:
            self.scale_pictures(self._picture_scale)

    def scale_pictures(self, scale: float) -> None:
        """Let whatever estimates poses, and whatever is being tried for it, see pictures at `scale` (0-1] of its configured size,
        where it can."""
        self._picture_scale = scale
        for weak in self._candidates:
            if (candidate := weak()) is not None:
                self._scale(candidate)
        serving: object = self._models[POSE_SLOT]
        self.smaller_pictures = isinstance(serving, ScalableEstimator) and self._scale(serving)

    def _scale(self, model: ScalableEstimator) -> bool:
        """Whether it makes a difference. A model that came later takes over the size that the first one chose."""
        share = self._own_scale / model.own_scale
        model.scale_pictures(share)
        whole = model.canvas
        model.scale_pictures(share * self._picture_scale)
        return model.canvas != whole

    # --- cameras ------------------------------------------------------------------------------------------------------

    def camera(
        self,
        stream: FrameStream,
        listener: PipelineListener,
        *,
        services: tuple[str, ...] | None,
        fps: Callable[[], float],
    ) -> CameraRun:
        """A pipeline for one stream.

        services: names of those that watch it (None = all); fps: asked at each frame for the stream's rate, 0 = unknown.
        """
        chosen = {
            name: service
            for name, service in self.config.services.items()
            if action_slot(name) in self._models and (services is None or name in services)
        }
        rules = {
            name: EventRules(stream.camera_id, name, service.rules, self._new_id) for name, service in chosen.items()
        }
        windows = ActionWindows(stream.camera_id, chosen)
        pipeline = CameraPipeline(
            stream,
            pose=self.pose,
            tracker=ByteTracker(self.config.tracking),
            fps=lambda: fps() or NOMINAL_FPS,
            windows=windows,
            services={name: self._service(name, service, rules[name]) for name, service in chosen.items()},
            listener=listener,
        )
        return CameraRun(pipeline, windows, rules)

    def _service(self, name: str, config: ServiceConfig, rules: EventRules) -> Service:
        slot = action_slot(name)
        labels = self._labels[slot]
        return Service(name, self._workers[slot], labels, labels.index(config.positive or name), rules)


@asynccontextmanager
async def open_recognition(
    config: AgentConfig,
    *,
    estimator: PoseEstimator | None = None,
    paths: Mapping[str, Path] | None = None,
    on_left_aside: LeftAside | None = None,
    on_pose_batch: Callable[[int, float], None] | None = None,
    on_action_batch: Callable[[str, int, float], None] | None = None,
) -> AsyncIterator[Recognition]:
    """Load all models of `config` (off the loop) and start their threads; ends and frees them on leaving.

    estimator: takes the place of the configured one. paths: bundles that take the place of the configured ones, by slot; one
    that cannot serve is told to `on_left_aside`, and the configured one does. Raises ConfigError, ModelError, TrustError.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with AsyncExitStack() as stack:
        models: dict[str, Model] = {}
        stack.callback(_close_all, models)
        if estimator is not None:
            models[POSE_SLOT] = estimator
        workers: dict[str, BatchWorker[Any, Any]] = {}
        enabled = [action_slot(name) for name, service in config.services.items() if service.enabled]
        for slot in (POSE_SLOT, *enabled):
            if slot not in models:
                models[slot] = await _load_first(config, slot, (paths or {}).get(slot), on_left_aside)
            model = models[slot]
            workers[slot] = BatchWorker(
                "pose" if slot == POSE_SLOT else _service_of(slot),
                function_of(model),
                max_batch=_batch_of(config, model),
                max_wait_s=config.pose.batch.max_wait_ms / 1e3 if slot == POSE_SLOT else 0.0,
                on_batch=on_pose_batch if slot == POSE_SLOT else _named(_service_of(slot), on_action_batch),
            )
            await _started(stack, workers[slot])
        yield Recognition(config, models, workers)


async def _load_first(config: AgentConfig, slot: str, path: Path | None, on_left_aside: LeftAside | None) -> Model:
    if path is not None:
        try:
            return await _off_the_loop(lambda: create_model(with_models(config, {slot: path}), slot))
        except (ConfigError, ModelError, TrustError, DeviceMemoryError) as error:
            if on_left_aside is None:
                raise
            on_left_aside(slot, path, error)
    return await _off_the_loop(lambda: create_model(config, slot))


def with_models(config: AgentConfig, paths: Mapping[str, Path]) -> AgentConfig:
    """`config` with the bundles of `paths`, by slot, in place of those it names. Raises KeyError for an unknown service."""
    update: dict[str, Any] = {}
    services = dict(config.services)
    for slot, path in paths.items():
        if slot == POSE_SLOT:  # what stood in for the configured model on CPUs is no stand-in for this one
            update["pose"] = config.pose.model_copy(update={"model": path, "cpu_model": None})
        else:
            services[_service_of(slot)] = services[_service_of(slot)].model_copy(update={"model": path})
    return config.model_copy(update=update | {"services": services})


def without_own_size(config: AgentConfig) -> AgentConfig:
    """`config` with a pose estimator that chooses no size for itself: that is done at the start, while the machine is idle."""
    options = {key: value for key, value in config.pose.options.items() if key != "target_ms"}
    return config.model_copy(update={"pose": config.pose.model_copy(update={"options": options})})


def create_model(config: AgentConfig, slot: str) -> Model:
    """The model that `config` names for `slot`. Blocks while it loads. Raises as `open_recognition`."""
    return (
        create_estimator(config)
        if slot == POSE_SLOT
        else create_classifier(name := _service_of(slot), config.services[name])
    )


def create_estimator(config: AgentConfig) -> PoseEstimator:
    """The configured pose estimator. Blocks while it loads."""
    return create_pose_estimator(pose_config(config))


def pose_config(config: AgentConfig) -> PoseConfig:
    """The section `pose` as the estimator gets it: with a folder for engines."""
    return config.pose.model_copy(update={"engine_cache": config.pose.engine_cache or config.state_dir / "engines"})


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


def _close_all(models: Mapping[str, Model]) -> None:
    for model in models.values():
        close_model(model)


def close_model(model: Model) -> None:
    """A plug-in that raises is logged: what its model has answered is as good as before."""
    try:
        model.close()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in's bug; there is nothing more to do with it
        _log.error("model not closed", model=model.name, error=f"{type(error).__name__}: {error}")


async def _off_the_loop(load: Callable[[], Model]) -> Model:
    """What `load` gives, on a thread. Who is cancelled does not wait for it; it is closed when it comes all the same."""
    # A future of the executor: the end of the loop waits for its thread, and would cancel a task.
    loading = asyncio.get_running_loop().run_in_executor(None, copy_context().run, load)
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(_close_late)
        raise


def _close_late(loading: asyncio.Future[Model]) -> None:
    """What was loaded for somebody who has gone away meanwhile."""
    if not loading.cancelled() and loading.exception() is None:
        close_model(loading.result())


def _service_of(slot: str) -> str:
    return slot.partition("/")[2]


def bundle_of(model: object) -> Bundle | None:
    """What a model was loaded from; None for plug-ins that do not say."""
    bundle = getattr(model, "bundle", None)
    return bundle if isinstance(bundle, Bundle) else None


def function_of(model: Model, labels: tuple[str, ...] | None = None) -> Callable[[list[Any]], Sequence[Any]]:
    """The model as a function of a list of pictures or windows; labels: the wanted order of a classifier's columns."""
    if not isinstance(model, PoseEstimator):
        return rows_of(model, labels)
    return lambda images: check_people(model.name, model.estimate(images))


def rows_of(
    classifier: ActionClassifier, labels: tuple[str, ...] | None = None
) -> Callable[[list[FloatArray]], list[FloatArray]]:
    """The classifier as a function of a list of windows; labels: the wanted order of its columns."""
    own = classifier.labels
    columns = None if labels is None or labels == own else [own.index(label) for label in labels]

    def classify(windows: list[FloatArray]) -> list[FloatArray]:
        answer = classifier.classify(np.stack(windows))
        rows = check_probabilities(classifier.name, answer, (len(windows), len(own)))
        return list(rows if columns is None else rows[:, columns])

    return classify


def _batch_of(config: AgentConfig, model: Model) -> int:
    return min(config.pose.batch.max_size, model.max_batch) if isinstance(model, PoseEstimator) else 1


def _with_threads(config: AgentConfig, slot: str, threads: int) -> AgentConfig:
    if slot == POSE_SLOT:
        return config.model_copy(update={"pose": config.pose.model_copy(update={"threads": threads})})
    name = _service_of(slot)
    service = config.services[name].model_copy(update={"threads": threads})
    return config.model_copy(update={"services": {**config.services, name: service}})


def check_fit(running: Model, model: Model) -> None:
    """Cameras that run keep their device and windows, and read verdicts by the labels that they know. Raises ModelError."""
    if (why := getattr(model, "fallback", "")) and not getattr(running, "fallback", ""):
        raise ModelError(f"{model.name} does not fit beside {running.name}: {why}")
    if isinstance(running, PoseEstimator) or isinstance(model, PoseEstimator):
        return
    pairs = (
        ("labels", tuple(sorted(running.labels)), tuple(sorted(model.labels))),
        ("windows", running.input_shape, model.input_shape),
        ("pre-processing of windows", _skeletons(running), _skeletons(model)),
    )
    for what, have, want in pairs:
        if have != want:
            raise ModelError(
                f"{model.name} does not fit in the place of {running.name}: {what} {_shown(want)}, in use are {_shown(have)}"
            )


def _skeletons(model: ActionClassifier) -> tuple[SkeletonInput, ...] | None:
    """How the bundle wants its windows made; None where nothing says so."""
    bundle = bundle_of(model)
    if bundle is None or bundle.manifest is None:
        return None
    inputs = bundle.manifest.inputs
    return tuple(info.preprocessing for info in inputs if isinstance(info.preprocessing, SkeletonInput))


def _shown(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, tuple) else "not stated"


def _warm_up(model: Model, images: int) -> None:
    """The largest batch that the cameras now make, once: its first run on a GPU takes long."""
    if isinstance(model, PoseEstimator):
        for count in {1, min(images, model.max_batch)}:
            model.estimate([np.zeros((*_WARM_UP_PX, 3), np.uint8)] * count)
    else:
        model.classify(np.zeros((1, *model.input_shape), np.float32))


def _named(name: str, on_batch: Callable[[str, int, float], None] | None) -> Callable[[int, float], None] | None:
    return partial(on_batch, name) if on_batch is not None else None
