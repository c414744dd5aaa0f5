"""Inference sessions: an explicit choice of device, and TensorRT that arrives in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import structlog

from agent.errors import DeviceMemoryError, ModelError
from agent.runtime.backend import Array, Backend, Engine, SessionSettings, ShapeRange, format_shapes, zeros
from agent.runtime.builder import process_build
from agent.runtime.devices import Accelerators, Device, Plan, plan_devices, probe_accelerators
from agent.runtime.engines import Build, EngineCache, EngineKey, EngineProgress, EngineState, EngineUpgrade

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class InferenceSession:
    """A loaded model. `run` from one thread; the rest from any.

    It computes on `device` and moves to TensorRT by itself once `begin_upgrade` was called and an engine stands.
    """

    def __init__(
        self,
        backend: Backend,
        model: Path,
        plan: Plan,
        settings: SessionSettings,
        machine: Accelerators,
        *,
        fallback: str = "",
    ) -> None:
        self._backend: Backend | None = backend
        self._model = model
        self._plan = plan
        self._settings = settings
        self._machine = machine
        self._fallback = fallback
        self._upgrade: EngineUpgrade | None = None
        self._swap = threading.Lock()
        self.inputs = backend.inputs
        self.outputs = backend.outputs

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.outputs)

    @property
    def device(self) -> str:
        """Who computes at the moment: `cpu`, `cuda:0`, `tensorrt:0`."""
        return str(self._open_backend().device)

    @property
    def fallback(self) -> str:
        """Why a lesser device computes than this machine should have; empty = it does not, or no longer."""
        return self._fallback

    @property
    def upgrade(self) -> EngineProgress | None:
        """How far TensorRT is; None when none was planned."""
        return self._upgrade.progress if self._upgrade else None

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs for the inputs by name, in the order of `outputs`.

        Raises DeviceMemoryError, FatalError (dead CUDA context), ModelError (anything else, a wrong shape included, or an
        engine that was asked for by name and could not be had).
        """
        backend = self._open_backend()  # one reference per call: a swap in between does not matter
        progress = self.upgrade
        if self._plan.required and progress and progress.state is EngineState.FAILED:
            raise ModelError(f"{self._model.name}: no TensorRT engine: {progress.detail}")
        return backend.run(feeds)

    def begin_upgrade(
        self,
        shapes: Mapping[str, ShapeRange],
        *,
        model_sha256: str,
        engine_cache: Path,
        check: Callable[[InferenceSession], None] | None = None,
        on_progress: Callable[[EngineProgress], None] | None = None,
        build: Build | None = None,
    ) -> EngineUpgrade | None:
        """Start to move to TensorRT in the background, if the device choice says so; else None.

        shapes: the range of each input; check: raises ModelError when the new session's answers are not good enough;
        build: replaces the real builder.
        """
        device = self._plan.build
        if device is None or self._upgrade:
            return self._upgrade
        key = EngineKey(
            model_sha256=model_sha256,
            gpu=self._machine.gpus[device.index],
            ort_version=self._machine.ort_version,
            tensorrt_version=self._machine.tensorrt,
            driver=self._machine.driver,
            precision=self._settings.precision,
            shapes=format_shapes(shapes, 0) + "-" + format_shapes(shapes, 1),
        )
        request = {
            "model": str(self._model), "device_index": device.index, "precision": self._settings.precision,
            "shapes": dict(shapes),
        }  # fmt: skip

        def activate(folder: Path) -> None:
            self._activate(device, Engine.stored(folder, shapes), check)

        cache = EngineCache(engine_cache)
        self._upgrade = EngineUpgrade(cache, key, build or process_build(request), activate, on_progress)
        self._upgrade.start()
        return self._upgrade

    def _activate(
        self,
        device: Device,
        engine: Engine,
        check: Callable[[InferenceSession], None] | None,
    ) -> None:
        backend = Backend(self._model, device, self._settings, engine)
        backend.run(zeros(backend.inputs, engine.shapes, 1))
        if check:
            check(InferenceSession(backend, self._model, Plan((device,)), self._settings, self._machine))
        with self._swap:
            if self._backend:  # else closed meanwhile
                self._backend, self._fallback = backend, ""

    def close(self) -> None:
        """Stop a running build and free the device; twice is fine."""
        if self._upgrade:
            self._upgrade.cancel()
        with self._swap:
            self._backend = None

    def _open_backend(self) -> Backend:
        backend = self._backend
        if backend is None:
            raise ModelError(f"{self._model.name}: the session is closed")
        return backend


def create_session(
    model: Path,
    *,
    device: str = "auto",
    settings: SessionSettings | None = None,
    engine_cache: Path | None = None,
    config_path: str = "device",
    machine: Accelerators | None = None,
) -> InferenceSession:
    """Open the ONNX file `model`.

    device: `cpu`, `cuda[:N]`, `tensorrt[:N]`, or `auto` = the best there is. Never waits for an engine build: see
    `InferenceSession.begin_upgrade`. engine_cache: folder for engines; without one `auto` leaves TensorRT alone.
    config_path: the key to name in a ConfigError; machine: what to believe about this machine instead of looking.

    Raises ConfigError (the device asked for is absent), ModelError (file missing, corrupt, unsupported),
    DeviceMemoryError, FatalError.
    """
    return create_served(
        model, lambda session: session, device=device, settings=settings, engine_cache=engine_cache,
        config_path=config_path, machine=machine,
    )  # fmt: skip


def create_served(
    model: Path,
    prepare: Callable[[InferenceSession], T],
    *,
    device: str,
    settings: SessionSettings | None,
    engine_cache: Path | None,
    config_path: str,
    machine: Accelerators | None,
) -> T:
    """As `create_session`, but what `prepare` makes of the session: a model that has shown that it works.

    Where opening or `prepare` raises ModelError or DeviceMemoryError, the next device of the choice is tried: weights may
    fit into a GPU where a first run does not. A session that is not taken is closed.
    """
    if not model.is_file():
        raise ModelError(
            f"{model}: no such model file (hint: check the path; a bundle names its model in manifest.json)"
        )
    # `models pull` lets the name of a folder stand for another model, and an engine of this one may be built after that.
    model = model.parent.resolve() / model.name
    found = machine or probe_accelerators()
    plan = plan_devices(device, found, engine_cache=engine_cache is not None, path=config_path)
    chosen = settings or SessionSettings()

    def attempt(one: Device, fallback: str) -> T:
        session = InferenceSession(Backend(model, one, chosen), model, plan, chosen, found, fallback=fallback)
        try:
            return prepare(session)
        except BaseException:
            session.close()
            raise

    fallback = plan.missing
    for one in plan.serve[:-1]:
        try:
            return attempt(one, fallback)
        except (ModelError, DeviceMemoryError) as error:
            _log.warning("device passed over", device=str(one), reason=str(error))
            fallback = f"{one} passed over: {error}"
    return attempt(plan.serve[-1], fallback)
