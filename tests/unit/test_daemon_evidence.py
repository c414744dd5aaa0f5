"""Evidence of all cameras: real rings, a real thread, a real folder."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fakes.replay import T0_UTC, walkers

from agent.config.load import load_config
from agent.config.schema import EvidenceConfig
from agent.daemon.evidence import MAX_PENDING, Evidence, lookback_s
from agent.events.evidence_writer import EvidenceWriter
from agent.health.governor import LADDER
from agent.types import Event, EventPhase, Frame, FrameStamp, People, Tracks

CONFIG = EvidenceConfig(pre_roll_s=1, post_roll_s=1, fps=10)
PEOPLE = walkers(2, 1, size=(120, 160))[0]


def frame(n: int, camera_id: str = "cam") -> Frame:
    """The n-th frame at 25 frames a second."""
    t_s = n / 25
    stamp = FrameStamp(camera_id, n, round(t_s * 1e9), T0_UTC + timedelta(seconds=t_s), 160, 120)
    image = np.random.default_rng(n).integers(0, 255, (120, 160, 3), np.uint8)
    return Frame(stamp, image)


def tracks(of: Frame) -> Tracks:
    return Tracks(of.stamp, PEOPLE, np.arange(2), np.ones(2, np.int64))


def event(phase: EventPhase, n: int, *, onset: int = 20) -> Event:
    stamp, start = frame(n).stamp, frame(onset).stamp
    duration_s = (n - onset) / 25
    return Event(
        f"id-{phase}", "incident", "fight", phase, "cam", (1, 2), start.t_mono_ns, stamp.t_utc, start.t_utc, duration_s, 0.9
    )  # fmt: skip


class Clock:
    """A monotonic clock that a test moves."""

    now_ns = 7_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def evidence(tmp_path: Path, clock: Clock) -> AsyncIterator[Evidence]:
    writer = EvidenceWriter(tmp_path, CONFIG)
    task = asyncio.create_task(writer.run())
    made = Evidence(CONFIG, writer, clock_ns=clock)
    yield made
    made.close()
    task.cancel()


async def feed(evidence: Evidence, first: int, last: int) -> None:
    for n in range(first, last):
        one = frame(n)
        evidence.offer(one, PEOPLE, tracks(one))
        await asyncio.sleep(0.004)


def metas(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in folder.glob("*/*/*/meta.json")]


async def test_an_incident_becomes_a_folder_with_the_time_around_it(evidence: Evidence, tmp_path: Path) -> None:
    await feed(evidence, 0, 40)
    opened = event(EventPhase.DETECTED, 40)
    evidence.observe(opened)
    await feed(evidence, 40, 60)
    evidence.observe(event(EventPhase.RESOLVED, 60))
    await feed(evidence, 60, 100)
    await asyncio.wait_for(evidence.drain(), 20)
    folder = tmp_path / str(evidence.attributes(opened)["evidence"])
    assert {path.name for path in folder.iterdir()} == {"clip.mp4", "meta.json", "skeleton.jsonl", "snapshot.jpg"}


async def test_silent_camera_still_gets_its_clip_cut(evidence: Evidence, tmp_path: Path, clock: Clock) -> None:
    await feed(evidence, 0, 40)
    evidence.observe(event(EventPhase.DETECTED, 40))
    evidence.observe(event(EventPhase.RESOLVED, 45))
    clock.now_ns += 2_000_000_000
    evidence.poll("cam")
    async with asyncio.timeout(20):
        while not metas(tmp_path):
            await asyncio.sleep(0.05)


async def test_a_file_has_a_time_of_its_own(evidence: Evidence, tmp_path: Path, clock: Clock) -> None:
    await feed(evidence, 0, 40)
    evidence.observe(event(EventPhase.DETECTED, 40))
    clock.now_ns += 100_000_000
    evidence.poll("cam")  # the machine has been up for hours, the file has been playing for two seconds
    await feed(evidence, 40, 60)
    evidence.observe(event(EventPhase.RESOLVED, 60))
    await feed(evidence, 60, 100)
    await asyncio.wait_for(evidence.drain(), 20)
    (meta,) = metas(tmp_path)
    assert meta["truncated"] is False


async def test_removed_camera_leaves_what_it_was_recording(evidence: Evidence, tmp_path: Path) -> None:
    await feed(evidence, 0, 40)
    evidence.observe(event(EventPhase.DETECTED, 40))
    evidence.forget("cam")
    await asyncio.wait_for(evidence.drain(), 20)
    assert len(metas(tmp_path)) == 1


async def test_what_is_on_its_way_when_a_camera_ends_is_in_its_clip(evidence: Evidence, tmp_path: Path) -> None:
    await feed(evidence, 0, 40)
    evidence.observe(event(EventPhase.DETECTED, 40))
    for n in (50, 60, 70):  # due, and still waiting for the thread
        one = frame(n)
        evidence.offer(one, PEOPLE, tracks(one))
    evidence.forget("cam")
    await asyncio.wait_for(evidence.drain(), 20)
    (skeletons,) = tmp_path.glob("*/*/*/skeleton.jsonl")
    assert len(skeletons.read_text().splitlines()) == 16 + 3


async def test_a_time_line_that_begins_anew_is_another_life(evidence: Evidence, tmp_path: Path) -> None:
    """A file that is opened again, or that takes the place of a camera whose time was the machine's."""
    await feed(evidence, 400, 440)
    old = replace(event(EventPhase.DETECTED, 440, onset=420), incident_id="old")
    evidence.observe(old)
    await feed(evidence, 0, 40)
    evidence.observe(event(EventPhase.DETECTED, 40))
    evidence.observe(event(EventPhase.RESOLVED, 45))
    await feed(evidence, 40, 80)
    await asyncio.wait_for(evidence.drain(), 20)
    found = {str(meta["incident_id"]): meta for meta in metas(tmp_path)}
    assert sorted(found) == ["incident", "old"]
    assert found["old"]["truncated"]
    assert found["incident"]["first_frame_at"] == "2026-01-01T00:00:00.000Z"
    assert found["incident"]["clip_s"] == pytest.approx(2.8, abs=0.1)


async def test_pipeline_never_waits_for_the_thread(evidence: Evidence) -> None:
    for n in range(0, 400, 4):  # 100 frames that are all due, without giving the loop a turn
        one = frame(n)
        evidence.offer(one, PEOPLE, tracks(one))
    assert evidence.skipped == 100 - MAX_PENDING
    await evidence.drain()


NOISE = frame(0).image


def offer(evidence: Evidence, n: int, people: People) -> None:
    """The n-th frame, all of one picture, and people in it whom nobody tracks."""
    stamp = frame(n).stamp
    nobody = Tracks(stamp, People.empty(), np.zeros(0, np.int64), np.zeros(0, np.int64))
    evidence.offer(Frame(stamp, NOISE), people, nobody)


async def newest_picture(evidence: Evidence) -> bytes:
    await asyncio.get_running_loop().run_in_executor(evidence._thread, lambda: None)  # everything offered is in
    await asyncio.sleep(0)
    return evidence._rings["cam"]._ring[-1].jpeg


async def test_a_face_is_blurred_that_was_reported_only_in_a_frame_that_was_not_due(evidence: Evidence) -> None:
    offer(evidence, 0, People.empty())
    sharp = await newest_picture(evidence)
    offer(evidence, 3, PEOPLE)
    hidden = await newest_picture(evidence)
    assert hidden != sharp
    offer(evidence, 50, People.empty())
    assert await newest_picture(evidence) == sharp
    offer(evidence, 51, PEOPLE)
    offer(evidence, 53, People.empty())
    assert await newest_picture(evidence) == hidden


async def test_a_face_is_blurred_that_was_reported_only_while_the_thread_was_busy(evidence: Evidence) -> None:
    offer(evidence, 0, PEOPLE)
    hidden = await newest_picture(evidence)
    gate = threading.Event()
    evidence._thread.submit(gate.wait)
    for n in range(50, 50 + MAX_PENDING):
        offer(evidence, n, People.empty())
    offer(evidence, 60, PEOPLE)
    assert evidence.skipped == 1
    gate.set()
    assert await newest_picture(evidence) != hidden
    offer(evidence, 63, People.empty())
    assert await newest_picture(evidence) == hidden


def test_the_ring_reaches_back_to_the_onset_on_every_step_of_the_governor(tmp_path: Path) -> None:
    config = load_config(env={"HOME": str(tmp_path)}, need_pulled_models=False)
    reach_s = lookback_s(config)
    for service in config.services.values():
        window, rules = service.window, service.rules
        for step in LADDER:
            stride = step.stride(window, rules.silence_s, usual_fps=30, fps=step.camera_fps(30))
            assert (window.length + (rules.alert_count - 1) * stride) / window.rate_hz <= reach_s


async def test_rules_that_take_longer_have_the_rings_reach_farther_back(tmp_path: Path, clock: Clock) -> None:
    evidence = Evidence(CONFIG, EvidenceWriter(tmp_path, CONFIG), lookback_s=1, clock_ns=clock)
    await feed(evidence, 0, 2)
    evidence.look_back(30)
    for n in range(2, 1000, 25):
        offer(evidence, n, People.empty())
        await asyncio.get_running_loop().run_in_executor(evidence._thread, lambda: None)
        await asyncio.sleep(0)
    evidence.observe(event(EventPhase.DETECTED, 1000, onset=400))
    assert evidence._ring("cam").flush()[0].frames[0].t_mono_ns < frame(400).stamp.t_mono_ns
    evidence.close()


async def test_disabled_evidence_keeps_nothing(tmp_path: Path) -> None:
    config = EvidenceConfig(enabled=False)
    off = Evidence(config, EvidenceWriter(tmp_path, config))
    await feed(off, 0, 5)
    off.observe(event(EventPhase.DETECTED, 5))
    assert off.attributes(event(EventPhase.DETECTED, 5)) == {}
    await asyncio.wait_for(off.drain(), 5)
    off.close()
    assert list(tmp_path.iterdir()) == []
