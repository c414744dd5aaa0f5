"""`recognizer-agent models build`: TensorRT engines ahead of time, so that no start has to wait for one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from agent.action import stgcn
from agent.cli import EXIT_FAILED, EXIT_GOOD
from agent.config.schema import AgentConfig, ServiceConfig, WindowConfig
from agent.errors import ModelError
from agent.pose import rtmo
from agent.runtime.bundle import read_bundle
from agent.runtime.devices import PROVIDERS, Accelerators, Kind, probe_accelerators
from agent.runtime.engines import EngineProgress, EngineState
from agent.runtime.manifest import Manifest

_POLL_S = 0.2
_ENDED = frozenset({EngineState.SERVING, EngineState.FAILED, EngineState.CANCELLED})


class Upgrading(Protocol):
    """A loaded model that may be moving to TensorRT."""

    @property
    def name(self) -> str: ...

    @property
    def upgrade(self) -> EngineProgress | None: ...

    def close(self) -> None: ...


def run(args: argparse.Namespace, config: AgentConfig, path: Path | None) -> int:
    """Build for `path`, or for what the configuration names; exit code 1 when an engine could not be had.

    Raises ModelError when this machine has no TensorRT.
    """
    return build(config, path, device=args.device, precision=args.precision, machine=probe_accelerators())


def build(config: AgentConfig, path: Path | None, *, device: str, precision: str, machine: Accelerators) -> int:
    """As `run`; machine: what this machine can compute with, as far as is known."""
    if missing := missing_tensorrt(machine):
        raise ModelError(f"no TensorRT here, nothing to build: {missing}")
    codes = [_finish(load) for load in _loaders(config, path, device, precision, machine)]
    if not codes:
        raise ModelError("nothing to build: the configuration names no model for TensorRT (hint: name a model)")
    return max(codes)


def missing_tensorrt(machine: Accelerators) -> str:
    """What keeps TensorRT from working here, and what to do; empty = nothing."""
    provider = PROVIDERS[Kind.TENSORRT]
    if provider not in machine.providers:
        has = ", ".join(machine.providers)
        return f"onnxruntime {machine.ort_version} has no {provider}, only {has} (hint: install the extra `gpu`)"
    if not machine.gpus:
        return f"no GPU: {machine.problem} (hint: check `nvidia-smi`)"
    if not machine.tensorrt:
        return "libnvinfer cannot be loaded (hint: JetPack brings it; on a dGPU install the package tensorrt)"
    return ""


Load = Callable[[], Upgrading]


def _loaders(
    config: AgentConfig, path: Path | None, device: str, precision: str, machine: Accelerators
) -> Iterator[Load]:
    """Load each model exactly as the daemon would, so that the daemon finds the engine under its key."""
    engines = config.pose.engine_cache or config.state_dir / "engines"
    manifest = read_bundle(path).manifest if path else None
    if manifest is None or manifest.task == "pose":
        model = path or (config.pose.model if config.pose.estimator == "rtmo" else None)
        if model:
            chosen = config.pose.options if config.pose.estimator == "rtmo" else {}
            changes: dict[str, Any] = {
                "estimator": "rtmo", "model": model, "device": device, "engine_cache": engines,
                "options": chosen | ({"precision": precision} if precision else {}),
            }  # fmt: skip
            pose = config.pose.model_copy(update=changes)
            yield lambda: rtmo.create(pose, machine=machine)
    for name, service in _services(config, path, manifest).items():
        cache = service.options.get("engine_cache", engines if path else None)
        if cache and service.classifier == "stgcn":
            options = service.options | {"engine_cache": cache} | ({"precision": precision} if precision else {})
            one = service.model_copy(update={"device": device, "options": options})
            yield lambda name=name, one=one: stgcn.create(name, one, machine=machine)  # type: ignore[misc]


def _services(config: AgentConfig, path: Path | None, manifest: Manifest | None) -> dict[str, ServiceConfig]:
    if path is None:
        return {name: service for name, service in config.services.items() if service.enabled}
    if manifest is None or manifest.task != "action":
        return {}
    users = {name: one for name, one in config.services.items() if one.model.resolve() == path.resolve()}
    if users:
        return users
    people, length, _, channels = (size if isinstance(size, int) else 0 for size in manifest.inputs[0].shape[1:])
    rate_hz = stgcn.trained_rate_hz(manifest)
    window = WindowConfig.model_validate({"people": people, "length": length, "channels": channels, "rate_hz": rate_hz})
    return {manifest.labels[-1]: ServiceConfig(model=path, window=window)}


def _finish(load: Load) -> int:
    model = load()
    try:
        return wait_for_engine(model.name, lambda: model.upgrade)
    finally:
        model.close()


def wait_for_engine(name: str, look: Callable[[], EngineProgress | None]) -> int:
    """Wait for the engine of the model `name` and say what happens; the exit code."""
    said = ""
    while True:
        progress = look()
        if progress is None:
            raise ModelError(f"{name}: no engine was asked for")
        line = f"{progress.state.value} {progress.detail}".strip()
        if line != said:
            said = line
            print(f"{name}: {line} ({progress.elapsed_s:.0f} s)", file=sys.stderr)
        if progress.state in _ENDED:
            break
        time.sleep(_POLL_S)
    if progress.state is EngineState.SERVING:
        print(f"{name}: engine ready after {progress.elapsed_s:.0f} s", file=sys.stderr)
        return EXIT_GOOD
    print(f"error: {name}: {progress.detail or progress.state.value}", file=sys.stderr)
    return EXIT_FAILED
