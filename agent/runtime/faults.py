"""What an onnxruntime error means to the caller.

onnxruntime has one exception class per status code, no common base, and reports out-of-memory and dead contexts as plain
`RuntimeException` with the reason in the text (microsoft/onnxruntime#16307), so the text decides.
"""

from __future__ import annotations

import re
from typing import Any

from agent.errors import DeviceMemoryError, FatalError, ModelError, RecognizerError

_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|OUT_OF_MEMORY|ALLOC_FAILED|cudaErrorMemoryAllocation|bad_alloc"
    r"|bad allocation|CUDA failure 2:",
    re.IGNORECASE,
)
_DEAD_CONTEXT = re.compile(
    # Errors that CUDA calls sticky: every later call of this process fails with the same one.
    r"CUDA failure (?:46|214|219|220|226|7[01]\d|999):"
    r"|illegal (?:memory access|instruction|address)|misaligned address|invalid program counter|unspecified launch failure"
    r"|launch timed out|device-side assert|uncorrectable ECC|hardware stack error|driver shutting down"
    r"|CUDA_ERROR_(?:ILLEGAL_ADDRESS|LAUNCH_FAILED|ECC_UNCORRECTABLE|ASSERT|CONTEXT_IS_DESTROYED)"
    r"|GPU is lost|fallen off the bus",
    re.IGNORECASE,
)
_MAX_TEXT = 400


def ort_errors() -> tuple[type[BaseException], ...]:
    """Everything onnxruntime raises: its own classes and what pybind11 makes of C++ exceptions."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "DeviceReset", "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
        "ModelLoadCanceled", "ModelLoaded", "ModelRequiresCompilation", "NoModel", "NoSuchFile", "NotFound",
        "NotImplemented", "RuntimeException",
    )  # fmt: skip
    own: list[Any] = [getattr(state, name) for name in names if hasattr(state, name)]
    return (*own, RuntimeError, ValueError, TypeError, MemoryError)


def translate(error: BaseException, doing: str) -> RecognizerError:
    """The agent's error for `error`, which onnxruntime raised while `doing` ("running rtmo.onnx on cuda:0")."""
    text = " ".join(str(error).split())
    message = f"{doing}: {text[:_MAX_TEXT]}"
    if _DEAD_CONTEXT.search(text) or type(error).__name__ == "DeviceReset":
        return FatalError(message)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return DeviceMemoryError(message)
    return ModelError(message)
