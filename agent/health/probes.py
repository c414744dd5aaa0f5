"""What the machine and this process use, through psutil, and which GPU probe fits the machine.

Probing blocks for well under a millisecond on x86 and up to tens of milliseconds in a GPU driver, so it runs in a
thread: `Probes.sample`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.health.governor import GovernorSample, GpuHeat
from agent.health.gpu import GpuProbe, GpuSample
from agent.health.gpu_jetson import JetsonProbe, is_jetson
from agent.health.gpu_nvml import open_nvml


@dataclass(frozen=True, slots=True)
class SystemSample:
    """The machine and this process at one moment; None = could not be read.

    cpu, process_cpu: fraction of all cores since the previous sample, 0-1. memory: fraction of the machine's memory in
    use, 0-1. rss_bytes: of this process. disk_*: of the file system that holds the state folder. network_*: bytes since
    boot over all interfaces but loopback. load_1m: runnable tasks, one-minute mean.
    """

    cpu: float
    process_cpu: float
    memory: float
    memory_total_bytes: int
    rss_bytes: int
    disk_free_bytes: int | None
    disk_total_bytes: int | None
    network_sent_bytes: int | None
    network_received_bytes: int | None
    load_1m: float
    open_fds: int | None
    threads: int


class SystemProbe:
    """Reads a `SystemSample`. The first one covers the time since the probe was made."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._process = psutil.Process()
        self._cores = psutil.cpu_count() or 1
        psutil.cpu_percent()
        self._process.cpu_percent()

    def sample(self) -> SystemSample:
        """Measure now. Blocking, under 1 ms."""
        with self._process.oneshot():
            process_cpu = self._process.cpu_percent() / 100 / self._cores
            rss_bytes = self._process.memory_info().rss
            threads = self._process.num_threads()
        memory = psutil.virtual_memory()
        disk_free, disk_total = self._disk()
        sent, received = _network()
        return SystemSample(
            cpu=min(psutil.cpu_percent() / 100, 1.0),
            process_cpu=min(process_cpu, 1.0),
            memory=memory.percent / 100,
            memory_total_bytes=memory.total,
            rss_bytes=rss_bytes,
            disk_free_bytes=disk_free,
            disk_total_bytes=disk_total,
            network_sent_bytes=sent,
            network_received_bytes=received,
            load_1m=os.getloadavg()[0],
            open_fds=self._open_fds(),
            threads=threads,
        )

    def _disk(self) -> tuple[int | None, int | None]:
        try:
            usage = os.statvfs(self._state_dir)
        except OSError:
            return None, None
        return usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize

    def _open_fds(self) -> int | None:
        try:
            return self._process.num_fds()
        except (psutil.Error, OSError):  # /proc may be restricted
            return None


def _network() -> tuple[int | None, int | None]:
    try:
        interfaces = psutil.net_io_counters(pernic=True)
    except OSError:
        return None, None
    real = [counters for name, counters in interfaces.items() if name != "lo"]
    return sum(c.bytes_sent for c in real), sum(c.bytes_recv for c in real)


def free_bytes(root: Path = Path("/")) -> int:
    """Memory that this process can still get: of the machine, and of the control groups (v2) that it is in."""
    free = int(psutil.virtual_memory().available)
    try:
        (line,) = (one for one in (root / "proc/self/cgroup").read_text().splitlines() if one.startswith("0::"))
    except (OSError, ValueError):  # no unified hierarchy
        return free
    top = root / "sys/fs/cgroup"
    folder = top / line.removeprefix("0::").lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(top):
            break
        with contextlib.suppress(OSError, ValueError):  # `max`, or not there: no limit
            limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
            free = min(free, max(0, limit - used + _reclaimable(group)))
    return free


def _reclaimable(group: Path) -> int:
    """File pages, which count as used and are given back when they are wanted."""
    pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(value) for name, value in pairs if name in {"inactive_file", "active_file"})


def open_gpu_probe(root: Path = Path("/")) -> GpuProbe | None:
    """The probe that fits this machine: Jetson sysfs first, then NVML, None without a GPU."""
    return JetsonProbe(root) if is_jetson(root) else open_nvml()


@dataclass(frozen=True, slots=True)
class ProbeSample:
    """Everything that is watched, at one moment."""

    system: SystemSample
    gpus: tuple[GpuSample, ...]

    def for_governor(self) -> GovernorSample:
        """The heat of each GPU, and the worst value of the other signals over all of them."""
        memory = [
            fraction
            for gpu in self.gpus
            if (fraction := gpu.memory_fraction) is not None and not gpu.memory_shared  # that one is `memory` already
        ]
        throttle = [gpu.thermal_throttle for gpu in self.gpus if gpu.thermal_throttle is not None]
        return GovernorSample(
            cpu=self.system.cpu,
            memory=self.system.memory,
            gpu_memory=max(memory, default=None),
            gpus=tuple(
                GpuHeat(gpu.temperature_c, gpu.slowdown_c) for gpu in self.gpus if gpu.temperature_c is not None
            ),
            gpu_thermal_throttle=any(throttle) if throttle else None,
        )


class Probes:
    """System and GPU together, read off the loop."""

    def __init__(self, system: SystemProbe, gpu: GpuProbe | None) -> None:
        self._system = system
        self._gpu = gpu

    @classmethod
    def open(cls, state_dir: Path) -> Probes:
        """For this machine."""
        return cls(SystemProbe(state_dir), open_gpu_probe())

    async def sample(self) -> ProbeSample:
        """Measure in a thread; one call at a time."""
        return await asyncio.to_thread(self._measure)

    def close(self) -> None:
        """Release the GPU library."""
        if self._gpu is not None:
            self._gpu.close()

    def _measure(self) -> ProbeSample:
        return ProbeSample(self._system.sample(), self._gpu.sample() if self._gpu is not None else ())
