"""The whole agent in this process while something comes in between: reloads, stops and orders as its models load, cameras that
are silent, gone, or brought by a plug-in that fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from fakes import gated
from fakes.plugin import install_gated

from agent.app import Agent
from agent.config.load import load_config
from agent.config.schema import AgentConfig, CameraConfig
from agent.daemon import outage
from agent.daemon.listener import MODEL_ERROR_AFTER
from agent.daemon.watching import STALL_LIMIT_S, stall_limit_s
from agent.errors import ModelError
from agent.health.governor import LADDER
from agent.supervise import ProgressWatch
from agent.types import CameraPhase

SIM = "sim://?seed=1&width=160&height=120&people=1&fps=10"


def camera(camera_id: str = "cam", source: str = SIM, **more: Any) -> dict[str, Any]:
    return {"id": camera_id, "source": source, "frozen_after_s": 0, "blind_after_s": 0, **more}


@dataclass
class Desk:
    """An agent that runs, and the configuration that a reload will read."""

    folder: Path
    agent: Agent = field(init=False)
    running: asyncio.Task[None] = field(init=False)
    wanted: AgentConfig = field(init=False)

    def configure(self, *cameras: dict[str, Any], **sections: Any) -> AgentConfig:
        document: dict[str, Any] = {
            "device_id": "box",
            "state_dir": str(self.folder / "state"),
            "cameras": list(cameras),
            "pose": {"estimator": "gated"},
            "services": {"fight": {"enabled": False}, "fall": {"enabled": False}},
            "evidence": {"enabled": False},
            "mqtt": {"enabled": False},
            "http": {"enabled": False},
            "drift": {"enabled": False},
            "health": {"probe_interval_s": 0.1, "governor": {"enabled": False, "cpu_high": 1, "memory_high": 1}},
        }
        file = self.folder / "agent.yaml"
        file.write_text(json.dumps(document | sections))
        self.wanted = load_config([file], env={})
        return self.wanted

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(1000):
            if condition():
                return
            assert not self.running.done(), self.running
            await asyncio.sleep(0.01)
        raise AssertionError(what)

    def reasons(self) -> list[str]:
        return [reason.reason for reason in self.agent.health.snapshot().reasons]

    def phases(self) -> dict[str, CameraPhase]:
        cameras = self.agent.cameras
        return {status.camera_id: status.phase for status in cameras.statuses()} if cameras is not None else {}

    def frames(self) -> int:
        return sum(status.frames for status in self.agent.cameras.statuses()) if self.agent.cameras is not None else 0


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_gated(tmp_path / "plugins")
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    gated.reset()


@asynccontextmanager
async def running(
    folder: Path, *cameras: dict[str, Any], let: bool = True, environ: dict[str, str] | None = None, **sections: Any
) -> AsyncIterator[Desk]:
    """let: the models are loaded at once."""
    desk = Desk(folder)
    config = desk.configure(*cameras, **sections)
    desk.agent = agent = Agent(config, environ=environ or {}, load=lambda: desk.wanted)
    desk.running = asyncio.create_task(agent.run())
    try:
        if let:
            gated.go.set()
            await desk.until(agent.ready_event.is_set, "ready")
        else:
            await desk.until(gated.loading.is_set, "the models load")
        yield desk
    finally:
        gated.go.set()
        agent.stop()
        await asyncio.wait_for(desk.running, 20)


pytestmark = pytest.mark.usefixtures("plugins")


# --- while the models load --------------------------------------------------------------------------------------------


async def test_a_reload_while_the_models_load_comes_after_them(tmp_path: Path) -> None:
    async with running(tmp_path, camera(), let=False) as desk:
        desk.configure(camera(), camera("two"))
        reload = asyncio.ensure_future(desk.agent._reload_whole())
        await asyncio.sleep(0.2)
        assert not reload.done()
        gated.go.set()
        assert (await reload).error == ""
        assert desk.agent.ready
        assert len(gated.loaded) == 1
        assert sorted(desk.phases()) == ["cam", "two"]
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert names.count("camera.cam") == 1


async def test_a_reload_that_is_asked_for_before_the_agent_can_comes_after_the_start(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, os.kill, os.getpid(), signal.SIGHUP)  # as the state folder is looked at
    async with running(tmp_path, camera(), let=False) as desk:
        assert not desk.agent.ready
        desk.configure(camera(), camera("two"))
        gated.go.set()
        await desk.until(lambda: sorted(desk.phases()) == ["cam", "two"], "the reload")


async def test_a_stop_does_not_wait_for_models_and_closes_what_comes_late(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        async with running(tmp_path, camera(), let=False, environ=environ) as desk:
            reload = asyncio.ensure_future(desk.agent._reload_whole())
            await asyncio.sleep(0)
            desk.agent.stop()
            desk.agent.stop()  # as systemd may ask twice
            await asyncio.wait_for(asyncio.shield(desk.running), 10)
            assert not desk.agent.ready_event.is_set()
            assert (await reload).error == "the agent stops"
            assert desk.agent.cameras is None
            assert gated.loaded == []
            gated.go.set()
            async with asyncio.timeout(5):
                while not any(estimator.closed for estimator in gated.loaded):
                    await asyncio.sleep(0.01)
        said = b""
        while True:
            try:
                said += manager.recv(4096) + b"\n"
            except BlockingIOError:
                break
    assert b"STOPPING=1" in said
    assert b"READY=1" not in said


async def test_a_stop_while_a_reload_loads_the_models(tmp_path: Path) -> None:
    async with running(tmp_path) as desk:
        gated.go.clear()
        desk.configure(camera())
        reload = asyncio.ensure_future(desk.agent._reload_whole())
        await desk.until(gated.loading.is_set, "the models load")
        desk.agent.stop()
        await asyncio.wait_for(asyncio.shield(desk.running), 10)
        await reload
        assert desk.agent.cameras is None


async def test_a_step_of_the_ladder_that_was_taken_before_there_were_cameras_holds_for_them(tmp_path: Path) -> None:
    async with running(tmp_path, camera(), let=False) as desk:
        desk.agent.monitor.hold_degradation(4, 3600, "fleet")
        await desk.until(lambda: desk.agent.monitor.step == 4, "the step")
        gated.go.set()
        await desk.until(desk.agent.ready_event.is_set, "ready")
        assert desk.agent.cameras is not None
        assert desk.agent.cameras._step == LADDER[4]
        assert gated.loaded[-1].scale == LADDER[4].picture_scale < 1
        assert desk.agent.drift.smaller_pictures  # what it sees meanwhile is no drift of the model
        assert desk.agent.drift.sparse_windows
        desk.agent.monitor.hold_degradation(0, 0, "fleet")
        await desk.until(lambda: gated.loaded[-1].scale == 1, "whole pictures again")
        assert not desk.agent.drift.smaller_pictures
        assert not desk.agent.drift.sparse_windows


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "probe_interval_s", "limit_s"),
    [
        ({"read_timeout_s": 1}, 2.0, STALL_LIMIT_S),
        ({}, 2.0, 22.0),
        ({"read_timeout_s": 60}, 2.0, 72.0),
        ({}, 60.0, 80.0),
        ({"max_fps": 0.02}, 2.0, 72.0),
    ],
)
def test_the_stall_limit_leaves_room_for_what_a_camera_may_do(
    settings: dict[str, float], probe_interval_s: float, limit_s: float
) -> None:
    one = CameraConfig.model_validate({"id": "cam", "source": "0", **settings})
    assert stall_limit_s(one, probe_interval_s) == pytest.approx(limit_s)


async def test_a_silent_camera_starves_the_watchdog_when_its_time_is_up_and_not_before(tmp_path: Path) -> None:
    async with running(tmp_path) as desk:
        now_s = [0.0]
        desk.agent.watch = ProgressWatch(lambda: now_s[0])
        desk.configure(camera(source="scripted://silent", read_timeout_s=60))
        assert (await desk.agent.reload()).error == ""
        await desk.until(lambda: desk.frames() >= 1, "frames")
        await asyncio.sleep(0.3)  # those that come have come
        assert desk.phases() == {"cam": CameraPhase.STREAMING}
        now_s[0] = 60.0
        assert desk.agent.watch.stalls() == ()
        now_s[0] = 71.0
        assert [stall.name for stall in desk.agent.watch.stalls()] == ["camera.cam"]


async def test_cameras_that_all_stay_away_are_a_failure_until_one_delivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "GRACE_S", 0.5)
    async with running(tmp_path, camera("gone", "rtsp://127.0.0.1:9/1")) as desk:
        await desk.until(lambda: "no_camera" in desk.reasons(), "no camera delivers")
        desk.configure(camera("gone", "rtsp://127.0.0.1:9/1"), camera())
        await desk.agent.reload()
        await desk.until(lambda: "no_camera" not in desk.reasons(), "one does")
        assert "camera_offline:gone" in desk.reasons()


# --- what a reload brings and takes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["scripted://refused", "gopher://x"])
async def test_a_source_that_cannot_be_made_leaves_the_configuration_as_it_was(tmp_path: Path, source: str) -> None:
    async with running(tmp_path, camera()) as desk:
        before = desk.agent.config
        desk.configure(camera(source=source), camera("two"), log={"level": "error"})
        outcome = await desk.agent.reload()
        assert source.partition(":")[0] in outcome.error
        assert desk.agent.config is before
        assert "config_reload" in desk.reasons()
        assert list(desk.phases()) == ["cam"]
        desk.wanted = before
        assert (await desk.agent.reload()).error == ""
        assert "config_reload" not in desk.reasons()


async def test_a_reload_takes_its_thresholds_to_the_live_page(tmp_path: Path) -> None:
    async with running(tmp_path) as desk:
        rules = {"rules": {"alert_threshold": 0.7}, "enabled": False}
        desk.configure(services={"fight": rules, "fall": {"enabled": False}})
        assert (await desk.agent.reload()).error == ""
        assert desk.agent.live._alert == {"fight": 0.7, "fall": 0.6}


async def test_models_that_cannot_be_loaded_leave_the_configuration_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path) as desk:
        before = desk.agent.config
        gated.fault.append(ModelError("damaged"))
        desk.configure(camera())
        assert (await desk.agent.reload()).error == "damaged"
        assert desk.agent.config is before
        assert "no_camera" in desk.reasons()
        assert (await desk.agent.reload()).error == ""
        assert list(desk.phases()) == ["cam"]
        assert "no_camera" not in desk.reasons()


async def test_the_first_camera_comes_with_the_models_that_are_named_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as desk:
        pose = {"estimator": "gated", "options": {"late": 1}}
        desk.configure(camera(), pose=pose, tracking={"min_box_area_px": 1}, device_id="other")
        outcome = await desk.agent.reload()
        assert (outcome.error, outcome.needs_restart) == ("", ("device_id",))
        assert desk.agent.config.pose.options == {"late": 1}
        desk.configure(camera(), pose={"estimator": "gated", "options": {"late": 2}})
        assert (await desk.agent.reload()).needs_restart == ("pose.options", "tracking.min_box_area_px")


async def test_what_is_refused_says_what_would_have_waited_for_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, camera()) as desk:
        desk.configure(camera(source="gopher://x"), device_id="other")
        assert "(besides, these need a restart: device_id)" in (await desk.agent.reload()).error


async def test_a_bug_as_the_configuration_is_read_leaves_it_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, camera()) as desk:
        before, agent = desk.agent.config, desk.agent
        bug = RecursionError("deeper than thought")

        def broken() -> AgentConfig:
            raise bug

        agent._load = broken
        with structlog.testing.capture_logs() as logs:
            assert (await agent.reload()).error == "RecursionError: deeper than thought"
        assert [log["exc_info"] for log in logs if log["event"] == "reload_refused"] == [bug]
        assert agent.config is before
        assert "config_reload" in desk.reasons()
        agent._load = lambda: desk.wanted
        assert (await agent.reload()).error == ""
        assert desk.reasons() == []


@pytest.mark.parametrize("kind", ["raises", "exits", "silly"])
async def test_a_plug_in_with_a_bug_costs_its_own_camera_alone(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path, camera("odd", f"scripted://{kind}"), camera()) as desk:
        await desk.until(lambda: "camera_offline:odd" in desk.reasons(), "it says so")
        before = desk.frames()
        await desk.until(lambda: desk.frames() > before + 3, "the other one delivers")


@pytest.mark.parametrize("kind", ["absent", "moody"])
async def test_a_plug_in_that_fails_when_a_camera_is_opened_costs_that_camera_alone(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path, camera("odd", f"scripted://{kind}"), camera()) as desk:
        await desk.until(lambda: "camera_offline:odd" in desk.reasons(), "it says so")
        await desk.until(lambda: desk.frames() > 3, "the other one delivers")


async def test_a_device_that_a_plug_in_does_not_find_is_offline_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path, camera("odd", "scripted://absent")) as desk:
        await desk.until(lambda: desk.phases() == {"odd": CameraPhase.OFFLINE}, "offline")
        assert desk.agent.cameras is not None
        assert desk.agent.cameras.statuses()[0].error == "no such device"
        asked = gated.built.count("absent")
        await desk.until(lambda: gated.built.count("absent") > asked, "it is asked again")


async def test_a_camera_that_is_disabled_or_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    cameras = [camera("off", "scripted://silent"), camera("gone", "scripted://silent")]
    async with running(tmp_path, *cameras, camera(), evidence={"enabled": True}) as desk:
        agent = desk.agent
        for name in ("off", "gone"):
            await desk.until(lambda name=name: name in agent.live._views, "frames")  # type: ignore[misc]
        await asyncio.sleep(0.3)  # no frame of theirs comes any more
        for name in ("off", "gone"):
            for _ in range(MODEL_ERROR_AFTER):
                agent._listener.on_failure(name, "pose", ModelError("bad picture"))
        assert {"pose_model:off", "pose_model:gone"} <= set(desk.reasons())
        desk.configure(cameras[0] | {"enabled": False}, camera(), evidence={"enabled": True})
        assert (await agent.reload()).error == ""
        assert desk.reasons() == []
        assert await agent.live.picture("off") is None
        assert await agent.live.picture("gone") is None
        await desk.until(lambda: list(agent.evidence._rings) == ["cam"], "only the one that is left")
