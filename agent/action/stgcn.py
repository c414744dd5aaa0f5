"""ST-GCN++ (Duan et al. 2022, arXiv:2205.09443) and every other skeleton classifier with its ONNX contract.

Graph: one input (B, M, T, V, C) -> one output (B, K), logits (mmaction2's export) or probabilities, as the manifest says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from agent.config.schema import ServiceConfig
from agent.config.sections import Section
from agent.errors import ConfigError, ConfigProblem, DataError, ModelError
from agent.runtime.backend import Precision, SessionSettings, TensorSpec
from agent.runtime.batching import BatchLimiter
from agent.runtime.bundle import Bundle, check_golden, load_bundle
from agent.runtime.devices import Accelerators
from agent.runtime.engines import EngineProgress
from agent.runtime.manifest import Manifest, OutputInfo, SkeletonInput
from agent.runtime.selfcheck import card_baseline, golden_agreement
from agent.runtime.session import InferenceSession, create_served
from agent.types import NUM_KEYPOINTS, FloatArray

WindowShape = tuple[int, int, int, int]
_PROBABILITY_SUM_TOLERANCE = 1e-2


class StgcnOptions(Section):
    """`services.<name>.options` of this classifier."""

    labels: tuple[str, ...] = ()
    """Class names in the graph's order; only for a bare .onnx file."""
    max_batch: int = Field(default=16, ge=1, le=256)
    precision: Precision = "fp32"
    engine_cache: Path | None = None
    """Folder for TensorRT engines; absent = `auto` stays with CUDA, which is quick enough for a graph of 2 GFLOP."""


def create(name: str, config: ServiceConfig, *, machine: Accelerators | None = None) -> StgcnClassifier:
    """The entry point `stgcn` for the service `name`. machine: what to believe about this machine instead of looking.

    Raises ConfigError (options, device, labels, or a window that is not the model's), ModelError, TrustError.
    """
    options = _read_options(name, config)
    bundle = load_bundle(config.model)
    if bundle.manifest and bundle.manifest.task != "action":
        problem = f"{bundle.title} is a model for {bundle.manifest.task!r}, not for 'action'"
        raise ConfigError([ConfigProblem(problem, path=f"services.{name}.model")])

    def prepare(session: InferenceSession) -> StgcnClassifier:
        classifier = StgcnClassifier(name, session, bundle, config, options)
        check_golden(bundle, session, reduced_precision=session.device != "cpu")
        classifier.warm_up()
        return classifier

    classifier = create_served(
        bundle.model,
        prepare,
        device=config.device,
        settings=SessionSettings(threads=config.threads, precision=options.precision),
        engine_cache=options.engine_cache,
        config_path=f"services.{name}.device",
        machine=machine,
    )
    classifier.begin_upgrade()
    return classifier


def check(name: str, config: ServiceConfig) -> None:
    """Raises ConfigError for options that `create` would refuse on any machine."""
    _read_options(name, config)


create.check = check  # type: ignore[attr-defined]  # see `plugins.check_action_classifier`


class StgcnClassifier:
    """An `ActionClassifier` over one session. Used from one thread."""

    def __init__(
        self, service: str, session: InferenceSession, bundle: Bundle, config: ServiceConfig, options: StgcnOptions
    ) -> None:
        """Checks the graph against the service. Raises ModelError (wrong graph), ConfigError (wrong window or labels)."""
        self._session = session
        self._bundle = bundle
        self._card = card_baseline(bundle)
        self._options = options
        self._input = _window_input(session, bundle)
        self._output = _output_info(session, bundle)
        self._labels = _labels(service, config, options, bundle)
        self._shape = _window_shape(service, config, self._input, bundle)
        self._fixed_batch = self._input.shape[0]
        self._limiter = BatchLimiter(self._fixed_batch or options.max_batch)

    @property
    def name(self) -> str:
        return self._bundle.title

    @property
    def labels(self) -> tuple[str, ...]:
        return self._labels

    @property
    def input_shape(self) -> WindowShape:
        return self._shape

    @property
    def device(self) -> str:
        """Who computes at the moment."""
        return self._session.device

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
        """Mean values that the bundle's card promises, by signal of the drift watch."""
        return self._card

    def self_check(self) -> float | None:
        """Share of the bundle's golden answers given alike; None without any. May run beside `classify`, on any thread."""
        return golden_agreement(self._bundle, self._session)

    def warm_up(self) -> None:
        """One empty window: the first run is slow, and a wrong graph shows now."""
        self.classify(np.zeros((1, *self._shape), np.float32))

    def begin_upgrade(self) -> None:
        """Let TensorRT take over in the background, where it is wanted."""
        if self._options.engine_cache is None:
            return
        smallest, largest = self._fixed_batch or 1, self._fixed_batch or self._options.max_batch
        shape = (*self._shape[:3], self._input.shape[-1] or self._shape[3])
        self._session.begin_upgrade(
            {self._input.name: ((smallest, *shape), (largest, *shape))},
            model_sha256=self._bundle.model_sha256,
            engine_cache=self._options.engine_cache,
            check=lambda candidate: check_golden(self._bundle, candidate, reduced_precision=True),
        )

    def classify(self, batch: FloatArray) -> FloatArray:
        """As `ActionClassifier.classify`: (B, M, T, V, C) float32 -> (B, K) float32. Raises DataError for a bad batch."""
        if batch.shape[1:] != self._shape or batch.dtype != np.float32:
            raise DataError(f"expected windows (B, {_text(self._shape)}) float32, got {batch.shape} {batch.dtype}")
        if not np.isfinite(batch).all():
            raise DataError("a window has values that are not finite")
        if not len(batch):
            return np.zeros((0, len(self._labels)), np.float32)
        known = np.ascontiguousarray(batch[..., : self._input.shape[-1]])
        parts = self._limiter.run(len(known), lambda start, stop: self._classify_batch(known[start:stop]))
        return np.concatenate(parts)

    def close(self) -> None:
        self._session.close()

    def _classify_batch(self, batch: FloatArray) -> FloatArray:
        count = len(batch)
        if self._fixed_batch and count < self._fixed_batch:
            batch = np.concatenate([batch, np.zeros((self._fixed_batch - count, *batch.shape[1:]), np.float32)])
        (scores,) = self._session.run({self._input.name: batch.astype(self._input.dtype, copy=False)})
        if scores.shape != (len(batch), len(self._labels)):
            raise ModelError(
                f"{self.name}: expected output ({len(batch)}, {len(self._labels)}) for the labels "
                f"{', '.join(self._labels)}; found {self._output.name} {scores.shape}"
            )
        if not np.isfinite(scores).all():
            raise ModelError(f"{self.name}: the output is not finite")
        return _probabilities(scores[:count].astype(np.float64), self._output)


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Over the last axis, of logits / temperature; safe against overflow."""
    scaled = logits / temperature
    exponents = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return cast("NDArray[np.float64]", exponents / exponents.sum(axis=-1, keepdims=True))


def _probabilities(scores: NDArray[np.float64], output: OutputInfo) -> FloatArray:
    if output.meaning == "logits":
        return softmax(scores, output.temperature).astype(np.float32)
    sums = scores.sum(axis=-1, keepdims=True)
    if scores.min() < 0 or np.abs(sums - 1).max() > _PROBABILITY_SUM_TOLERANCE:
        raise ModelError(f"{output.name} should hold probabilities, but a row sums to {sums.flat[0]:.3g}")
    return cast("FloatArray", (scores / sums).astype(np.float32))


def _read_options(name: str, config: ServiceConfig) -> StgcnOptions:
    try:
        return StgcnOptions.model_validate(config.options)
    except ValidationError as error:
        problems = [
            ConfigProblem(problem["msg"], path=".".join(str(p) for p in (f"services.{name}.options", *problem["loc"])))
            for problem in error.errors()
        ]
        raise ConfigError(problems) from error


def _window_input(session: InferenceSession, bundle: Bundle) -> TensorSpec:
    specs = session.inputs
    if len(specs) != 1 or len(specs[0].shape) != 5 or specs[0].dtype not in {np.dtype("f4"), np.dtype("f2")}:
        found = ", ".join(str(spec) for spec in specs)
        raise ModelError(f"{bundle.title}: expected one input (B, M, T, V, C) float32 or float16, found {found}")
    if specs[0].shape[3] not in {NUM_KEYPOINTS, None}:
        raise ModelError(f"{bundle.title}: expected V = {NUM_KEYPOINTS} key points (COCO), found {specs[0]}")
    return specs[0]


def _output_info(session: InferenceSession, bundle: Bundle) -> OutputInfo:
    if len(session.outputs) != 1 or len(session.outputs[0].shape) != 2:
        found = ", ".join(str(spec) for spec in session.outputs)
        raise ModelError(f"{bundle.title}: expected one output (B, K), found {found}")
    name = session.outputs[0].name
    declared = (
        bundle.manifest.outputs if bundle.manifest else (OutputInfo(name=name, shape=(None, None), meaning="logits"),)
    )
    for info in declared:
        if info.name == name and info.meaning in {"logits", "probabilities"}:
            return info
    raise ModelError(f"{bundle.title}: the manifest does not say whether {name!r} holds logits or probabilities")


def _labels(service: str, config: ServiceConfig, options: StgcnOptions, bundle: Bundle) -> tuple[str, ...]:
    labels = bundle.manifest.labels if bundle.manifest else options.labels
    positive = config.positive or service
    if not labels:
        hint = "use a bundle, or list the classes in the graph's order"
        problem = f"{bundle.title} does not name its classes"
        raise ConfigError([ConfigProblem(problem, path=f"services.{service}.options.labels", hint=hint)])
    if positive not in labels:
        problem = f"{bundle.title} has no class {positive!r}; its classes: {', '.join(labels)}"
        hint = "set `positive` to the class that means the action"
        raise ConfigError([ConfigProblem(problem, path=f"services.{service}.positive", hint=hint)])
    return labels


def trained_rate_hz(manifest: Manifest) -> float:
    """Time steps per second of the windows that the model learnt from; 0 = one per frame, or nothing is said."""
    preprocessing = manifest.inputs[0].preprocessing
    return preprocessing.rate_hz if isinstance(preprocessing, SkeletonInput) else 0.0


def _window_shape(service: str, config: ServiceConfig, spec: TensorSpec, bundle: Bundle) -> WindowShape:
    """(M, T, V, C) of the service, which the graph has to take; of more channels than it has, it takes the first."""
    window = config.window
    wanted = (window.people, window.length, NUM_KEYPOINTS, window.channels)
    keys = ("people", "length", "", "channels")
    problems = [
        ConfigProblem(
            f"the window has {key} = {want}, the model takes {have}: {spec}",
            path=f"services.{service}.window.{key}",
            hint=f"set {key}: {have}, or use a model trained for {want}",
        )
        for key, want, have in zip(keys, wanted, spec.shape[1:], strict=True)
        if have not in {None, want} and not (key == "channels" and have in range(2, want))
    ]
    rate_hz = trained_rate_hz(bundle.manifest) if bundle.manifest else 0.0
    if rate_hz and window.rate_hz != rate_hz:  # it would answer all the same, to motion at another speed
        problem = f"the window has rate_hz = {window.rate_hz:g}, {bundle.title} was trained at {rate_hz:g}"
        hint = f"set rate_hz: {rate_hz:g}, or use a model trained at the rate that you want"
        problems.append(ConfigProblem(problem, path=f"services.{service}.window.rate_hz", hint=hint))
    if problems:
        raise ConfigError(problems)
    return wanted


def _text(shape: tuple[Any, ...]) -> str:
    return ", ".join(str(size) for size in shape)
