"""Sessions: what they tell about a graph, how they fail, how the traffic moves to an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fakes.graphs import rtmo_graph, stgcn_graph
from fakes.pretend_gpu import MACHINE as WITH_GPU
from fakes.pretend_gpu import PretendGpu

from agent.durable import point
from agent.errors import ConfigError, DeviceMemoryError, ModelError
from agent.runtime.backend import Backend, SessionSettings
from agent.runtime.devices import CPU, Accelerators, Device, Kind, Plan
from agent.runtime.engines import EngineState
from agent.runtime.session import InferenceSession, create_served, create_session

MACHINE = Accelerators("1.32.0", ("CPUExecutionProvider",), ("Pretend GPU (9.9)",), "1", "10.0.0")
SHAPES = {"input": ((1, 3, 64, 96), (2, 3, 64, 96))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return rtmo_graph(tmp_path / "rtmo.onnx")


@pytest.fixture
def upgradable(model: Path) -> Iterator[InferenceSession]:
    """A session whose plan says: move to the other device once its engine stands. Here that device is the CPU again."""
    settings = SessionSettings(threads=1)
    plan = Plan((CPU,), build=Device(Kind.CPU), required=True)
    session = InferenceSession(Backend(model, CPU, settings), model, plan, settings, MACHINE)
    yield session
    session.close()


def picture(batch: int = 1) -> dict[str, np.ndarray]:
    return {"input": np.full((batch, 3, 64, 96), 255, np.float32)}


def test_a_session_shows_the_graph_and_runs_it(model: Path) -> None:
    session = create_session(model, device="cpu")
    assert str(session.inputs[0]) == "input (?, 3, 64, 96) float32"
    assert session.output_names == ("dets", "keypoints")
    assert session.inputs[0].accepts((5, 3, 64, 96))
    assert not session.inputs[0].accepts((5, 3, 64, 97))
    assert (session.device, session.upgrade) == ("cpu", None)
    dets, keypoints = session.run(picture(2))
    assert (dets.shape, keypoints.shape) == ((2, 1, 5), (2, 1, 17, 3))


def test_float16_inputs_are_seen_as_such(tmp_path: Path) -> None:
    session = create_session(rtmo_graph(tmp_path / "half.onnx", half=True), device="cpu")
    assert session.inputs[0].dtype == np.float16


def test_a_device_asked_for_and_absent_is_a_configuration_error(model: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"services\.fall\.device: .*CUDAExecutionProvider.*has only.*onnxruntime-gpu"
    ):
        create_session(model, device="cuda", config_path="services.fall.device", machine=MACHINE)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="here it starts")
def test_auto_passes_over_a_gpu_that_does_not_start(model: Path) -> None:
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    believed = Accelerators("1.32.0", providers, ("Pretend GPU (9.9)",))
    session = create_session(model, machine=believed)
    assert session.device == "cpu"
    assert session.fallback.startswith("cuda:0 passed over: loading rtmo.onnx on cuda:0: ")
    with pytest.raises(ModelError, match="CUDAExecutionProvider"):
        create_session(model, device="cuda", machine=believed)


def test_a_gpu_that_opens_and_is_there_serves_and_nothing_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpu(monkeypatch)
    session = create_session(model)
    assert (session.device, session.fallback) == ("cuda:0", "")


def test_a_gpu_that_has_gone_is_told(model: Path) -> None:
    machine = Accelerators(
        "1.32.0", ("CUDAExecutionProvider", "CPUExecutionProvider"), problem="cuInit failed with error 100"
    )
    session = create_session(model, machine=machine)
    assert session.device == "cpu"
    assert "cuInit failed with error 100" in session.fallback
    assert create_session(model, device="cpu", machine=machine).fallback == ""


@pytest.mark.parametrize("no_room_for", ["weights", "run"])
def test_a_gpu_that_is_full_at_the_start_is_told_until_an_engine_serves(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room_for: str
) -> None:
    gpu = PretendGpu(monkeypatch, no_room_for)
    machine = replace(WITH_GPU, tensorrt="10.0.0", providers=(*WITH_GPU.providers, "TensorrtExecutionProvider"))

    def proven(session: InferenceSession) -> InferenceSession:
        session.run(picture())
        return session

    def build(folder: Path, _cancelled: threading.Event, _report: object) -> None:
        (folder / "a.engine").write_bytes(b"engine")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(machine.providers))
    session = create_served(
        model, proven, device="auto", settings=None, engine_cache=tmp_path / "e", config_path="device", machine=machine
    )
    assert gpu.opened == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert session.device == "cpu"
    assert "rtmo.onnx on cuda:0: CUDA failure 2: out of memory" in session.fallback
    job = session.begin_upgrade(SHAPES, model_sha256="ab", engine_cache=tmp_path / "e", build=build)
    assert job is not None
    assert job.wait(20).state is EngineState.SERVING
    assert (session.device, session.fallback) == ("tensorrt:0", "")


def test_an_engine_is_of_the_model_that_was_loaded_whatever_its_link_stands_for_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("old", (64, 96)), ("new", (32, 32))):
        (tmp_path / name).mkdir()
        rtmo_graph(tmp_path / name / "model.onnx", size=size)
    link = tmp_path / "link"
    point(link, tmp_path / "old")
    PretendGpu(monkeypatch)
    machine = replace(WITH_GPU, tensorrt="10.0.0", providers=(*WITH_GPU.providers, "TensorrtExecutionProvider"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(machine.providers))

    def build(folder: Path, _cancelled: threading.Event, _report: object) -> None:
        point(link, tmp_path / "new")
        (folder / "a.engine").write_bytes(b"engine")

    session = create_session(link / "model.onnx", engine_cache=tmp_path / "e", machine=machine)
    job = session.begin_upgrade(SHAPES, model_sha256="ab", engine_cache=tmp_path / "e", build=build)
    assert job is not None
    assert job.wait(20).state is EngineState.SERVING
    assert session.run(picture())[0].shape == (1, 1, 5)
    session.close()


def test_the_last_device_has_no_stand_in_and_is_closed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendGpu(monkeypatch)
    tried: list[InferenceSession] = []

    def refuse(session: InferenceSession) -> None:
        tried.append(session)
        raise ModelError(f"no good on {session.device}")

    with pytest.raises(ModelError, match="no good on cpu"):
        create_served(
            model, refuse, device="auto", settings=None, engine_cache=None, config_path="device", machine=WITH_GPU
        )
    assert len(gpu.opened) == len(tried) == 2
    for session in tried:
        with pytest.raises(ModelError, match="closed"):
            session.run(picture())
    gpu.no_room_for = "weights"
    with pytest.raises(DeviceMemoryError):
        create_session(model, device="cuda", machine=WITH_GPU)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_a_missing_empty_or_corrupt_file_is_a_model_error_with_a_hint(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "m.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx.*\(hint: ") as caught:
        create_session(file, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_is_a_model_error(tmp_path: Path) -> None:
    whole = rtmo_graph(tmp_path / "m.onnx", conv_layers=1).read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cut short"):
        create_session(tmp_path / "m.onnx", device="cpu")


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"input": np.zeros((1, 3, 64, 97), np.float32)}, "Got: 97 Expected: 96"),
        ({"input": np.zeros((1, 3, 64, 96), np.float64)}, "double"),
        ({"image": np.zeros((1, 3, 64, 96), np.float32)}, "input"),
    ],
)
def test_wrong_inputs_are_model_errors_that_say_what_was_expected(model: Path, feeds: dict, words: str) -> None:
    with pytest.raises(ModelError, match=r"running rtmo\.onnx on cpu: ") as caught:
        create_session(model, device="cpu").run(feeds)
    assert words in str(caught.value)


def test_two_sessions_run_side_by_side(tmp_path: Path, model: Path) -> None:
    pose = create_session(model, device="cpu", settings=SessionSettings(threads=1))
    action = create_session(stgcn_graph(tmp_path / "s.onnx"), device="cpu", settings=SessionSettings(threads=1))
    failures: list[BaseException] = []

    def work(session: InferenceSession, feeds: dict[str, np.ndarray]) -> None:
        try:
            for _ in range(20):
                session.run(feeds)
        except ModelError as error:
            failures.append(error)

    window = {"input_tensor": np.zeros((1, 4, 100, 17, 3), np.float32)}
    threads = [threading.Thread(target=work, args=pair) for pair in ((pose, picture()), (action, window))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_closed_session_says_so(model: Path) -> None:
    session = create_session(model, device="cpu")
    session.close()
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.run(picture())


def test_traffic_goes_on_while_an_engine_is_built_and_moves_when_it_stands(
    upgradable: InferenceSession, tmp_path: Path
) -> None:
    finish = threading.Event()
    checked: list[tuple[int, ...]] = []

    def build(folder: Path, cancelled: threading.Event, _report: object) -> None:
        while not finish.wait(0.01):
            assert not cancelled.is_set()
        (folder / "a.engine").write_bytes(b"engine")

    def check(candidate: InferenceSession) -> None:
        checked.append(candidate.run(picture())[0].shape)

    before = upgradable._backend
    job = upgradable.begin_upgrade(SHAPES, model_sha256="ab", engine_cache=tmp_path / "e", check=check, build=build)
    assert job is not None
    for _ in range(20):
        assert upgradable.run(picture(2))[0].shape == (2, 1, 5)
    assert upgradable._backend is before
    finish.set()
    assert job.wait(20).state is EngineState.SERVING
    assert checked == [(1, 1, 5)]
    assert upgradable._backend is not before
    assert upgradable.run(picture(2))[0].shape == (2, 1, 5)


def test_an_engine_asked_for_by_name_that_fails_is_an_error_and_not_a_slow_surprise(
    upgradable: InferenceSession, tmp_path: Path
) -> None:
    def build(_folder: Path, _cancelled: threading.Event, _report: object) -> None:
        raise ModelError("no kernel for node Conv_1")

    job = upgradable.begin_upgrade(SHAPES, model_sha256="ab", engine_cache=tmp_path / "e", build=build)
    assert job is not None
    assert job.wait(20).state is EngineState.FAILED
    with pytest.raises(ModelError, match="no TensorRT engine: no kernel for node Conv_1"):
        upgradable.run(picture())


def test_with_auto_a_failed_engine_only_costs_speed(model: Path, tmp_path: Path) -> None:
    plan = Plan((CPU,), build=Device(Kind.CPU))
    session = InferenceSession(Backend(model, CPU, SessionSettings()), model, plan, SessionSettings(), MACHINE)

    def build(_folder: Path, _cancelled: threading.Event, _report: object) -> None:
        raise ModelError("no")

    job = session.begin_upgrade(SHAPES, model_sha256="ab", engine_cache=tmp_path / "e", build=build)
    assert job is not None
    job.wait(20)
    assert session.run(picture())[0].shape == (1, 1, 5)


def test_closing_stops_a_running_build(upgradable: InferenceSession, tmp_path: Path) -> None:
    def build(_folder: Path, cancelled: threading.Event, _report: object) -> None:
        cancelled.wait(60)

    job = upgradable.begin_upgrade(SHAPES, model_sha256="ab", engine_cache=tmp_path / "e", build=build)
    upgradable.close()
    assert job is not None
    assert job.progress.state is EngineState.CANCELLED


def test_no_upgrade_where_the_plan_has_none(model: Path, tmp_path: Path) -> None:
    session = create_session(model, device="cpu")
    assert session.begin_upgrade(SHAPES, model_sha256="ab", engine_cache=tmp_path) is None
