"""GPU state of a Jetson from sysfs and /proc (its NVML answers next to nothing).

Load: `/sys/class/devfreq/*{ga10b,gv11b,gpu}*/device/load`, per mille. Temperature: the thermal zone whose type names
the GPU, milli-degrees. Clocks: `cur_freq` and `max_freq` of the devfreq node, Hz. Memory is shared with the CPU, so it
is what `/proc/meminfo` says. The nodes can appear after boot, or go and come back under another number with their driver, therefore they
are looked for again until found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.health.gpu import GpuSample, Throttle

_DEVFREQ_NAMES = ("ga10b", "gv11b", "gpu")
_OFFLINE_C = -256.0
"""What Tegra's firmware reports for a sensor in a part of the chip that is switched off."""
_RELOOK_EVERY = 15
"""Samples between two looks for a node that is not there."""


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Where this board keeps things. zone, devfreq: None = not there (yet)."""

    devfreq: Path | None
    zone: Path | None

    @property
    def complete(self) -> bool:
        """Both are there, now."""
        return (
            self.devfreq is not None and self.devfreq.exists() and self.zone is not None and _is_of_the_gpu(self.zone)
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip("\0\n ")
    except OSError:  # gone, not there, or the driver refuses while the GPU sleeps
        return None


def _number(path: Path | None) -> float | None:
    text = _read(path) if path is not None else None
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _find_devfreq(root: Path) -> Path | None:
    nodes = sorted((root / "sys/class/devfreq").glob("*"))
    for name in _DEVFREQ_NAMES:  # the exact chip before the generic word
        for node in nodes:
            if name in node.name.lower() and (node / "device/load").exists():
                return node
    return None


def _find_zone(root: Path) -> Path | None:
    zones = sorted((root / "sys/devices/virtual/thermal").glob("thermal_zone*"))
    return next(filter(_is_of_the_gpu, zones), None)


def _is_of_the_gpu(zone: Path) -> bool:
    return "gpu" in (_read(zone / "type") or "").lower()


def _trip_c(zone: Path, kinds: tuple[str, ...]) -> float | None:
    """The lowest trip point of one of `kinds`, degrees Celsius."""
    points = [
        value
        for kind_file in sorted(zone.glob("trip_point_*_type"))
        if _read(kind_file) in kinds
        and (value := _number(kind_file.with_name(kind_file.name.replace("_type", "_temp")))) is not None
        and value > 0
    ]
    return min(points) / 1000 if points else None


def is_jetson(root: Path = Path("/")) -> bool:
    """True on NVIDIA Tegra boards, by the device tree or the release file of L4T."""
    compatible = _read(root / "proc/device-tree/compatible") or ""
    return "nvidia,tegra" in compatible or (root / "etc/nv_tegra_release").exists()


class JetsonProbe:
    """Reads the one integrated GPU. root: of the file system, other than `/` in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._nodes = _Nodes(None, None)
        self._samples_since_look = _RELOOK_EVERY

    def sample(self) -> tuple[GpuSample, ...]:
        """See `GpuProbe.sample`; always one GPU, whose fields are None until its nodes appear."""
        self._look()
        devfreq, zone = self._nodes.devfreq, self._nodes.zone
        used, total = self._memory()
        temperature_c = _scaled(_number(zone / "temp" if zone else None), 1e-3)
        if temperature_c is not None and temperature_c <= _OFFLINE_C:
            temperature_c = None
        slowdown_c = _trip_c(zone, ("passive", "hot")) if zone else None
        return (
            GpuSample(
                gpu_id="0",
                name=_read(self._root / "proc/device-tree/model") or "Jetson",
                temperature_c=temperature_c,
                slowdown_c=slowdown_c,
                shutdown_c=_trip_c(zone, ("critical",)) if zone else None,
                memory_used_bytes=used,
                memory_total_bytes=total,
                memory_shared=True,
                utilisation=_scaled(_number(devfreq / "device/load" if devfreq else None), 1e-3),
                clock_mhz=_scaled(_number(devfreq / "cur_freq" if devfreq else None), 1e-6),
                max_clock_mhz=_scaled(_number(devfreq / "max_freq" if devfreq else None), 1e-6),
                throttle=_throttle(temperature_c, slowdown_c),
            ),
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _look(self) -> None:
        if self._nodes.complete:
            return
        self._samples_since_look += 1
        if self._samples_since_look >= _RELOOK_EVERY:
            self._samples_since_look = 0
            self._nodes = _Nodes(_find_devfreq(self._root), _find_zone(self._root))

    def _memory(self) -> tuple[int | None, int | None]:
        fields: dict[str, int] = {}
        for line in (_read(self._root / "proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            number = rest.split()
            if number and number[0].isdecimal():
                fields[name] = int(number[0]) * 1024
        total, available = fields.get("MemTotal"), fields.get("MemAvailable")
        return (None if total is None or available is None else total - available), total


def _throttle(temperature_c: float | None, slowdown_c: float | None) -> frozenset[Throttle] | None:
    """The kernel slows the clocks above the passive trip point; Tegra has no register that says so in sysfs."""
    if temperature_c is None or slowdown_c is None:
        return None
    return frozenset({Throttle.SW_THERMAL}) if temperature_c >= slowdown_c else frozenset()
