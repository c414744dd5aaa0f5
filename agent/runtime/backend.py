"""One onnxruntime session on one device, with typed tensors and translated errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agent.errors import DeviceMemoryError, FatalError, ModelError, RecognizerError
from agent.runtime.devices import PROVIDERS, Device, Kind, core_count, preload_libraries
from agent.runtime.faults import ort_errors, translate

_ERRORS_ONLY = 3
_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int64)": np.int64,
    "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip

_SPLIT = "split.json"
_SPLITS: tuple[Mapping[str, str], ...] = (
    # With explicit shapes TensorRT refuses a part of the graph whose own inputs vary (microsoft/onnxruntime#17007), such as
    # what follows a non-maximum suppression. So: as onnxruntime would split it; all in one engine; only its large parts.
    {},
    {"trt_op_types_to_exclude": ""},
    {"trt_min_subgraph_size": "200"},
)

Array = NDArray[Any]
Shape = tuple[int, ...]
Precision = Literal["fp32", "fp16"]
ShapeRange = tuple[Shape, Shape]
"""Smallest and largest shape of one input."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph; None in `shape` = varies."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes}) {self.dtype}"

    def accepts(self, shape: Sequence[int]) -> bool:
        """Does `shape` fit?"""
        return len(shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How to compute.

    threads: intra-op threads on the CPU, 0 = one per physical core; spinning: let idle threads burn their core for a few
    microseconds less latency; precision: of TensorRT engines; gpu_memory_limit_bytes: of CUDA's arena, 0 = none.
    """

    threads: int = 0
    spinning: bool = False
    precision: Precision = "fp32"
    gpu_memory_limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Engine:
    """A TensorRT engine's folder, the shapes it is for, per input, and how the graph was split for it."""

    folder: Path
    shapes: Mapping[str, ShapeRange]
    split: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def stored(cls, folder: Path, shapes: Mapping[str, ShapeRange]) -> Engine:
        """The finished engine in `folder`. Raises ModelError."""
        file = folder / _SPLIT
        try:
            return cls(folder, shapes, json.loads(file.read_bytes()) if file.exists() else {})
        except (OSError, ValueError) as error:
            raise ModelError(f"{file}: {error}") from error


class Backend:
    """One onnxruntime session on one device."""

    def __init__(
        self,
        model: Path,
        device: Device,
        settings: SessionSettings,
        engine: Engine | None = None,
    ) -> None:
        self.device = device
        self._where = f"{model.name} on {device}"
        self._errors = ort_errors()
        self._ort = self._open(model, settings, engine)
        self.inputs = tuple(_spec(node) for node in self._ort.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._ort.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def _open(self, model: Path, settings: SessionSettings, engine: Engine | None) -> Any:
        import onnxruntime

        if self.device.kind is not Kind.CPU:
            preload_libraries()
        wanted = PROVIDERS[self.device.kind]
        if wanted not in onnxruntime.get_available_providers():
            raise ModelError(f"loading {self._where}: this onnxruntime has no {wanted}")
        providers = _providers(self.device, settings, engine)
        try:
            session = onnxruntime.InferenceSession(
                str(model), _options(settings), providers=providers, enable_fallback=0
            )
        except self._errors as error:
            raise _load_error(model, self.device, translate(error, f"loading {self._where}")) from error
        session.disable_fallback()
        if wanted not in session.get_providers():  # onnxruntime only logs it and computes on the CPU
            raise ModelError(
                f"loading {self._where}: {wanted} is part of this onnxruntime but did not start "
                "(hint: CUDA or cuDNN libraries missing or of another major version; see `recognizer-agent doctor`)"
            )
        return session

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return list(self._ort.run(self._names, dict(feeds)))
        except self._errors as error:
            raise translate(error, f"running {self._where}") from error


def build_engine(request: Mapping[str, Any]) -> None:
    """Make onnxruntime write the TensorRT engine of `request` into its `folder`; the body of the builder process."""
    shapes = {name: (tuple(low), tuple(high)) for name, (low, high) in request["shapes"].items()}
    settings = SessionSettings(precision=request["precision"])
    model, folder, device = (
        Path(request["model"]),
        Path(request["folder"]),
        Device(Kind.TENSORRT, request["device_index"]),
    )
    reasons: list[str] = []
    for split in _SPLITS:
        try:
            _build_split(model, device, settings, Engine(folder, shapes, split))
        except ModelError as error:
            reasons.append(str(error))
            for leftover in folder.iterdir():
                leftover.unlink()
        else:
            (folder / _SPLIT).write_text(json.dumps(dict(split)))
            return
    raise ModelError("; ".join(dict.fromkeys(reasons)))


def _build_split(model: Path, device: Device, settings: SessionSettings, engine: Engine) -> None:
    backend = Backend(model, device, settings, engine)
    for bound in (0, 1):  # parts whose shapes show only at run time are built on the first run
        backend.run(zeros(backend.inputs, engine.shapes, bound))
    if not any(engine.folder.glob("*.engine")):
        raise ModelError("TensorRT took no part of the graph")


def _load_error(model: Path, device: Device, error: RecognizerError) -> RecognizerError:
    if isinstance(error, (FatalError, DeviceMemoryError)) or device.kind is not Kind.CPU:
        return error
    hint = "the file may be cut short or need a newer onnxruntime; compare its sha256 with the release"
    return ModelError(f"{error} [{model.stat().st_size} bytes] (hint: {hint})")


def _options(settings: SessionSettings) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads or core_count()
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = False  # a plan per batch size: twice the memory, measured, for batches that vary
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spinning else "0")
    return options


def _providers(device: Device, settings: SessionSettings, engine: Engine | None) -> list[tuple[str, dict[str, str]]]:
    chain: list[tuple[str, dict[str, str]]] = [(PROVIDERS[Kind.CPU], {})]
    if device.kind is Kind.CPU:
        return chain
    cuda = {
        "device_id": str(device.index),
        "arena_extend_strategy": "kSameAsRequested",  # grows by what is needed, not to the next power of two
        "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive default searches anew for each batch size
    }
    if settings.gpu_memory_limit_bytes:
        cuda["gpu_mem_limit"] = str(settings.gpu_memory_limit_bytes)
    chain.insert(0, (PROVIDERS[Kind.CUDA], cuda))
    if device.kind is Kind.TENSORRT and engine:
        chain.insert(0, (PROVIDERS[Kind.TENSORRT], _tensorrt_options(device, settings, engine)))
    return chain


def _tensorrt_options(device: Device, settings: SessionSettings, engine: Engine) -> dict[str, str]:
    return {
        "device_id": str(device.index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engine.folder),
        "trt_fp16_enable": "1" if settings.precision == "fp16" else "0",
        "trt_layer_norm_fp32_fallback": "1",  # LayerNorm in FP16 has cost RTMO all its detections
        "trt_profile_min_shapes": format_shapes(engine.shapes, 0),
        "trt_profile_opt_shapes": format_shapes(engine.shapes, 1),
        "trt_profile_max_shapes": format_shapes(engine.shapes, 1),
        **engine.split,
    }


def format_shapes(shapes: Mapping[str, ShapeRange], bound: int) -> str:
    """`input:1x3x640x640`, as onnxruntime writes profiles."""
    return ",".join(f"{name}:{'x'.join(str(size) for size in span[bound])}" for name, span in shapes.items())


def zeros(specs: Sequence[TensorSpec], shapes: Mapping[str, ShapeRange], bound: int) -> dict[str, Array]:
    """Inputs of the smallest (bound 0) or largest (1) shape."""
    return {spec.name: np.zeros(shapes[spec.name][bound], spec.dtype) for spec in specs}


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelError(f"tensor {node.name!r} is a {node.type}; known: {', '.join(_DTYPES)}")
    sizes = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return TensorSpec(node.name, sizes, np.dtype(_DTYPES[node.type]))
