"""Which device serves on which machine, and the errors for a device that is not there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import ConfigError, DeviceMemoryError, FatalError, ModelError
from agent.runtime.backend import Engine, SessionSettings, _providers
from agent.runtime.devices import (
    CPU,
    Accelerators,
    Device,
    Kind,
    _cuda_devices,
    _tensorrt_version,
    parse_device,
    plan_devices,
    probe_accelerators,
)
from agent.runtime.faults import ort_errors, translate

CPU_ONLY = Accelerators("1.32.0", ("AzureExecutionProvider", "CPUExecutionProvider"), problem="built without CUDA")
GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
NO_GPU = Accelerators("1.31.1", GPU_PROVIDERS, problem="no NVIDIA driver: libcuda.so.1: cannot open")
CUDA = Accelerators("1.31.1", GPU_PROVIDERS, ("RTX 3090 (8.6)",), "13000 580.1")
FULL = Accelerators("1.31.1", GPU_PROVIDERS, ("Orin (8.7)",), "12060 R36", "10.3.0")


@pytest.mark.parametrize(
    ("machine", "cache", "serve", "build"),
    [
        (CPU_ONLY, True, (CPU,), None),
        (NO_GPU, True, (CPU,), None),
        (CUDA, True, (Device(Kind.CUDA), CPU), None),
        (FULL, True, (Device(Kind.CUDA), CPU), Device(Kind.TENSORRT)),
        (FULL, False, (Device(Kind.CUDA), CPU), None),
    ],
)
def test_auto_takes_the_best_there_is_and_never_waits_for_an_engine(
    machine: Accelerators, cache: bool, serve: tuple[Device, ...], build: Device | None
) -> None:
    plan = plan_devices("auto", machine, engine_cache=cache)
    assert (plan.serve, plan.build, plan.required) == (serve, build, False)
    assert plan.cpu_only == (not machine.gpus)


def test_an_onnxruntime_for_gpus_without_one_says_what_is_missing() -> None:
    gone = Accelerators("1.31.1", GPU_PROVIDERS, problem="cuInit failed with error 100")
    assert "cuInit failed with error 100" in plan_devices("auto", gone, engine_cache=False).missing
    assert "libcuda.so.1" in plan_devices("auto", NO_GPU, engine_cache=False).missing
    asked = [plan_devices("cpu", gone, engine_cache=False)]
    as_it_is = [plan_devices("auto", machine, engine_cache=False) for machine in (CPU_ONLY, CUDA, FULL)]
    assert {plan.missing for plan in asked + as_it_is} == {""}


def test_a_device_asked_for_has_no_stand_in() -> None:
    assert plan_devices("cuda", FULL, engine_cache=True).serve == (Device(Kind.CUDA),)
    assert plan_devices("cpu", FULL, engine_cache=True).serve == (CPU,)
    assert plan_devices("cpu", FULL, engine_cache=True).cpu_only


def test_a_cpu_that_waits_for_its_engine_is_not_all_there_is() -> None:
    providers = ("TensorrtExecutionProvider", "CPUExecutionProvider")
    machine = Accelerators("1.31.1", providers, ("Orin (8.7)",), "12060 R36", "10.3.0")
    plan = plan_devices("auto", machine, engine_cache=True)
    assert plan.serve == (CPU,)
    assert not plan.cpu_only


def test_tensorrt_asked_for_serves_on_cuda_until_its_engine_stands_and_is_required() -> None:
    plan = plan_devices("tensorrt:0", FULL, engine_cache=True)
    assert plan.serve[0] == Device(Kind.CUDA)
    assert plan.build == Device(Kind.TENSORRT)
    assert plan.required


@pytest.mark.parametrize(
    ("device", "machine", "cache", "words"),
    [
        (
            "cuda",
            CPU_ONLY,
            True,
            ["CUDAExecutionProvider", "AzureExecutionProvider, CPUExecutionProvider", "onnxruntime-gpu"],
        ),
        ("tensorrt", CPU_ONLY, True, ["TensorrtExecutionProvider", "onnxruntime-gpu", "extra `gpu`"]),
        ("cuda", NO_GPU, True, ["no such GPU", "libcuda.so.1"]),
        ("cuda:1", FULL, True, ["no such GPU", "Orin"]),
        ("tensorrt", CUDA, True, ["libnvinfer", "JetPack"]),
        ("tensorrt", FULL, False, ["engine_cache"]),
    ],
)
def test_an_absent_device_is_refused_with_what_is_there_and_what_to_install(
    device: str, machine: Accelerators, cache: bool, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_devices(device, machine, engine_cache=cache, path="pose.device")
    text = str(caught.value)
    assert text.startswith("pose.device: ")
    assert [word for word in words if word not in text] == []


def test_devices_are_written_as_configured() -> None:
    for text in ("cpu", "cuda:1", "tensorrt:0"):
        assert str(parse_device(text)) == text
    assert parse_device("auto") is None
    assert str(parse_device("cuda")) == "cuda:0"


def test_the_probe_tells_the_truth_about_this_machine() -> None:
    import onnxruntime

    machine = probe_accelerators()
    assert machine.providers == tuple(onnxruntime.get_available_providers())
    assert machine.ort_version == onnxruntime.__version__
    assert bool(machine.gpus) != bool(machine.problem)


# Texts as onnxruntime and CUDA write them: microsoft/onnxruntime issues 16307, 22702, 26312.
MESSAGES = [
    ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Status Message: bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 939",
     DeviceMemoryError),
    ("CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; file=cuda_allocator.cc", DeviceMemoryError),
    ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", DeviceMemoryError),
    ("std::bad_alloc", DeviceMemoryError),
    ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=box", FatalError),
    ("CUDA failure 719: unspecified launch failure ; GPU=0", FatalError),
    ("CUDA failure 214: uncorrectable ECC error encountered", FatalError),
    ("CUDA failure 999: unknown error ; GPU=0", FatalError),
    ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: input", ModelError),
    ("CUDA failure 1: invalid argument ; GPU=0", ModelError),
    ("CUDA failure 209: no kernel image is available for execution on the device", ModelError),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MESSAGES)
def test_runtime_errors_mean_what_their_text_says(text: str, expected: type[Exception]) -> None:
    error = translate(RuntimeError(text), "running x.onnx on cuda:0")
    assert type(error) is expected
    assert str(error).startswith("running x.onnx on cuda:0: ")


def test_every_error_class_of_this_onnxruntime_is_known() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    classes = {value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes <= set(ort_errors())


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return RESULT; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 100; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 100 ? "Orin" : "RTX 3090", length); return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : device == 100 ? 7 : 6; return 0; }
int getInferLibVersion(void) { return RESULT; }
"""


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[int], str]:
    """A library with the few functions that are asked of CUDA's driver and of TensorRT; `result` is what two of them return."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")

    def build(result: int) -> str:
        source, library = tmp_path / "driver.c", tmp_path / f"lib{result}.so"
        source.write_text(DRIVER)
        command = [compiler, "-shared", "-fPIC", f"-DRESULT={result}", "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        return str(library)

    return build


def test_gpus_are_read_from_the_driver_with_their_compute_capability(compiled: Callable[[int], str]) -> None:
    gpus, driver, problem = _cuda_devices(compiled(0))
    assert gpus == ("Orin (8.7)", "RTX 3090 (8.6)")
    assert driver.split()[0] == "12060"
    assert problem == ""


def test_a_driver_that_does_not_start_says_with_which_error(compiled: Callable[[int], str]) -> None:
    assert _cuda_devices(compiled(999)) == ((), "", "cuInit failed with error 999")


@pytest.mark.parametrize(("number", "version"), [(101301, "10.13.1"), (100300, "10.3.0"), (8601, "8.6.1")])
def test_tensorrt_says_its_version(compiled: Callable[[int], str], number: int, version: str) -> None:
    assert _tensorrt_version(["libnothing.so.1", compiled(number)]) == version
    assert _tensorrt_version(["libnothing.so.1"]) == ""


def test_cuda_is_asked_for_memory_by_need_and_within_the_limit() -> None:
    settings = SessionSettings(gpu_memory_limit_bytes=1_000_000)
    (name, options), last = _providers(Device(Kind.CUDA, 1), settings, None)
    assert name == "CUDAExecutionProvider"
    assert options["device_id"] == "1"
    assert options["gpu_mem_limit"] == "1000000"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert last == ("CPUExecutionProvider", {})


def test_tensorrt_gets_its_folder_its_precision_and_the_range_of_shapes(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {"input": ((1, 3, 64, 96), (8, 3, 64, 96))})
    chain = _providers(Device(Kind.TENSORRT), SessionSettings(precision="fp16"), engine)
    assert [name for name, _ in chain] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    options = chain[0][1]
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_profile_min_shapes"] == "input:1x3x64x96"
    assert options["trt_profile_max_shapes"] == options["trt_profile_opt_shapes"] == "input:8x3x64x96"


def test_a_stored_engine_is_opened_with_the_split_it_was_built_with(tmp_path: Path) -> None:
    shapes = {"input": ((1, 3, 64, 96), (8, 3, 64, 96))}
    assert Engine.stored(tmp_path, shapes).split == {}
    (tmp_path / "split.json").write_text('{"trt_min_subgraph_size": "200"}')
    engine = Engine.stored(tmp_path, shapes)
    assert _providers(Device(Kind.TENSORRT), SessionSettings(), engine)[0][1]["trt_min_subgraph_size"] == "200"
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(ModelError, match=r"split\.json"):
        Engine.stored(tmp_path, shapes)
