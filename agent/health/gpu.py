"""What is known of an accelerator, whichever way it is read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Throttle(StrEnum):
    """Why a GPU runs below its clocks. Being idle is no fault and not listed."""

    SW_POWER_CAP = "sw_power_cap"
    HW_SLOWDOWN = "hw_slowdown"
    SW_THERMAL = "sw_thermal"
    HW_THERMAL = "hw_thermal"
    HW_POWER_BRAKE = "hw_power_brake"


THERMAL = frozenset({Throttle.SW_THERMAL, Throttle.HW_THERMAL})
FAULTS = THERMAL | {Throttle.HW_POWER_BRAKE}
"""What somebody should look at. A power cap is usual for a GPU at work; a hardware slow-down is also reported while the clocks change, and
has the more exact word beside it where heat or the power brake is behind it."""


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one moment; None = the device does not say.

    temperature_c, slowdown_c, shutdown_c: degrees Celsius. memory_*: bytes;
    memory_shared: it is the CPU's memory as well (Jetson).
    utilisation: 0-1. clock_mhz, max_clock_mhz: of the shader cores. lost: it stopped answering; only a reset or a
    restart brings it back.
    """

    gpu_id: str
    name: str = ""
    temperature_c: float | None = None
    slowdown_c: float | None = None
    shutdown_c: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_shared: bool = False
    utilisation: float | None = None
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    throttle: frozenset[Throttle] | None = None
    lost: bool = False

    @property
    def memory_fraction(self) -> float | None:
        """Used / total, 0-1."""
        if self.memory_used_bytes is None or not self.memory_total_bytes:
            return None
        return self.memory_used_bytes / self.memory_total_bytes

    @property
    def thermal_throttle(self) -> bool | None:
        """The clocks are held down for heat."""
        return None if self.throttle is None else bool(self.throttle & THERMAL)


class GpuProbe(Protocol):
    """Reads every GPU of one kind. Blocking: use it from a thread."""

    def sample(self) -> tuple[GpuSample, ...]:
        """All GPUs now; empty = none. Never raises: what cannot be read is None, a dead device is `lost`."""
        ...

    def close(self) -> None: ...
