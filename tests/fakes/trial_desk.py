"""Cameras, models, figures and trials as in the daemon, in this process, without database and broker."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.capture import simulated
from agent.capture.simulated import SimulatedCamera
from agent.config.load import load_config
from agent.config.schema import AgentConfig, CameraConfig
from agent.daemon.cameras import Cameras
from agent.daemon.trials import AgentTrials, TrialPorts
from agent.daemon.viewpoints import Viewpoints
from agent.daemon.vitals import Vitals
from agent.errors import RecognizerError
from agent.health.reasons import HealthState
from agent.recognition import Recognition, open_recognition
from agent.simulation.scene import SimulatedScene
from agent.types import POSE_SLOT, ActionScores, Event, EventPhase, Frame, People, Tracks, action_slot

REPO = Path(__file__).resolve().parent.parent.parent
SMALL = 0.6
"""Share of their size that the pose model sees pictures in: a third of the work, and nothing here is about how well it sees."""
STRIDE = 3
"""Time steps between two windows, a fifth of the shipped: trials wait for so many of them."""


@dataclass
class FrameLog:
    """Every frame that went through: when, and its number. A PipelineListener that feeds `vitals` as the daemon's does."""

    vitals: Vitals
    times_s: dict[str, list[float]] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    people: list[int] = field(default_factory=list)
    scores: list[ActionScores] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        camera = frame.stamp.camera_id
        self.times_s.setdefault(camera, []).append(time.monotonic())
        self.numbers.setdefault(camera, []).append(frame.stamp.seq)
        self.people.append(len(people))
        self.vitals.frame(camera, people)

    def on_scores(self, scores: ActionScores) -> None:
        self.scores.append(scores)
        self.vitals.scores(scores)

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        self.failures.append(f"{camera_id} {stage}: {error}")
        self.vitals.failure(POSE_SLOT if stage == "pose" else action_slot(service))

    async def on_event(self, event: Event) -> None:
        self.events.append(event)
        if event.phase is EventPhase.DETECTED:
            self.vitals.incident(event.kind)

    @property
    def frames(self) -> int:
        return sum(len(times) for times in self.times_s.values())

    def longest_gap_ms(self, from_s: float) -> float:
        """Of any camera since `from_s` (monotonic)."""
        longest = 0.0
        for times in self.times_s.values():
            late = [at for at in times if at >= from_s]
            longest = max([longest, *(1e3 * (b - a) for a, b in itertools.pairwise(late))])
        return longest


@dataclass
class Desk:
    """incidents: what the trials are told is active."""

    config: AgentConfig
    recognition: Recognition
    trials: AgentTrials
    log: FrameLog
    health: HealthState
    cameras: Cameras
    incidents: list[Mapping[str, str]]
    told: list[tuple[str, float]] = field(default_factory=list)

    def tell(self, step: str, done: float) -> None:
        self.told.append((step, done))

    async def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: {self.cameras.statuses()}"
            await asyncio.sleep(0.01)

    async def more_frames(self, count: int) -> None:
        had = self.log.frames
        await self.until(lambda: self.log.frames >= had + count, f"{count} more frames")


def desk_config(
    folder: Path, *sources: str, services: tuple[str, ...] = ("fall",), stride: int = STRIDE, **update: Any
) -> AgentConfig:
    """pose-nano in 8 bits on the CPU, with the named services, over `sources`; stride: time steps between two windows; update: of the
    section `update`."""
    config = load_config([REPO / "configs" / "pose-nano.yaml"], env={})
    cameras = tuple(
        CameraConfig.model_validate({"id": f"cam{n}", "source": source, "frozen_after_s": 0, "blind_after_s": 0})
        for n, source in enumerate(sources)
    )
    chosen = {
        name: service.model_copy(update={"window": service.window.model_copy(update={"stride": stride})})
        for name, service in config.services.items()
        if name in services
    }
    return config.model_copy(
        update={
            "state_dir": folder,
            "cameras": cameras,
            "pose": config.pose.model_copy(update={"device": "cpu"}),
            "services": chosen,
            "update": config.update.model_copy(update=update),
        }
    )


class _Scenes:
    """Those that were made already, to be shown again: a desk has the same as the one before, and making one takes a second."""

    def __init__(self) -> None:
        self._build = simulated._build
        self._free: list[tuple[SimulatedCamera, SimulatedScene]] = []

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """Every source that is opened meanwhile has a scene of its own; afterwards they are free again."""
        taken: list[tuple[SimulatedCamera, SimulatedScene]] = []

        def take(camera: SimulatedCamera) -> SimulatedScene:
            found = next((one for one in self._free if one[0] == camera), None)
            if found is None:
                found = camera, self._build(camera)
            else:
                self._free.remove(found)
            taken.append(found)
            return found[1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulated, "_build", take)
            yield
        self._free += taken


_SCENES = _Scenes()


@asynccontextmanager
async def open_desk(config: AgentConfig, *, paths: Mapping[str, Path] | None = None) -> AsyncIterator[Desk]:
    """All of it running; ended again on leaving."""
    vitals, health = Vitals(), HealthState()
    opened: list[Recognition] = []
    incidents: list[Mapping[str, str]] = []
    trials = AgentTrials(
        TrialPorts(lambda: opened[0] if opened else None, lambda: config, health, lambda: incidents, vitals)
    )
    trials.paths |= paths or {}
    log = FrameLog(vitals)

    def on_pose(items: int, seconds: float) -> None:
        vitals.batch(POSE_SLOT, items, seconds)

    def on_action(service: str, items: int, seconds: float) -> None:
        vitals.batch(action_slot(service), items, seconds)

    try:
        async with (
            _SCENES.lent(),
            open_recognition(
                config, paths=trials.paths, on_left_aside=trials.left_aside, on_pose_batch=on_pose,
                on_action_batch=on_action,
            ) as recognition,
            asyncio.TaskGroup() as group,
        ):  # fmt: skip
            opened.append(recognition)
            recognition.scale_pictures(SMALL)
            viewpoints = Viewpoints(config.state_dir / "viewpoints.json")
            cameras = Cameras(
                recognition, log, group=group, health=health, viewpoints=viewpoints, on_restart=lambda _: None
            )
            await cameras.apply(config.cameras)
            try:
                yield Desk(config, recognition, trials, log, health, cameras, incidents)
            finally:
                await cameras.close_sources()
                await cameras.drain()
    finally:
        await trials.close()
