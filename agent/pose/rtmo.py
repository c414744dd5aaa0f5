"""RTMO, the one-stage multi-person pose estimator (Lu et al. 2023, arXiv:2312.07526), from its ONNX export.

Graph: `input` (B, 3, H, W) -> `dets` (B, N, 5) xyxy and score, `keypoints` (B, N, 17, 3) x, y, score, both in canvas px with
non-maximum suppression done. Works for any bundle or file with that contract.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator

from agent.config.paths import resource_dir
from agent.config.schema import PoseConfig
from agent.config.sections import Probability, Section
from agent.errors import ConfigError, ConfigProblem, ModelError
from agent.pose.preprocess import Anchor, Channels, Geometry, Letterbox, check_image, scaled
from agent.runtime.backend import Precision, SessionSettings, TensorSpec
from agent.runtime.batching import BatchLimiter
from agent.runtime.bundle import Bundle, check_golden, load_bundle
from agent.runtime.devices import Accelerators, plan_devices, probe_accelerators
from agent.runtime.engines import EngineProgress, EngineState
from agent.runtime.manifest import InputInfo, LetterboxInput
from agent.runtime.selfcheck import card_baseline, golden_agreement
from agent.runtime.session import InferenceSession, create_served
from agent.types import NUM_KEYPOINTS, FloatArray, ImageArray, People

LEAST_SCALE = 0.6
"""Nothing makes pictures smaller than this share of their configured sides: at a half, AP of pose-nano falls by a fifth more (docs/models.md)."""
SCALES = (1.0, 0.9, 0.8, 0.73, 0.67, LEAST_SCALE)
"""Shares that `target_ms` tries."""
_TRIES = 6

_log = structlog.get_logger(__name__)


class RtmoOptions(Section):
    """`pose.options` of this estimator. What is absent comes from the bundle's manifest, then from the defaults of RTMO."""

    input_size: tuple[int, int] | None = None
    """(H, W) px, or one number for a square; only for graphs that leave it open."""
    target_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of models whose size is open (`side_step` of the manifest): at the start the largest input, down to 0.6 of the sides, that this
    machine does in so many milliseconds a picture; 0 = the whole size, whatever it takes."""
    anchor: Anchor | None = None
    channels: Channels | None = None
    keypoint_threshold: Probability = 0.0
    """Key points that score less are guesses: they get the score 0, with which nobody downstream looks at them. A network puts most
    of those that are outside the picture somewhere inside, and whoever walks out of it seems to sink."""
    precision: Precision = "fp32"
    """Of TensorRT engines. FP16 engines have lost all detections with some exports: use a bundle with golden data."""
    spinning: bool = False
    gpu_memory_limit_bytes: int = 0

    @field_validator("input_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value


def create(config: PoseConfig, *, machine: Accelerators | None = None) -> RtmoEstimator:
    """The entry point `rtmo`, with `cpu_model` where only the CPU can serve. An accelerator that fails to open, or at the first
    pictures, leaves `model` on the CPU. machine: what to believe about this machine instead of looking.

    Raises ConfigError (no model named, wrong options, device absent), ModelError, TrustError.
    """
    options = _read_options(config)
    model = _named_model(config)
    machine = machine or probe_accelerators()
    plan = plan_devices(config.device, machine, engine_cache=config.engine_cache is not None, path="pose.device")
    bundle = load_bundle(config.cpu_model if config.cpu_model and plan.cpu_only else model)
    if bundle.manifest and bundle.manifest.task != "pose":
        problem = f"{bundle.title} is a model for {bundle.manifest.task!r}, not for 'pose'"
        key = "pose.cpu_model" if bundle.path == config.cpu_model else "pose.model"
        raise ConfigError([ConfigProblem(problem, path=key)])

    def prepare(session: InferenceSession) -> RtmoEstimator:
        estimator = RtmoEstimator(session, bundle, config, options)
        check_golden(bundle, session, reduced_precision=session.device != "cpu")
        estimator.warm_up()
        estimator.find_size()
        return estimator

    estimator = create_served(
        bundle.model,
        prepare,
        device=config.device,
        settings=SessionSettings(config.threads, options.spinning, options.precision, options.gpu_memory_limit_bytes),
        engine_cache=config.engine_cache,
        config_path="pose.device",
        machine=machine,
    )
    estimator.begin_upgrade()
    return estimator


def check(config: PoseConfig) -> None:
    """Raises ConfigError for what `create` would refuse on any machine."""
    _read_options(config)
    _named_model(config)


create.check = check  # type: ignore[attr-defined]  # see `plugins.check_pose_estimator`


class RtmoEstimator:
    """A `PoseEstimator` over one session. Used from one thread."""

    def __init__(self, session: InferenceSession, bundle: Bundle, config: PoseConfig, options: RtmoOptions) -> None:
        """Checks the graph's contract. Raises ModelError that says what was expected and what was found."""
        self._session = session
        self._bundle = bundle
        self._card = card_baseline(bundle)
        self._config = config
        self._input = _image_input(session, bundle)
        self._dets, self._keypoints = _locate_outputs(session.outputs, bundle)
        self._fixed_batch = self._input.shape[0]
        self._max_batch = config.batch.max_size
        self._limiter = BatchLimiter(self._fixed_batch or self._max_batch)
        manifest = _manifest_input(bundle, self._input.name)
        letterbox = manifest.preprocessing if manifest else LetterboxInput()
        if not isinstance(letterbox, LetterboxInput):
            raise ModelError(f"{bundle.title}: input {self._input.name!r} should have letterbox pre-processing")
        self._side_step = letterbox.side_step if self._input.shape[2:] == (None, None) else None
        self._canvas = _canvas(self._input, manifest, options, self._side_step)
        self._target_ms = options.target_ms
        self._own_scale = self._scale = 1.0
        self._as_on_card = all(
            said in {None, side} for said, side in zip(_declared(manifest), self._canvas, strict=True)
        )
        self._keypoint_threshold = options.keypoint_threshold
        self._letterbox = Letterbox(
            self._canvas,
            self._fixed_batch or self._max_batch,
            anchor=options.anchor or letterbox.anchor,
            channels=options.channels or letterbox.channels,
            pad_value=letterbox.pad_value,
            dtype=self._input.dtype,
        )

    @property
    def name(self) -> str:
        return self._bundle.title

    @property
    def max_batch(self) -> int:
        return self._max_batch

    @property
    def batch_limit(self) -> int:
        """What goes to the device at once at present: `max_batch`, less after it ran out of memory."""
        return self._limiter.limit

    @property
    def device(self) -> str:
        """Who computes at the moment."""
        return self._session.device

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) px: the input that a picture is given at present."""
        step = self._open_step
        if step is None:
            return self._canvas
        return scaled(self._canvas, max(LEAST_SCALE, self._own_scale * self._scale), step)

    @property
    def _open_step(self) -> int | None:
        """What the sides of the input are multiples of; None where its size is fixed, as it is in a TensorRT engine that serves or is on
        its way."""
        engine = self._session.upgrade
        gone = engine is None or engine.state in {EngineState.FAILED, EngineState.CANCELLED}
        return self._side_step if gone else None

    @property
    def upgrade(self) -> EngineProgress | None:
        """How far the TensorRT engine is; None when none is wanted."""
        return self._session.upgrade

    @property
    def fallback(self) -> str:
        """Why a lesser device computes than this machine should have; empty = it does not."""
        return self._session.fallback

    @property
    def shortage(self) -> str:
        """What is wrong while batches are smaller than they should be; empty = nothing."""
        return self._limiter.shortage

    @property
    def bundle(self) -> Bundle:
        """What it was loaded from."""
        return self._bundle

    @property
    def card(self) -> dict[str, float]:
        """Mean values that the bundle's card promises, by signal of the drift watch: none for pictures of another size than the card's."""
        return self._card if self._own_scale == 1 and self._as_on_card else {}

    @property
    def own_scale(self) -> float:
        """See `ScalableEstimator`."""
        return self._own_scale

    def self_check(self) -> float | None:
        """Share of the bundle's golden answers given alike; None without any. May run beside `estimate`, on any thread."""
        return golden_agreement(self._bundle, self._session)

    def warm_up(self) -> None:
        """An empty picture through everything, of the smallest size and of the largest: the first run is slow, and a wrong graph shows now."""
        for scale in (LEAST_SCALE, 1.0) if self._side_step else (1.0,):
            self.scale_pictures(scale)
            self.estimate([self._empty()])

    def scale_pictures(self, scale: float) -> None:
        """See `ScalableEstimator`. Nothing changes where the size is fixed, in the graph or in an engine of TensorRT."""
        self._scale = scale

    def find_size(self) -> None:
        """Take smaller pictures if `target_ms` says so and this machine needs longer for large ones."""
        if not self._target_ms or not self._side_step:
            return
        for scale in SCALES:
            self._own_scale = scale
            empty = [self._empty()]
            took_ms = min(_milliseconds(partial(self.estimate, empty)) for _ in range(_TRIES))
            if took_ms <= self._target_ms:
                break
        height, width = self.canvas
        _log.info("pose_input_size", height=height, width=width, ms=round(took_ms, 1), target_ms=self._target_ms)

    def _empty(self) -> ImageArray:
        return np.full((*self.canvas, 3), 114, np.uint8)

    def begin_upgrade(self) -> None:
        """Let TensorRT take over in the background, where the device choice asks for it and there is a cache."""
        if self._config.engine_cache is None:
            return
        largest = self._fixed_batch or self._max_batch
        shapes = ((self._fixed_batch or 1, 3, *self._canvas), (largest, 3, *self._canvas))
        self._session.begin_upgrade(
            {self._input.name: shapes},
            model_sha256=self._bundle.model_sha256,
            engine_cache=self._config.engine_cache,
            check=self._check_engine,
        )

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        """As `PoseEstimator.estimate`."""
        for index, image in enumerate(images):
            check_image(image, index)
        parts = self._limiter.run(len(images), lambda start, stop: self._estimate_batch(images[start:stop]))
        return [people for part in parts for people in part]

    def close(self) -> None:
        self._session.close()

    def _estimate_batch(self, images: Sequence[ImageArray]) -> list[People]:
        self._letterbox.resize(self.canvas)
        batch, places = self._letterbox.fill(images)
        if self._fixed_batch:  # unused rows hold older pictures: their results are left out below
            batch = self._letterbox.whole
        outputs = dict(zip(self._session.output_names, self._session.run({self._input.name: batch}), strict=True))
        dets, keypoints = outputs[self._dets], outputs[self._keypoints]
        self._check_outputs(dets, keypoints, len(batch))
        return [self._people(dets[row], keypoints[row], place) for row, place in enumerate(places)]

    def _check_outputs(self, dets: NDArray[Any], keypoints: NDArray[Any], batch: int) -> None:
        count = dets.shape[1] if dets.ndim == 3 else -1
        if dets.shape != (batch, count, 5) or keypoints.shape != (batch, count, NUM_KEYPOINTS, 3):
            raise ModelError(
                f"{self.name}: expected outputs ({batch}, N, 5) and ({batch}, N, {NUM_KEYPOINTS}, 3), "
                f"found {self._dets} {dets.shape} and {self._keypoints} {keypoints.shape}"
            )

    def _people(self, dets: NDArray[Any], keypoints: NDArray[Any], place: Geometry) -> People:
        """dets (N, 5), keypoints (N, 17, 3) in canvas px -> People in source px, best first."""
        finite = np.isfinite(dets).all(axis=1) & np.isfinite(keypoints).all(axis=(1, 2))
        rows = np.flatnonzero(finite & (dets[:, 4] > 0) & (dets[:, 4] >= self._config.score_threshold))
        rows = rows[np.argsort(-dets[rows, 4], kind="stable")]
        boxes = place.to_source(dets[rows, :4].reshape(-1, 2, 2))
        np.clip(boxes, 0, np.array([place.width, place.height], np.float32), out=boxes)
        seen = (boxes[:, 1] > boxes[:, 0]).all(axis=1)  # padded rows of TensorRT's NMS have no area
        rows, boxes = rows[seen][: self._config.max_people], boxes[seen][: self._config.max_people]
        keypoint_scores = _probability(keypoints[rows, :, 2])
        keypoint_scores[keypoint_scores < self._keypoint_threshold] = 0.0
        return People(
            boxes=boxes.reshape(-1, 4),
            keypoints=place.to_source(keypoints[rows, :, :2]),
            keypoint_scores=keypoint_scores,
            scores=_probability(dets[rows, 4]),
        )

    def _check_engine(self, candidate: InferenceSession) -> None:
        check_golden(self._bundle, candidate, reduced_precision=True)


def _milliseconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return (time.perf_counter() - began_s) * 1e3


def _probability(values: NDArray[Any]) -> FloatArray:
    return np.clip(values.astype(np.float32), 0.0, 1.0)


def _named_model(config: PoseConfig) -> Path:
    if config.model is None:
        profile = resource_dir("configs") / "pose-nano.yaml"
        hint = f"an RTMO model (`recognizer-agent models pull` fetches one), or all of {profile} to try things out"
        raise ConfigError([ConfigProblem("the estimator 'rtmo' needs a model", path="pose.model", hint=hint)])
    return config.model


def _read_options(config: PoseConfig) -> RtmoOptions:
    try:
        return RtmoOptions.model_validate(config.options)
    except ValidationError as error:
        problems = [
            ConfigProblem(problem["msg"], path=".".join(str(part) for part in ("pose.options", *problem["loc"])))
            for problem in error.errors()
        ]
        raise ConfigError(problems) from error


def _image_input(session: InferenceSession, bundle: Bundle) -> TensorSpec:
    images = [spec for spec in session.inputs if len(spec.shape) == 4 and spec.shape[1] in {3, None}]
    if len(session.inputs) != 1 or not images or images[0].dtype not in {np.dtype("f4"), np.dtype("f2")}:
        found = ", ".join(str(spec) for spec in session.inputs)
        raise ModelError(f"{bundle.title}: expected one input (B, 3, H, W) float32 or float16, found {found}")
    return images[0]


def _manifest_input(bundle: Bundle, name: str) -> InputInfo | None:
    inputs = bundle.manifest.inputs if bundle.manifest else ()
    return next((info for info in inputs if info.name == name), None)


def _canvas(spec: TensorSpec, manifest: InputInfo | None, options: RtmoOptions, step: int | None) -> tuple[int, int]:
    """(H, W) px: from the graph, else the options, else the manifest."""
    fixed = spec.shape[2:]
    wanted = options.input_size or _declared(manifest)
    canvas = tuple(have or want for have, want in zip(fixed, wanted, strict=True))
    if None in canvas:
        hint = "say it, for example 640, or use a bundle whose manifest does"
        problem = f"the graph leaves its input size open: {spec}"
        raise ConfigError([ConfigProblem(problem, path="pose.options.input_size", hint=hint)])
    if options.input_size and canvas != options.input_size:
        problem = f"{options.input_size} is not what the graph takes: {spec}"
        raise ConfigError([ConfigProblem(problem, path="pose.options.input_size")])
    height, width = cast("tuple[int, int]", canvas)
    if step and (height % step or width % step):
        hint = f"{scaled((height, width), 1.0, step)} is near it"
        problem = f"the model takes multiples of {step}, found {canvas}"
        raise ConfigError([ConfigProblem(problem, path="pose.options.input_size", hint=hint)])
    return height, width


def _declared(manifest: InputInfo | None) -> tuple[int | None, ...]:
    """(H, W) px that the manifest names; None for a side that it leaves open."""
    sides = manifest.shape[2:] if manifest and len(manifest.shape) == 4 else (None, None)
    return tuple(side if isinstance(side, int) else None for side in sides)


def _locate_outputs(outputs: Sequence[TensorSpec], bundle: Bundle) -> tuple[str, str]:
    """Names of the boxes and the key points: by their usual names, else by shape."""
    names = {spec.name for spec in outputs}
    dets = "dets" if "dets" in names else _by_shape(outputs, (None, None, 5))
    keypoints = "keypoints" if "keypoints" in names else _by_shape(outputs, (None, None, NUM_KEYPOINTS, 3))
    if dets is None or keypoints is None:
        found = ", ".join(str(spec) for spec in outputs)
        raise ModelError(f"{bundle.title}: expected outputs (B, N, 5) and (B, N, {NUM_KEYPOINTS}, 3), found {found}")
    return dets, keypoints


def _by_shape(outputs: Sequence[TensorSpec], shape: tuple[int | None, ...]) -> str | None:
    fixed = {axis: size for axis, size in enumerate(shape) if size is not None}
    fits = [
        spec.name
        for spec in outputs
        if len(spec.shape) == len(shape) and all(spec.shape[axis] == size for axis, size in fixed.items())
    ]
    return fits[0] if len(fits) == 1 else None
