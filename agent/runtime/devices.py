"""Which device may serve: what this machine has, and the pure decision about it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.errors import ConfigError, ConfigProblem

_DRIVER_FILES = (Path("/sys/module/nvidia/version"), Path("/etc/nv_tegra_release"))
_TENSORRT_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8")
_CU_COMPUTE_CAPABILITY = (75, 76)
"""CUdevice_attribute: major and minor compute capability."""


class Kind(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


PROVIDERS = {
    Kind.CPU: "CPUExecutionProvider",
    Kind.CUDA: "CUDAExecutionProvider",
    Kind.TENSORRT: "TensorrtExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One device; index: which GPU, always 0 for the CPU."""

    kind: Kind
    index: int = 0

    def __str__(self) -> str:
        return self.kind.value if self.kind is Kind.CPU else f"{self.kind.value}:{self.index}"


CPU = Device(Kind.CPU)


@dataclass(frozen=True, slots=True)
class Accelerators:
    """What this machine can compute with.

    providers: execution providers compiled into this onnxruntime; gpus: CUDA devices as `name (compute capability)`;
    driver, tensorrt: versions, empty = absent; problem: why there are no GPUs.
    """

    ort_version: str
    providers: tuple[str, ...]
    gpus: tuple[str, ...] = ()
    driver: str = ""
    tensorrt: str = ""
    problem: str = ""

    def has(self, kind: Kind) -> bool:
        """Can `kind` work here, as far as it shows without opening a model?"""
        if kind is Kind.CPU:
            return True
        libraries = bool(self.tensorrt) if kind is Kind.TENSORRT else True
        return PROVIDERS[kind] in self.providers and bool(self.gpus) and libraries


@dataclass(frozen=True, slots=True)
class Plan:
    """serve: devices to try now, best first; build: the TensorRT device to move to once its engine stands.

    required: the build was asked for by name, so its failure is an error and not a loss of speed. missing: why `auto` is left
    with the CPU although this onnxruntime is one for GPUs; empty = it is not.
    """

    serve: tuple[Device, ...]
    build: Device | None = None
    required: bool = False
    missing: str = ""

    @property
    def cpu_only(self) -> bool:
        """No accelerator serves, now or once its engine stands."""
        return self.serve == (CPU,) and self.build is None


def parse_device(text: str) -> Device | None:
    """`cpu`, `cuda`, `cuda:1`, `tensorrt:0`; None for `auto`."""
    if text == "auto":
        return None
    kind, _, index = text.partition(":")
    return Device(Kind(kind), int(index or 0))


def plan_devices(device: str, machine: Accelerators, *, engine_cache: bool, path: str = "device") -> Plan:
    """Decide who serves. Pure.

    device: as configured; engine_cache: is there a folder for engines; path: the key to name in errors.
    A device asked for by name is used or refused, never replaced. Raises ConfigError.
    """
    asked = parse_device(device)
    if asked is None:
        serve = (Device(Kind.CUDA), CPU) if machine.has(Kind.CUDA) else (CPU,)
        build = Device(Kind.TENSORRT) if engine_cache and machine.has(Kind.TENSORRT) else None
        return Plan(serve, build, missing=_missing(machine))
    if asked.kind is Kind.CPU:
        return Plan((CPU,))
    _require(asked, machine, path)
    if asked.kind is Kind.CUDA:
        return Plan((asked,))
    if not engine_cache:
        problem = f"device {device!r} needs a folder for its engines"
        raise ConfigError([ConfigProblem(problem, path=path, hint="set engine_cache, or device: cuda")])
    meanwhile = (Device(Kind.CUDA, asked.index), CPU) if machine.has(Kind.CUDA) else (CPU,)
    return Plan(meanwhile, asked, required=True)


def _missing(machine: Accelerators) -> str:
    """Nobody installs an onnxruntime for GPUs where there is none: a GPU that is not found has gone, or its driver has."""
    if machine.gpus or PROVIDERS[Kind.CUDA] not in machine.providers:
        return ""
    return f"no GPU for this onnxruntime: {machine.problem} (hint: check `nvidia-smi`; without a GPU set device: cpu)"


def _require(asked: Device, machine: Accelerators, path: str) -> None:
    provider = PROVIDERS[asked.kind]
    if provider not in machine.providers:
        problem = (
            f"device '{asked}' needs {provider}; this onnxruntime {machine.ort_version} has only "
            f"{', '.join(machine.providers)}"
        )
        hint = "install the extra `gpu` (package onnxruntime-gpu) in place of `cpu`, or set device: auto"
    elif asked.index >= len(machine.gpus):
        found = ", ".join(machine.gpus) or f"none ({machine.problem})"
        problem, hint = f"device '{asked}': no such GPU; found: {found}", "check `nvidia-smi`, or set device: auto"
    elif asked.kind is Kind.TENSORRT and not machine.tensorrt:
        problem = f"device '{asked}' needs the TensorRT libraries (libnvinfer), which cannot be loaded"
        hint = "JetPack brings them; on a dGPU install the package tensorrt; or set device: cuda"
    else:
        return
    raise ConfigError([ConfigProblem(problem, path=path, hint=hint)])


def probe_accelerators() -> Accelerators:
    """Look at this machine. Loads onnxruntime and, where there is one, the CUDA driver; opens no model."""
    import onnxruntime

    providers = tuple(onnxruntime.get_available_providers())
    version = str(onnxruntime.__version__)
    if PROVIDERS[Kind.CUDA] not in providers:
        return Accelerators(version, providers, problem="this onnxruntime is built without CUDA")
    gpus, driver, problem = _cuda_devices()
    tensorrt = _tensorrt_version() if gpus and PROVIDERS[Kind.TENSORRT] in providers else ""
    return Accelerators(version, providers, gpus, driver, tensorrt, problem)


def preload_libraries() -> None:
    """Let onnxruntime find CUDA and cuDNN that came as Python packages (`nvidia-*`), if any did."""
    import onnxruntime

    if importlib.util.find_spec("nvidia") and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls(directory="")


def core_count() -> int:
    """Physical cores that this process may use; hyper-threads do not speed up matrix products."""
    import psutil

    allowed = len(os.sched_getaffinity(0))
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _cuda_devices(library: str = "libcuda.so.1") -> tuple[tuple[str, ...], str, str]:
    """Names of the GPUs, driver version, and what went wrong. The driver API works on dGPU and Jetson alike."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        return (), "", f"no NVIDIA driver: {error}"
    if code := cuda.cuInit(0):
        return (), "", f"cuInit failed with error {code}"
    count, version = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    cuda.cuDriverGetVersion(ctypes.byref(version))
    names = []
    for ordinal in range(count.value):
        handle, text = ctypes.c_int(), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(handle), ordinal)
        cuda.cuDeviceGetName(text, len(text), handle)
        capability = []
        for attribute in _CU_COMPUTE_CAPABILITY:
            value = ctypes.c_int()
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
            capability.append(str(value.value))
        names.append(f"{text.value.decode(errors='replace')} ({'.'.join(capability)})")
    releases = [file.read_text().splitlines()[0].strip() for file in _DRIVER_FILES if file.is_file()]
    return tuple(names), " ".join([str(version.value), *releases]), "" if names else "the driver reports no device"


def _tensorrt_version(libraries: Sequence[str] = _TENSORRT_LIBRARIES) -> str:
    for name in (*_packaged_tensorrt(), *libraries):
        try:
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        number = int(library.getInferLibVersion())
        major, minor = (
            (number // 10000, number // 100 % 100) if number >= 100_000 else (number // 1000, number // 100 % 10)
        )
        return f"{major}.{minor}.{number % 100}"
    return ""


def _packaged_tensorrt() -> list[str]:
    """Libraries of the `tensorrt` wheels, which no loader path knows."""
    spec = importlib.util.find_spec("tensorrt_libs")
    folders = spec.submodule_search_locations if spec else None
    return [str(file) for folder in folders or () for file in sorted(Path(folder).glob("libnvinfer.so.*"))]
