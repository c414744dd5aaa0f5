"""The simulated camera as a source: its URL, the contract of VideoSource, real time, and behind a real Camera."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from agent.capture.camera import Camera, open_camera
from agent.capture.simulated import SimulatedSource, parse_simulated
from agent.capture.sources import build_source
from agent.config.schema import CameraConfig
from agent.errors import ConfigError, SourceError
from agent.types import CameraPhase

SMALL = "sim://?width=160&height=120&people=2&seed=5"
NS_PER_S = 1_000_000_000


def config(source: str) -> CameraConfig:
    return CameraConfig.model_validate({"id": "cam", "source": source, "read_timeout_s": 5})


def source(more: str = "") -> SimulatedSource:
    return SimulatedSource(parse_simulated(SMALL + more))


class SteppedClock:
    """Time that only passes when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 7 * NS_PER_S

    def __call__(self) -> int:
        return self.now_ns


@pytest.mark.parametrize(("url", "endless"), [("sim://", True), ("sim://?live=no", False), ("SIM://?seed=3", True)])
def test_the_scheme_is_built_in(url: str, endless: bool) -> None:
    built = build_source(config(url))
    assert isinstance(built.source, SimulatedSource)
    assert built.endless is endless


def test_every_parameter_is_read() -> None:
    camera = parse_simulated(
        "sim://?seed=9&people=2&scenario=crowd&width=320&height=240&fps=12.5&live=no&seconds=3&place=shop&night=yes"
    )
    assert (camera.seed, camera.people, camera.scenario, camera.width, camera.height) == (9, 2, "crowd", 320, 240)
    assert (camera.fps, camera.live, camera.seconds, camera.place, camera.night) == (12.5, False, 3.0, "shop", True)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?poeple=3", r"camera 'cam': sim:// has no parameter 'poeple'.*valid: seed, people, scenario"),
        ("?people=0", r"parameter people='0'.*a whole number from 1 to"),
        ("?people=many", r"parameter people='many'.*a whole number"),
        ("?fps=0", r"parameter fps='0'.*a number from 1 to 60"),
        ("?fps=nan", r"parameter fps='nan'"),
        ("?scenario=opera", r"parameter scenario='opera'.*one of crowd"),
        ("?place=moon", r"parameter place='moon'.*one of corridor"),
        ("?live=maybe", r"parameter live='maybe'.*yes or no"),
        ("?seed=1&seed=2", r"'seed' stands twice"),
        ("?seconds=5", r"seconds has no meaning.*live=no"),
        ("hall", r"has no place for 'hall'"),
    ],
)
def test_bad_parameters_are_configuration_errors_with_a_hint(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_source(config(f"sim://{query}"))


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_simulated("sim://?people=0&fps=x&colour=red")
    assert len(caught.value.problems) == 3


def test_recorded_gives_every_picture_unpaced_and_ends() -> None:
    camera = source("&live=no&seconds=0.4&fps=20")
    info = camera.open()
    assert (info.width, info.height, info.fps, info.frame_count, info.live) == (160, 120, 20.0, 8, False)
    times = []
    while (picture := camera.read()) is not None:
        assert picture[0].shape == (120, 160, 3)
        assert picture[0].dtype == np.uint8
        times.append(picture[1])
    assert times == [round(index * NS_PER_S / 20) for index in range(8)]
    assert camera.read() is None
    camera.close()


def test_recorded_pictures_are_those_of_the_scene_and_come_again_after_opening_again() -> None:
    camera = source("&live=no&seconds=0.2&fps=10")
    camera.open()
    first = [camera.read(), camera.read()]
    camera.close()
    camera.close()
    with pytest.raises(SourceError):
        camera.read()
    camera.open()
    again = [camera.read(), camera.read()]
    assert camera.read() is None
    for one, other, t_s in zip(first, again, (0.0, 0.1), strict=True):
        assert one is not None
        assert other is not None
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[0], camera.scene.shot(t_s).image)


def test_stepping_over_pictures_keeps_their_time() -> None:
    camera = source("&live=no&seconds=1&fps=10")
    camera.open()
    camera.grab()
    assert camera.grab() == NS_PER_S // 10
    assert np.array_equal(camera.retrieve(), camera.scene.shot(0.1).image)


def test_reading_before_opening_is_an_error() -> None:
    with pytest.raises(SourceError, match="not open"):
        source().read()


def test_live_shows_the_scene_of_its_time_and_skips_what_it_missed() -> None:
    clock = SteppedClock()
    camera = SimulatedSource(parse_simulated(SMALL + "&fps=10"), clock=clock)
    assert camera.scene.script.length_s > 1
    camera.open()
    assert camera.origin_ns == 7 * NS_PER_S
    assert camera.grab() == 0
    clock.now_ns += 750_000_000  # drawing took 0.75 s: pictures 1 to 6 are lost
    assert camera.grab() == 700_000_000
    assert np.array_equal(camera.retrieve(), camera.scene.shot(0.7).image)


def test_live_goes_on_in_scene_time_while_closed() -> None:
    clock = SteppedClock()
    camera = SimulatedSource(parse_simulated(SMALL + "&fps=10"), clock=clock)
    camera.open()
    camera.grab()
    camera.close()
    clock.now_ns += 5 * NS_PER_S
    camera.open()
    assert camera.grab() == 0  # since this opening
    assert camera.origin_ns == 7 * NS_PER_S
    assert np.array_equal(camera.retrieve(), camera.scene.shot(5.0).image)


def test_live_is_paced_in_real_time() -> None:
    camera = source("&fps=20")
    _ = camera.scene  # drawn up before the clock is looked at
    camera.open()
    began = time.monotonic()
    times = [pts for pts in (camera.grab() for _ in range(7)) if pts is not None]
    assert time.monotonic() - began >= 0.28
    assert times == sorted(set(times))
    camera.close()


def test_close_from_another_thread_ends_the_wait_for_the_next_picture() -> None:
    camera = source("&fps=1")
    camera.open()
    camera.grab()
    closer = threading.Timer(0.1, camera.close)
    closer.start()
    began = time.monotonic()
    with pytest.raises(SourceError, match="closed"):
        camera.grab()
    assert time.monotonic() - began < 0.9
    closer.join()


async def test_a_camera_streams_it_live_and_its_truth_can_be_asked_for() -> None:
    simulated = source("&fps=30")
    async with Camera(config(SMALL + "&fps=30"), simulated, endless=True) as camera:
        frames = []
        async for frame in camera.frames():
            frames.append(frame)
            if len(frames) == 5:
                break
        assert camera.status().phase is CameraPhase.STREAMING
    assert simulated.origin_ns is not None
    stamps = [frame.stamp.t_mono_ns for frame in frames]
    assert stamps == sorted(stamps)
    t_s = (stamps[-1] - simulated.origin_ns) / NS_PER_S
    assert t_s >= 0
    assert len(simulated.scene.shot(t_s).truth.boxes) <= 8


async def test_a_recorded_one_passes_through_a_camera_without_loss() -> None:
    async with open_camera(config(SMALL + "&live=no&seconds=0.5&fps=20")) as camera:
        stamps = [frame.stamp async for frame in camera.frames()]
    assert [stamp.seq for stamp in stamps] == list(range(10))
    assert stamps[-1].t_mono_ns - stamps[0].t_mono_ns == pytest.approx(0.45 * NS_PER_S)
