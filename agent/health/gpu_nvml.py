"""GPU state through NVML (dGPU).

Every NVML call may answer NotSupported; that field is then None. A device that is lost is reported as such, because a
GPU that falls off the bus otherwise just looks like one that has nothing to say. One that this process may not open is left out:
it is somebody else's.

A driver knows the calls of its own time: where one has been renamed, the name it had before is tried next. Those before
R565, such as Debian 12's, have no `nvmlDeviceGetTemperatureV`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import structlog

from agent.health.gpu import GpuSample, Throttle

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_THROTTLE_BITS = {
    0x4: Throttle.SW_POWER_CAP,
    0x8: Throttle.HW_SLOWDOWN,
    0x20: Throttle.SW_THERMAL,
    0x40: Throttle.HW_THERMAL,
    0x80: Throttle.HW_POWER_BRAKE,
}
"""nvmlClocksEventReason* of nvml.h; 0x1 (idle) and the settings somebody made on purpose are no faults."""


class NvmlApi(Protocol):
    """The part of the module `pynvml` that is used."""

    NVMLError: type[Exception]
    NVML_ERROR_GPU_IS_LOST: int
    NVML_ERROR_NO_PERMISSION: int
    NVML_TEMPERATURE_GPU: int
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: int
    NVML_TEMPERATURE_THRESHOLD_SHUTDOWN: int
    NVML_CLOCK_SM: int

    def nvmlInit(self) -> None: ...  # noqa: N802 - the library's names
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str: ...  # noqa: N802
    def nvmlDeviceGetTemperatureV(self, handle: Any, sensor: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetTemperatureThreshold(self, handle: Any, threshold: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int: ...  # noqa: A002, N802
    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int: ...  # noqa: A002, N802
    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int: ...  # noqa: N802
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int: ...  # noqa: N802


class NvmlProbe:
    """Reads all GPUs that NVML knows and this process may open. Built by `open_nvml`; NVML is initialised while it lives."""

    def __init__(self, api: NvmlApi) -> None:
        """Raises `api.NVMLError` when NVML does not initialise (no driver, no library)."""
        self._api = api
        api.nvmlInit()
        self._open = True
        self._known: tuple[str, ...] = ()

    def sample(self) -> tuple[GpuSample, ...]:
        """See `GpuProbe.sample`."""
        try:
            count = self._api.nvmlDeviceGetCount()
        except self._api.NVMLError as error:
            _log.debug("nvml_count_failed", error=str(error))
            return tuple(GpuSample(gpu_id, lost=True) for gpu_id in self._known)  # a lost one may take this call down
        samples = tuple(sample for index in range(count) if (sample := self._device(index)) is not None)
        self._known = tuple(sample.gpu_id for sample in samples)
        return samples

    def close(self) -> None:
        """Release NVML; may be called twice."""
        if self._open:
            self._open, self._known = False, ()
            try:
                self._api.nvmlShutdown()
            except self._api.NVMLError as error:
                _log.debug("nvml_shutdown_failed", error=str(error))

    def _device(self, index: int) -> GpuSample | None:
        api, reader = self._api, _Reader(self._api)
        handle = reader.get(lambda: api.nvmlDeviceGetHandleByIndex(index))
        if handle is None and reader.forbidden:
            return None
        if handle is None:
            return GpuSample(str(index), lost=True)  # NVML counts it and cannot reach it
        memory = reader.get(lambda: api.nvmlDeviceGetMemoryInfo(handle))
        rates = reader.get(lambda: api.nvmlDeviceGetUtilizationRates(handle))
        bits = reader.get(
            lambda: api.nvmlDeviceGetCurrentClocksEventReasons(handle),
            lambda: api.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        )
        return GpuSample(
            gpu_id=str(index),
            name=reader.get(lambda: api.nvmlDeviceGetName(handle)) or "",
            temperature_c=reader.get(
                lambda: float(api.nvmlDeviceGetTemperatureV(handle, api.NVML_TEMPERATURE_GPU)),
                lambda: float(api.nvmlDeviceGetTemperature(handle, api.NVML_TEMPERATURE_GPU)),
            ),
            slowdown_c=reader.get(lambda: self._threshold(handle, api.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
            shutdown_c=reader.get(lambda: self._threshold(handle, api.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            utilisation=None if rates is None else float(rates.gpu) / 100,
            clock_mhz=reader.get(lambda: float(api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_SM))),
            max_clock_mhz=reader.get(lambda: float(api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_SM))),
            throttle=None if bits is None else throttle_of(bits),
            lost=reader.lost,
        )

    def _threshold(self, handle: Any, which: int) -> float:
        return float(self._api.nvmlDeviceGetTemperatureThreshold(handle, which))


class _Reader:
    """Turns NVML's errors into None and remembers whether one of them said that the device is gone, or not for us."""

    def __init__(self, api: NvmlApi) -> None:
        self._api = api
        self.lost = self.forbidden = False

    def get(self, *calls: Callable[[], _T]) -> _T | None:
        """The answer of the first of `calls` that gives one."""
        for call in calls:
            try:
                return call()
            except (self._api.NVMLError, AttributeError) as error:  # the driver, or the module, does not know it
                code = getattr(error, "value", None)
                self.lost |= code == self._api.NVML_ERROR_GPU_IS_LOST
                self.forbidden |= code == self._api.NVML_ERROR_NO_PERMISSION
        return None


def throttle_of(bits: int) -> frozenset[Throttle]:
    """The faults in an NVML clocks-event-reasons mask."""
    return frozenset(reason for bit, reason in _THROTTLE_BITS.items() if bits & bit)


def open_nvml() -> NvmlProbe | None:
    """A probe of this machine's GPUs, or None where there is no NVIDIA driver."""
    import pynvml

    try:
        return NvmlProbe(pynvml)
    except pynvml.NVMLError as error:
        _log.info("no_nvml", error=str(error))
        return None
