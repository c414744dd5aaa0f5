"""Engine cache and background builds, with builders that are slow, crash, are refused or cancelled: all real processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from fakes.graphs import rtmo_graph

from agent.errors import DeviceMemoryError, ModelError
from agent.runtime.builder import process_build
from agent.runtime.engines import EngineCache, EngineKey, EngineProgress, EngineState, EngineUpgrade

KEY = EngineKey("ab" * 32, "Orin (8.7)", "1.31.1", "10.3.0", "12060 R36", "fp32", "input:1x3x64x64-input:8x3x64x64")

BUILDER = """
import json, sys, time, pathlib
request = json.load(sys.stdin)
folder = pathlib.Path(request["folder"])
(folder / "half.engine").write_bytes(b"half")
pathlib.Path(request["log"]).open("a").write(str(__import__("os").getpid()) + "\\n")
time.sleep(request["seconds"])
(folder / "half.engine").rename(folder / "whole.engine")
if request.get("fail"):
    print("Could not find any implementation for node Conv_1", file=sys.stderr)
    sys.exit(3)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """One line with the process id per build."""
    return tmp_path / "builds.log"


def slow_builder(log: Path, seconds: float = 0.3, **more: object) -> Callable[..., None]:
    return process_build({"seconds": seconds, "log": str(log), **more}, (sys.executable, "-c", BUILDER))


def builds(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def upgrade(
    folder: Path, build: Callable[..., None], activate: Callable[[Path], None], seen: list[EngineProgress] | None = None
) -> EngineUpgrade:
    job = EngineUpgrade(EngineCache(folder), KEY, build, activate, seen.append if seen is not None else None)
    job.start()
    return job


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "nothing happened"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_engine_is_built_beside_the_traffic_and_then_taken_from_the_cache(tmp_path: Path, log: Path) -> None:
    activated: list[list[str]] = []

    def activate(folder: Path) -> None:
        activated.append(sorted(path.name for path in folder.iterdir()))

    seen: list[EngineProgress] = []
    started_s = time.monotonic()
    job = upgrade(tmp_path / "engines", slow_builder(log), activate, seen)
    assert time.monotonic() - started_s < 0.2
    assert job.progress.state in {EngineState.WAITING, EngineState.BUILDING}
    assert job.wait(30).state is EngineState.SERVING
    assert [progress.state for progress in seen] == [EngineState.BUILDING, EngineState.LOADING, EngineState.SERVING]
    assert seen[-1].elapsed_s >= 0.3
    assert activated == [["key.json", "whole.engine"]]

    again = upgrade(tmp_path / "engines", slow_builder(log), activate)
    assert again.wait(30).state is EngineState.SERVING
    assert len(builds(log)) == 1
    assert len(activated) == 2


@pytest.mark.parametrize("field", list(EngineKey.__dataclass_fields__))
def test_a_change_of_anything_in_the_key_is_another_engine(tmp_path: Path, field: str) -> None:
    cache = EngineCache(tmp_path)
    cache.build(KEY, lambda folder, _cancelled, _say: write(folder), threading.Event(), print)
    assert cache.find(KEY)
    other = replace(KEY, **{field: "other"})
    assert other.digest != KEY.digest
    assert cache.find(other) is None


def write(folder: Path, content: bytes = b"engine") -> None:
    (folder / "a.engine").write_bytes(content)


def test_an_unfinished_or_shortened_engine_is_not_found(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    built = cache.build(KEY, lambda folder, _cancelled, _say: write(folder), threading.Event(), print)
    (built / "a.engine").write_bytes(b"eng")
    assert cache.find(KEY) is None
    (built / "a.engine").unlink()
    assert cache.find(KEY) is None
    (built / "key.json").write_text("{")
    assert cache.find(KEY) is None


def test_an_engine_can_be_read_by_the_agents_user_whoever_built_it(tmp_path: Path) -> None:
    built = EngineCache(tmp_path).build(KEY, lambda folder, _cancelled, _say: write(folder), threading.Event(), print)
    assert stat.S_IMODE(built.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in built.iterdir()} == {0o644}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who builds for others")
def test_what_root_builds_belongs_to_whom_the_state_folder_belongs(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    built = EngineCache(tmp_path / "engines").build(
        KEY, lambda folder, _cancelled, _say: write(folder), threading.Event(), print
    )
    laid_down = [tmp_path / "engines", built, *built.iterdir(), *(tmp_path / "engines").glob(".*.lock")]
    assert len(laid_down) == 5
    assert {path.stat().st_uid for path in laid_down} == {65534}


def test_a_failed_build_says_why_and_leaves_nothing(tmp_path: Path, log: Path) -> None:
    folder = tmp_path / "engines"
    job = upgrade(folder, slow_builder(log, 0.01, fail=True), lambda _folder: pytest.fail("nothing to activate"))
    progress = job.wait(30)
    assert progress.state is EngineState.FAILED
    assert "Could not find any implementation for node Conv_1 (exit code 3)" in progress.detail
    assert [path for path in folder.iterdir() if path.is_dir()] == []


def test_a_builder_that_is_killed_is_a_failure_with_the_signal(tmp_path: Path, log: Path) -> None:
    job = upgrade(tmp_path / "engines", slow_builder(log, 60), lambda _folder: None)
    wait_for(lambda: bool(builds(log)))
    os.kill(builds(log)[0], signal.SIGKILL)
    progress = job.wait(30)
    assert progress.state is EngineState.FAILED
    assert "SIGKILL" in progress.detail


def test_cancelling_ends_the_builder_at_once(tmp_path: Path, log: Path) -> None:
    folder = tmp_path / "engines"
    job = upgrade(folder, slow_builder(log, 60), lambda _folder: None)
    wait_for(lambda: bool(builds(log)))
    started_s = time.monotonic()
    job.cancel()
    assert time.monotonic() - started_s < 5
    assert job.progress.state is EngineState.CANCELLED
    assert not alive(builds(log)[0])
    assert [path for path in folder.iterdir() if path.is_dir()] == []


def test_two_services_with_the_same_model_build_once(tmp_path: Path, log: Path) -> None:
    jobs = [upgrade(tmp_path / "engines", slow_builder(log, 0.5), lambda _folder: None) for _ in range(2)]
    assert [job.wait(30).state for job in jobs] == [EngineState.SERVING] * 2
    assert len(builds(log)) == 1


def test_leftovers_of_a_killed_build_are_swept_by_the_next(tmp_path: Path, log: Path) -> None:
    folder = tmp_path / "engines"
    leftover = folder / f".building-{KEY.digest}-x"
    leftover.mkdir(parents=True)
    (leftover / "half.engine").write_bytes(b"half")
    upgrade(folder, slow_builder(log, 0.01), lambda _folder: None).wait(30)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [KEY.digest]


def test_a_cached_engine_that_no_longer_loads_is_built_anew_once(tmp_path: Path, log: Path) -> None:
    attempts: list[int] = []

    def activate(_folder: Path) -> None:
        attempts.append(len(builds(log)))
        if len(builds(log)) < 2:
            raise ModelError("cannot deserialise")

    folder = tmp_path / "engines"
    EngineCache(folder).build(KEY, slow_builder(log, 0), threading.Event(), print)
    assert upgrade(folder, slow_builder(log, 0), activate).wait(30).state is EngineState.SERVING
    assert attempts == [1, 2]


def test_an_engine_with_wrong_answers_is_refused_and_not_built_again_at_the_next_start(
    tmp_path: Path, log: Path
) -> None:
    def refuse(_folder: Path) -> None:
        raise ModelError("output 'dets' differs from the golden one by up to 640")

    folder = tmp_path / "engines"
    assert "differs" in upgrade(folder, slow_builder(log, 0), refuse).wait(30).detail
    progress = upgrade(folder, slow_builder(log, 0), refuse).wait(30)
    assert progress.state is EngineState.FAILED
    assert "differs" in progress.detail
    assert f"delete {folder / KEY.digest}" in progress.detail
    assert len(builds(log)) == 1
    assert list(folder.rglob("*.engine")) == []


def test_no_memory_to_load_an_engine_does_not_condemn_it(tmp_path: Path, log: Path) -> None:
    def full(_folder: Path) -> None:
        raise DeviceMemoryError("out of memory")

    folder = tmp_path / "engines"
    assert upgrade(folder, slow_builder(log, 0), full).wait(30).state is EngineState.FAILED
    assert EngineCache(folder).find(KEY)


def test_only_the_engines_used_last_are_kept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, keep=2)
    keys = [replace(KEY, driver=str(number)) for number in range(4)]
    for number, key in enumerate(keys):
        entry = cache.build(key, lambda folder, _cancelled, _say: write(folder), threading.Event(), print)
        os.utime(entry, (number, number))
    assert [bool(cache.find(key)) for key in keys] == [False, False, True, True]


def test_a_folder_that_cannot_be_written_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="engine cache"):
        EngineCache(tmp_path / "file" / "engines").build(KEY, print, threading.Event(), print)


def test_the_real_builder_says_in_one_line_that_tensorrt_is_missing(tmp_path: Path) -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    shapes = {"input": [[1, 3, 64, 96], [2, 3, 64, 96]]}
    request = {"model": str(rtmo_graph(tmp_path / "m.onnx")), "device_index": 0, "precision": "fp32", "shapes": shapes}
    with pytest.raises(ModelError, match=r"the engine build failed: .*TensorrtExecutionProvider.*\(exit code 1\)"):
        process_build(request)(tmp_path, threading.Event(), print)


def test_the_builder_dies_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    child = (
        "import sys, agent.runtime.builder as b; b.die_with_parent(); "
        "open(sys.argv[1], 'w').write(str(__import__('os').getpid())); __import__('time').sleep(60)"
    )
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]])",
         str(pid_file)],
    )  # fmt: skip
    wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(int(pid_file.read_text())))


def test_the_key_lies_readable_beside_its_engine(tmp_path: Path) -> None:
    built = EngineCache(tmp_path).build(KEY, lambda folder, _c, _s: write(folder), threading.Event(), print)
    assert json.loads((built / "key.json").read_text())["key"]["tensorrt_version"] == "10.3.0"
