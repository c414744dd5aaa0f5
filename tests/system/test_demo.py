"""`recognizer-agent demo` as a process: what a newcomer sees first, and that nothing of it is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness import make_video

from agent.cli import build_parser
from agent.commands.demo import demo_config

SUBSCRIBE = r"^subscribe      mosquitto_sub -h 127\.0\.0\.1 -p \d+ -t 'recognizer/#' -v$"


@pytest.fixture
def leavings(tmp_path: Path) -> Iterator[Path]:
    """The folder for temporary files; empty again at the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def demo(leavings: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agent", "demo", "--port", "0", "--mqtt-port", "0", *map(str, arguments)]
    environment = os.environ | {"TMPDIR": str(leavings), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def has(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.MULTILINE) is not None


@pytest.mark.timeout(120)
def test_a_file_is_played_in_a_loop_for_as_long_as_asked(leavings: Path, tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", frames=20)
    with demo(leavings, "--video", video, "--seconds", 3) as running:
        said, _ = running.communicate(timeout=100)
    assert running.returncode == 0, said
    assert has(r"^live page      http://127\.0\.0\.1:\d+/$", said)
    assert has(SUBSCRIBE, said)
    assert has(r"^mqtt  recognizer/demo/cameras/demo/state  .*\"streaming\"", said)
    assert has(r"^speed          [\d.]+ frames/s of 320x240", said)
    assert "Traceback" not in said


def test_names_of_files_and_cameras_are_taken_as_they_are(tmp_path: Path) -> None:
    video = tmp_path / "a$$b ${HOME} \U0001f600 \x85 'é' \".mp4"
    for option, name in (("--video", str(video)), ("--camera", "rtsp://box/${HOME}$$\U0001f600")):
        config = demo_config(build_parser().parse_args(["demo", option, name]), tmp_path, os.environ)
        assert config.cameras[0].source == name


@pytest.mark.timeout(120)
def test_ctrl_c_ends_it_and_the_page_lives_until_then(leavings: Path, tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", frames=20)
    with demo(leavings, "--video", video) as running:
        assert running.stdout is not None
        said = ""
        for line in running.stdout:
            said += line
            if line.startswith("stop"):
                break
        page = re.search(r"http://\S+", said)
        assert page is not None, said
        with urlopen(page[0], timeout=10) as answer:
            assert answer.status == 200
        time.sleep(2)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        rest = running.stdout.read()
        running.wait(60)
    assert running.returncode == 0, rest
    assert "Traceback" not in rest
    speed = re.search(r"^speed          ([\d.]+) frames/s of 320x240", rest, re.MULTILINE)
    assert speed is not None, rest
    assert float(speed[1]) > 1, "what it did until then"


@pytest.mark.timeout(120)
def test_a_camera_that_is_not_there_is_named_and_fails_the_demo(leavings: Path) -> None:
    with demo(leavings, "--camera", 63, "--seconds", 3) as running:
        said, _ = running.communicate(timeout=100)
    assert running.returncode == 1, said
    assert has(r"^error: no picture came from /dev/video63: no such device \(is the camera plugged in\?\)$", said)
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_fight_and_a_fall_are_printed_and_match_the_scene(leavings: Path) -> None:
    started = time.monotonic()
    with demo(leavings, "--seconds", 60) as running:
        said, _ = running.communicate(timeout=200)
    assert running.returncode == 0, said
    assert time.monotonic() - started > 60
    for kind in ("fight", "fall"):
        assert has(rf"^EVENT {kind} detected on demo, sure \d+%", said), said
        assert has(rf"^      scene: right, a {kind} beg", said), said
    speed = re.search(r"^speed          ([\d.]+) frames/s", said, re.MULTILINE)
    assert speed is not None, said
    assert float(speed[1]) > 15, said  # 25 and more on two quiet cores
