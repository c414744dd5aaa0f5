"""The models and the cameras that they watch: opened together when there is a camera, changed and looked at together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from agent.config.schema import AgentConfig, CameraConfig
from agent.daemon.cameras import Cameras, check_sources
from agent.daemon.listener import AgentListener
from agent.daemon.outage import Outage
from agent.errors import ConfigError
from agent.health.governor import LADDER
from agent.recognition import Recognition, open_recognition
from agent.types import POSE_SLOT, action_slot

if TYPE_CHECKING:
    from agent.app import Agent

STALL_LIMIT_S = 20.0
"""A streaming camera whose pipeline handles no frame for this long starves the watchdog, unless it may be silent for longer."""
STALL_MARGIN_S = 10.0


def stall_limit_s(camera: CameraConfig, probe_interval_s: float) -> float:
    """How long no frame of a camera has to come before its pipeline is stuck, and not just the camera silent.

    A camera that falls silent owes its next frame until a round finds it offline: the pause between two frames that it is held
    to, the read that times out, the pause between two rounds.
    """
    period_s = 1 / camera.max_fps if camera.max_fps else 0.0
    return max(STALL_LIMIT_S, period_s + camera.read_timeout_s + probe_interval_s + STALL_MARGIN_S)


class Watching:
    """One change at a time: who calls `apply` sees to that."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._stack = AsyncExitStack()
        self._stack.push_async_callback(agent.trials.close)  # after the models that serve
        self._group: asyncio.TaskGroup
        self._listener: AgentListener
        self._loading: asyncio.Timeout | None = None
        self._stopping = False
        self._limits_s: Mapping[str, float] = {}
        self._outage = Outage(agent.health)
        self.recognition: Recognition | None = None
        self.cameras: Cameras | None = None

    def open(self, group: asyncio.TaskGroup, listener: AgentListener) -> None:
        """Before the first `apply`. group: for the cameras' tasks; listener: told what they show."""
        self._group, self._listener = group, listener

    async def close(self) -> None:
        """Free the models; no camera may need them any more."""
        await self._stack.aclose()

    def give_up(self) -> None:
        """The agent is to stop: models that are being loaded are not waited for, and nothing is opened any more."""
        if self._loading is not None and not self._stopping:
            self._loading.reschedule(asyncio.get_running_loop().time())
        self._stopping = True

    # --- changing -----------------------------------------------------------------------------------------------------

    async def apply(self, config: AgentConfig) -> None:
        """Watch the cameras of `config`; the models are loaded with the first of them, without one the agent idles.

        Raises ConfigError, ModelError, TrustError, DeviceMemoryError; all is as before then.
        """
        wanted = [camera for camera in config.cameras if camera.enabled]
        check_sources(wanted)
        if self._stopping:
            return
        if self.cameras is None and wanted:
            await self._load(config)
        if self.cameras is not None and self.recognition is not None:
            await self._change(self.cameras, self.recognition, config)
        self._outage.configured(bool(wanted))

    async def _load(self, config: AgentConfig) -> None:
        """Nothing is there afterwards if the agent is to stop before the models are loaded."""
        agent = self._agent
        recognition = open_recognition(
            config, paths=agent.trials.paths, on_left_aside=agent.trials.left_aside,
            on_pose_batch=self._on_pose_batch, on_action_batch=self._on_action_batch,
        )  # fmt: skip
        try:
            async with asyncio.timeout(None) as self._loading:
                self.recognition = await self._stack.enter_async_context(recognition)
        except TimeoutError:
            if not self._stopping:
                raise
            return
        finally:
            self._loading = None
        self.cameras = Cameras(
            self.recognition, self._listener, group=self._group, health=agent.health, viewpoints=agent.viewpoints,
            on_restart=agent.metrics.count_restart, on_ended=self._on_camera_ended, on_removed=self._listener.forget,
        )  # fmt: skip
        self.apply_step(agent.monitor.step)  # taken, or asked for, while there was none

    async def _change(self, cameras: Cameras, recognition: Recognition, config: AgentConfig) -> None:
        before, recognition.config = recognition.config, config  # cameras that start from now on
        try:
            await cameras.apply(config.cameras)
        except ConfigError:
            recognition.config = before
            raise
        probe_interval_s = config.health.probe_interval_s
        self._limits_s = {camera.id: stall_limit_s(camera, probe_interval_s) for camera in config.cameras}

    def apply_step(self, step: int) -> None:
        """Slow the cameras down to rung `step` of the ladder and let the pose model see less, or let them go on."""
        if self.cameras is None or self.recognition is None:
            return
        self.cameras.apply_step(LADDER[step])
        self._agent.drift.sparse_windows = LADDER[step].stride_factor > 1
        self.recognition.scale_pictures(LADDER[step].picture_scale)
        self._note_size(self.recognition)

    def _note_size(self, recognition: Recognition) -> None:
        """Nobody may take it for the model's doing that it sees less."""
        self._agent.drift.smaller_pictures = self._agent.vitals.smaller_pictures = recognition.smaller_pictures

    # --- looking ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Once a round: what the cameras do, and what goes on without their frames."""
        cameras, agent = self.cameras, self._agent
        if cameras is None:
            return
        cameras.report_health()
        if self.recognition is not None:
            self._note_size(self.recognition)  # another model may serve by now
        self._outage.look(cameras.statuses())
        for name in cameras.resting():
            agent.watch.idle(f"camera.{name}")
        for name in cameras.silent():
            agent.evidence.poll(name)

    def beat(self, camera_id: str) -> None:
        """A frame of the camera has been handled."""
        self._agent.watch.register(f"camera.{camera_id}", self._limits_s.get(camera_id, STALL_LIMIT_S))
        self._agent.watch.beat(f"camera.{camera_id}")

    def _on_camera_ended(self, camera_id: str) -> None:
        self._agent.watch.forget(f"camera.{camera_id}")
        self._agent.evidence.forget(camera_id)

    def _on_pose_batch(self, items: int, seconds: float) -> None:
        self._agent.metrics.observe_pose(seconds)
        self._agent.drift.observe_latency(POSE_SLOT, items, seconds)
        self._agent.vitals.batch(POSE_SLOT, items, seconds)

    def _on_action_batch(self, service: str, items: int, seconds: float) -> None:
        self._agent.metrics.observe_classification(service, seconds)
        self._agent.drift.observe_latency(action_slot(service), items, seconds)
        self._agent.vitals.batch(action_slot(service), items, seconds)
