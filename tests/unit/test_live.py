"""The live hub: encodes only for viewers, once per frame, and forgets what is over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from fakes.replay import T0_UTC, walkers

from agent.config.schema import HttpConfig
from agent.daemon import live
from agent.daemon.live import MAX_WIDTH_PX, LiveHub, Scene
from agent.overlay import ActionBar, Mode, draw
from agent.types import ActionScores, Event, EventPhase, Frame, FrameStamp, ImageArray, People, Tracks

FAST = HttpConfig(live_fps=200)


@pytest.fixture
def hub() -> Iterator[LiveHub]:
    hub = LiveHub(FAST, {"fight": 0.8})
    yield hub
    hub.close()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the frames that were encoded, by the real encoder."""
    numbers: list[int] = []
    encode = live.encode

    def counting(scene: Scene, *rest: object) -> bytes:
        numbers.append(scene[0].stamp.seq)
        return encode(scene, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(live, "encode", counting)
    return numbers


def scene(seq: int = 0, *, size: tuple[int, int] = (120, 160), camera: str = "cam", grey: int = 90) -> Scene:
    height, width = size
    stamp = FrameStamp(camera, seq, seq * 40_000_000, T0_UTC, width, height)
    people = walkers(2, 1, size=size)[0]
    tracks = Tracks(stamp, people, np.array([1, 2]), np.array([1, 1]))
    return Frame(stamp, np.full((height, width, 3), grey, np.uint8)), people, tracks


def verdict(probability: float) -> ActionScores:
    return ActionScores("cam", "fight", probability, {"fight": probability}, 0, 1, T0_UTC, (1, 2), 0.01)


def event(phase: EventPhase, number: int = 1) -> Event:
    return Event(f"e{number}{phase}", f"i{number}", "fight", phase, "cam", (1,), 0, T0_UTC, T0_UTC, 1.5, 0.9)


async def test_nothing_is_encoded_while_nobody_watches(hub: LiveHub, encoded: list[int]) -> None:
    for seq in range(20):
        hub.offer(*scene(seq))
    await asyncio.sleep(0.05)
    assert encoded == []
    assert hub.viewers == 0


async def test_a_frame_is_encoded_once_for_all_viewers_of_a_mode(hub: LiveHub, encoded: list[int]) -> None:
    hub.offer(*scene(7))
    pictures = await asyncio.gather(*(hub.picture("cam") for _ in range(5)))
    assert encoded == [7]
    assert len(set(pictures)) == 1
    await hub.picture("cam", Mode.RAW)
    assert encoded == [7, 7]


async def test_a_viewer_who_leaves_does_not_spoil_the_picture_of_another(hub: LiveHub) -> None:
    hub.offer(*scene())
    leaving, staying = asyncio.create_task(hub.picture("cam")), asyncio.create_task(hub.picture("cam"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying is not None


async def test_the_first_frame_of_a_new_source_is_not_taken_for_the_old_one(hub: LiveHub) -> None:
    hub.offer(*scene(0, grey=0))
    before = await hub.picture("cam", Mode.RAW)
    hub.offer(*scene(0, grey=255))
    await asyncio.sleep(1 / FAST.live_fps)
    assert await hub.picture("cam", Mode.RAW) != before


async def test_viewers_who_ask_at_different_moments_share_pictures(encoded: list[int]) -> None:
    hub = LiveHub(HttpConfig(live_fps=10), {})
    began_s = time.monotonic()
    for seq in range(60):
        hub.offer(*scene(seq))
        await hub.picture("cam")
        await asyncio.sleep(0.005)
    hub.close()
    assert 1 < len(encoded) <= (time.monotonic() - began_s) * 10 + 1


async def test_one_picture_is_encoded_at_a_time(hub: LiveHub, encoded: list[int]) -> None:
    gate = threading.Event()
    hub._thread.submit(gate.wait)  # the encoder is busy
    asked = []
    for seq in range(5):
        hub.offer(*scene(seq))
        asked.append(asyncio.create_task(hub.picture("cam")))
        await asyncio.sleep(2 / FAST.live_fps)
    gate.set()
    assert len(set(await asyncio.gather(*asked))) == 1
    assert encoded == [0]


async def test_viewers_are_counted_and_leave(hub: LiveHub) -> None:
    hub.offer(*scene())
    async with aclosing(hub.pictures("cam")) as one, aclosing(hub.pictures("cam")) as two:
        await anext(one)
        await anext(two)
        assert hub.viewers == 2
    assert hub.viewers == 0


async def test_a_viewer_gets_each_frame_once(hub: LiveHub) -> None:
    hub.offer(*scene(0))
    async with aclosing(hub.pictures("cam")) as pictures:
        await anext(pictures)
        waiting = asyncio.ensure_future(anext(pictures))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        hub.offer(*scene(1))
        assert await asyncio.wait_for(waiting, 5)


async def test_the_stream_of_a_removed_camera_ends(hub: LiveHub) -> None:
    hub.offer(*scene())
    async with aclosing(hub.pictures("cam")) as pictures:
        await anext(pictures)
        hub.forget("cam")
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(pictures), 5)
    assert await hub.picture("cam") is None


async def test_pictures_are_jpeg_and_no_wider_than_a_page(hub: LiveHub) -> None:
    hub.offer(*scene(size=(1080, 1920)))
    jpeg = await hub.picture("cam")
    assert jpeg is not None
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (round(1080 * MAX_WIDTH_PX / 1920), MAX_WIDTH_PX, 3)


async def test_the_source_frame_stays_untouched(hub: LiveHub) -> None:
    shown = scene()
    hub.offer(*shown)
    await hub.picture("cam")
    assert (shown[0].image == 90).all()


async def test_the_first_look_hides_faces_that_the_estimator_has_just_lost(hub: LiveHub) -> None:
    """Nobody watched while they were there: a snapshot on command, a page that is opened."""
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)

    def offer(seq: int, *, seen: bool) -> None:
        frame, people, tracks = scene(seq, size=(240, 320))
        shown = people if seen else People.empty()
        hub.offer(
            replace(frame, image=noise),
            shown,
            replace(tracks, people=shown, track_ids=tracks.track_ids[: len(shown)], states=tracks.states[: len(shown)]),
        )

    offer(0, seen=True)
    hidden = await hub.picture("cam", Mode.RAW)
    hub.forget("cam")
    offer(1, seen=True)
    offer(2, seen=False)
    assert await hub.picture("cam", Mode.RAW) == hidden
    for seq in range(3, 30):  # more than a second later nobody can still be there
        offer(seq, seen=False)
    assert await hub.picture("cam", Mode.RAW) != hidden


async def test_stale_verdicts_vanish(hub: LiveHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.offer(*scene())
    hub.on_scores(verdict(0.91))
    assert hub.camera_state("cam") == {"people": 2, "track_ids": [1, 2], "scores": {"fight": 0.91}}
    monkeypatch.setattr(live, "VERDICT_SHOWN_S", -1.0)
    assert hub.camera_state("cam")["scores"] == {}


async def test_the_threshold_that_turns_a_bar_red_may_change_while_it_runs(
    hub: LiveHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[ActionBar] = []

    def drawing(*arguments: Any, actions: Sequence[ActionBar], **rest: Any) -> ImageArray:
        drawn.extend(actions)
        return draw(*arguments, actions=actions, **rest)

    monkeypatch.setattr(live, "draw", drawing)
    hub.on_scores(verdict(0.7))
    hub.offer(*scene(0))
    await hub.picture("cam")
    hub.reconfigure(FAST, {"fight": 0.6})
    hub.offer(*scene(1))
    await hub.picture("cam")
    assert drawn == [ActionBar("fight", 0.7, 0.8), ActionBar("fight", 0.7, 0.6)]


@pytest.mark.parametrize("probability", [float("nan"), float("inf"), -0.1, 1.5])
def test_what_is_no_probability_is_no_verdict(hub: LiveHub, probability: float) -> None:
    """JSON has no NaN: one would cost every viewer the whole page."""
    hub.offer(*scene())
    hub.on_scores(verdict(0.4))
    hub.on_scores(verdict(probability))
    assert hub.camera_state("cam")["scores"] == {"fight": 0.4}


def test_an_unknown_camera_has_nobody_in_it(hub: LiveHub) -> None:
    assert hub.camera_state("none") == {"people": 0, "track_ids": [], "scores": {}}


def test_an_incident_is_active_until_it_is_resolved(hub: LiveHub) -> None:
    hub.on_event(event(EventPhase.DETECTED), 1)
    hub.on_event(event(EventPhase.ACTIVE), 2)
    assert [incident["phase"] for incident in hub.active_incidents] == ["active"]
    hub.on_event(event(EventPhase.RESOLVED), None)  # could not be committed: over all the same
    assert hub.active_incidents == []
    assert [(step["sequence"], step["phase"]) for step in hub.recent_events] == [
        (None, "resolved"), (2, "active"), (1, "detected"),
    ]  # fmt: skip


def test_recent_events_are_bounded(hub: LiveHub) -> None:
    for number in range(500):
        hub.on_event(replace(event(EventPhase.RESOLVED), event_id=str(number)), number)
    assert len(hub.recent_events) == live.RECENT_EVENTS
    assert hub.recent_events[0]["sequence"] == 499
