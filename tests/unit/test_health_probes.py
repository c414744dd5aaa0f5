"""System probe on this machine, NVML through a fake of its module, Jetson on a laid-out sysfs tree."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.config.schema import GovernorConfig
from agent.health.governor import Governor, GpuHeat
from agent.health.gpu import GpuSample, Throttle
from agent.health.gpu_jetson import JetsonProbe, is_jetson
from agent.health.gpu_nvml import NvmlApi, NvmlProbe, open_nvml, throttle_of
from agent.health.probes import Probes, ProbeSample, SystemProbe, SystemSample, free_bytes, open_gpu_probe

# --- system -----------------------------------------------------------------------------------------------------------


def test_system_sample_describes_this_process(tmp_path: Path) -> None:
    probe = SystemProbe(tmp_path)
    sample = probe.sample()
    assert 0 <= sample.cpu <= 1
    assert 0 < sample.memory < 1
    assert 1_000_000 < sample.rss_bytes < sample.memory_total_bytes
    assert sample.disk_free_bytes is not None
    assert sample.disk_total_bytes is not None
    assert 0 < sample.disk_free_bytes <= sample.disk_total_bytes
    assert sample.threads >= 1
    assert sample.network_received_bytes is not None


def test_process_cpu_sees_work(tmp_path: Path) -> None:
    probe = SystemProbe(tmp_path)
    until = time.process_time() + 0.1
    while time.process_time() < until:
        sum(range(1000))
    assert probe.sample().process_cpu > 0


def test_open_descriptors_are_counted(tmp_path: Path) -> None:
    probe = SystemProbe(tmp_path)
    before = probe.sample().open_fds
    descriptors = [os.open(tmp_path, os.O_RDONLY) for _ in range(5)]
    after = probe.sample().open_fds
    for descriptor in descriptors:
        os.close(descriptor)
    assert before is not None
    assert after == before + 5


def test_a_missing_state_folder_is_unknown_not_an_error(tmp_path: Path) -> None:
    assert SystemProbe(tmp_path / "nowhere").sample().disk_free_bytes is None


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({}, None),
        ({"system.slice": (1000, 400, 0)}, 600),
        ({"system.slice": (1000, 400, 250)}, 850),  # file pages are given back
        ({"system.slice": (1000, 400, 0), "system.slice/agent.service": (300, 200, 0)}, 100),
        ({"system.slice": ("max", 400, 0), "system.slice/agent.service": (300, 400, 0)}, 0),
    ],
)
def test_memory_that_is_left_is_that_of_the_control_groups_too(
    tmp_path: Path, limits: dict[str, tuple[int | str, int, int]], free: int | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/agent.service\n")
    for name, (most, used, pages) in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\ninactive_file {pages}\nactive_file 0\n")
    found = free_bytes(tmp_path)
    assert found == free if free is not None else found > 1_000_000


def test_memory_that_is_left_without_control_groups(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 1_000_000
    assert free_bytes() > 1_000_000


async def test_probes_read_this_machine_off_the_loop(tmp_path: Path) -> None:
    probes = Probes.open(tmp_path)
    sample = await probes.sample()
    probes.close()
    assert sample.system.rss_bytes > 0
    assert sample.for_governor().cpu == sample.system.cpu


def test_governor_gets_the_worst_gpu_and_no_shared_memory_twice() -> None:
    system = SystemSample(0.5, 0.1, 0.6, 100, 10, None, None, None, None, 0.0, None, 1)
    gpus = (
        GpuSample("0", temperature_c=60, slowdown_c=95, memory_used_bytes=10, memory_total_bytes=100),
        GpuSample("1", temperature_c=80, memory_used_bytes=90, memory_total_bytes=100, throttle=frozenset()),
        GpuSample("2", memory_used_bytes=99, memory_total_bytes=100, memory_shared=True),
        GpuSample("3", lost=True),
    )
    sample = ProbeSample(system, gpus).for_governor()
    assert (sample.cpu, sample.memory, sample.gpu_memory) == (0.5, 0.6, 0.9)
    assert (sample.gpu_temperature_c, sample.gpu_thermal_throttle) == (80, False)
    assert sample.gpus == (GpuHeat(60, 95), GpuHeat(80)), "each with its own threshold"


@pytest.mark.parametrize(("cool_c", "step"), [(50, 0), (81, 1)])
def test_each_gpu_is_judged_by_its_own_threshold(cool_c: float, step: int) -> None:
    """A data-centre card beside a small one that slows down at 80 degrees."""
    system = SystemSample(0.1, 0.1, 0.1, 100, 10, None, None, None, None, 0.0, None, 1)
    gpus = (GpuSample("0", temperature_c=84, slowdown_c=95), GpuSample("1", temperature_c=cool_c, slowdown_c=80))
    assert Governor(GovernorConfig()).update(ProbeSample(system, gpus).for_governor(), 0).step == step


# --- NVML -------------------------------------------------------------------------------------------------------------


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, GPU_IS_LOST, UNKNOWN = 3, 4, 13, 15, 999


class FakeNvml:
    """The module's surface over a table of answers; an int in `errors` makes that call fail with this code."""

    NVMLError: type[Exception] = NvmlError
    NVML_ERROR_GPU_IS_LOST = GPU_IS_LOST
    NVML_ERROR_NO_PERMISSION = NO_PERMISSION
    NVML_TEMPERATURE_GPU = 0
    NVML_TEMPERATURE_THRESHOLD_SHUTDOWN = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    NVML_CLOCK_SM = 1

    def __init__(self, gpus: int = 1, errors: dict[str, int] | None = None) -> None:
        self.gpus = gpus
        self.errors = errors or {}
        self.running = 0

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.errors:
            raise NvmlError(self.errors[name])
        return value

    def nvmlInit(self) -> None:  # noqa: N802 - the library's names
        self._answer("init", None)
        self.running += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.running -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self._answer("count", self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return self._answer(f"handle {index}", self._answer("handle", f"gpu{index}"))

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return self._answer("name", "NVIDIA Test 4000")

    def nvmlDeviceGetTemperatureV(self, handle: Any, sensor: int) -> int:  # noqa: N802
        return self._answer("temperature", 71)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802
        return self._answer("older_temperature", 70)

    def nvmlDeviceGetTemperatureThreshold(self, handle: Any, threshold: int) -> int:  # noqa: N802
        return self._answer("threshold", {0: 98, 1: 93}[threshold])

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        return self._answer("memory", SimpleNamespace(used=3 << 30, total=8 << 30))

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        return self._answer("rates", SimpleNamespace(gpu=42, memory=7))

    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:  # noqa: A002, N802
        return self._answer("clock", 1410)

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int:  # noqa: A002, N802
        return self._answer("max_clock", 1980)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:  # noqa: N802
        return self._answer("reasons", 0x1 | 0x20 | 0x4)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:  # noqa: N802
        return self._answer("older_reasons", 0x40)


def test_the_real_module_has_the_surface_that_is_used() -> None:
    import pynvml

    names = [name for name in vars(FakeNvml) if not name.startswith("_")]
    assert len(names) > 15
    assert all(hasattr(pynvml, name) for name in names)
    assert FakeNvml.NVML_ERROR_GPU_IS_LOST == pynvml.NVML_ERROR_GPU_IS_LOST
    assert FakeNvml.NVML_ERROR_NO_PERMISSION == pynvml.NVML_ERROR_NO_PERMISSION
    assert FakeNvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN == pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN


def test_every_field_is_translated() -> None:
    api: NvmlApi = FakeNvml(gpus=2)
    first, second = NvmlProbe(api).sample()
    assert first == GpuSample(
        gpu_id="0",
        name="NVIDIA Test 4000",
        temperature_c=71,
        slowdown_c=93,
        shutdown_c=98,
        memory_used_bytes=3 << 30,
        memory_total_bytes=8 << 30,
        utilisation=0.42,
        clock_mhz=1410,
        max_clock_mhz=1980,
        throttle=frozenset({Throttle.SW_THERMAL, Throttle.SW_POWER_CAP}),
    )
    assert second.gpu_id == "1"
    assert first.memory_fraction == 0.375
    assert first.thermal_throttle is True


def test_unsupported_calls_leave_their_field_unknown() -> None:
    names = (
        "name", "temperature", "older_temperature", "threshold", "memory", "rates", "clock", "max_clock", "reasons",
        "older_reasons",
    )  # fmt: skip
    (sample,) = NvmlProbe(FakeNvml(errors=dict.fromkeys(names, NOT_SUPPORTED))).sample()
    assert sample == GpuSample("0")
    assert sample.memory_fraction is None
    assert sample.thermal_throttle is None


def test_an_older_driver_is_asked_by_its_names() -> None:
    missing = dict.fromkeys(("temperature", "reasons"), FUNCTION_NOT_FOUND)
    (sample,) = NvmlProbe(FakeNvml(errors=missing)).sample()
    assert sample.temperature_c == 70
    assert sample.throttle == {Throttle.HW_THERMAL}
    assert not sample.lost


def test_a_module_without_a_call_leaves_its_field_unknown() -> None:
    class Newer(FakeNvml):
        nvmlDeviceGetTemperature: Any = property()  # what is read raises AttributeError  # noqa: N815

    (sample,) = NvmlProbe(Newer(errors={"temperature": NOT_SUPPORTED})).sample()
    assert sample.temperature_c is None
    assert sample.utilisation == 0.42


@pytest.mark.parametrize("call", ["handle", "temperature", "memory"])
def test_a_lost_gpu_is_reported(call: str) -> None:
    (sample,) = NvmlProbe(FakeNvml(errors={call: GPU_IS_LOST})).sample()
    assert sample.lost


@pytest.mark.parametrize(
    ("code", "found"), [(NO_PERMISSION, []), (GPU_IS_LOST, [("1", True)]), (UNKNOWN, [("1", True)])]
)
def test_a_gpu_that_cannot_be_opened_is_lost_unless_it_is_somebody_elses(
    code: int, found: list[tuple[str, bool]]
) -> None:
    samples = NvmlProbe(FakeNvml(gpus=2, errors={"handle 1": code})).sample()
    assert [(sample.gpu_id, sample.lost) for sample in samples] == [("0", False), *found]


def test_a_failing_count_is_no_gpu() -> None:
    assert NvmlProbe(FakeNvml(errors={"count": UNKNOWN})).sample() == ()


@pytest.mark.parametrize("code", [GPU_IS_LOST, UNKNOWN])
def test_a_gpu_that_takes_the_count_down_is_lost_until_it_is_there_again(code: int) -> None:
    api = FakeNvml(gpus=2, errors={"handle 1": NO_PERMISSION})
    probe = NvmlProbe(api)
    (well,) = probe.sample()
    api.errors["count"] = code
    assert probe.sample() == probe.sample() == (GpuSample("0", lost=True),)
    del api.errors["count"]
    assert probe.sample() == (well,)
    api.errors["count"] = code
    probe.close()
    assert probe.sample() == (), "released, not lost"


def test_nvml_is_released_once() -> None:
    api = FakeNvml()
    probe = NvmlProbe(api)
    probe.close()
    probe.close()
    assert api.running == 0


def test_idle_is_no_throttling() -> None:
    assert throttle_of(0x1) == frozenset()
    assert throttle_of(0x40 | 0x80) == {Throttle.HW_THERMAL, Throttle.HW_POWER_BRAKE}


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_there_is_no_gpu() -> None:
    assert open_nvml() is None
    if not is_jetson():
        assert open_gpu_probe() is None


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_says_how_hot_and_how_full_it_is() -> None:
    probe = open_nvml()
    assert probe is not None
    sample = probe.sample()[0]
    probe.close()
    assert sample.temperature_c is not None
    assert 0 < sample.temperature_c < 120
    assert sample.memory_fraction is not None
    assert not sample.lost


# --- Jetson -----------------------------------------------------------------------------------------------------------


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


BOARD = {
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin\0",
    "proc/meminfo": "MemTotal:       31000000 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n",
}
GPU_NODES = {
    "sys/class/devfreq/15380000.nvjpg/device/load": "7\n",
    "sys/class/devfreq/17000000.ga10b/device/load": "632\n",
    "sys/class/devfreq/17000000.ga10b/cur_freq": "1300500000\n",
    "sys/class/devfreq/17000000.ga10b/max_freq": "1300500000\n",
    "sys/devices/virtual/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone0/temp": "51000\n",
    "sys/devices/virtual/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone1/temp": "62500\n",
    "sys/devices/virtual/thermal/thermal_zone1/trip_point_0_type": "critical\n",
    "sys/devices/virtual/thermal/thermal_zone1/trip_point_0_temp": "104500\n",
    "sys/devices/virtual/thermal/thermal_zone1/trip_point_1_type": "passive\n",
    "sys/devices/virtual/thermal/thermal_zone1/trip_point_1_temp": "99000\n",
    "sys/devices/virtual/thermal/thermal_zone1/trip_point_2_type": "hot\n",
    "sys/devices/virtual/thermal/thermal_zone1/trip_point_2_temp": "-274000\n",
}


def test_jetson_is_read_from_sysfs(tmp_path: Path) -> None:
    lay(tmp_path, BOARD | GPU_NODES)
    probe = open_gpu_probe(tmp_path)
    assert isinstance(probe, JetsonProbe)
    (sample,) = probe.sample()
    assert sample == GpuSample(
        gpu_id="0",
        name="NVIDIA Jetson AGX Orin",
        temperature_c=62.5,
        slowdown_c=99.0,
        shutdown_c=104.5,
        memory_used_bytes=11_000_000 * 1024,
        memory_total_bytes=31_000_000 * 1024,
        memory_shared=True,
        utilisation=0.632,
        clock_mhz=1300.5,
        max_clock_mhz=1300.5,
        throttle=frozenset(),
    )


def test_above_the_passive_trip_point_jetson_throttles(tmp_path: Path) -> None:
    lay(tmp_path, BOARD | GPU_NODES | {"sys/devices/virtual/thermal/thermal_zone1/temp": "99500\n"})
    (sample,) = JetsonProbe(tmp_path).sample()
    assert sample.thermal_throttle is True


def test_a_gpu_that_is_switched_off_has_no_temperature(tmp_path: Path) -> None:
    lay(tmp_path, BOARD | GPU_NODES | {"sys/devices/virtual/thermal/thermal_zone1/temp": "-256000\n"})
    (sample,) = JetsonProbe(tmp_path).sample()
    assert (sample.temperature_c, sample.throttle) == (None, None)
    assert sample.utilisation == 0.632


def test_nodes_that_appear_late_are_found(tmp_path: Path) -> None:
    lay(tmp_path, BOARD)
    probe = JetsonProbe(tmp_path)
    assert probe.sample()[0].utilisation is None
    lay(tmp_path, GPU_NODES)
    samples = [probe.sample()[0].utilisation for _ in range(20)]
    assert samples[-1] == 0.632


@pytest.mark.parametrize("taken", [False, True])
def test_a_thermal_zone_that_comes_back_under_another_number_is_found(tmp_path: Path, taken: bool) -> None:
    lay(tmp_path, BOARD | GPU_NODES)
    probe, zones = JetsonProbe(tmp_path), tmp_path / "sys/devices/virtual/thermal"
    assert probe.sample()[0].temperature_c == 62.5
    (zones / "thermal_zone1").rename(zones / "thermal_zone7")  # the driver was loaded again
    if taken:
        (zones / "thermal_zone0").rename(zones / "thermal_zone1")
    lay(zones, {"thermal_zone7/temp": "97000\n"})
    assert [probe.sample()[0].temperature_c for _ in range(20)][-1] == 97.0


def test_a_node_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    broken = {"sys/class/devfreq/17000000.ga10b/device/load": "busy\n"}
    lay(tmp_path, BOARD | GPU_NODES | broken)
    probe = JetsonProbe(tmp_path)
    (tmp_path / "sys/class/devfreq/17000000.ga10b/cur_freq").unlink()
    (sample,) = probe.sample()
    assert (sample.utilisation, sample.clock_mhz, sample.temperature_c) == (None, None, 62.5)


def test_a_pc_is_no_jetson(tmp_path: Path) -> None:
    assert not is_jetson(tmp_path)
    lay(tmp_path, {"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"})
    assert not is_jetson(tmp_path)
