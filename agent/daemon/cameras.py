"""The cameras of a running agent: started, replaced and stopped one by one, slowed together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from agent.capture.base import redact_in
from agent.capture.camera import Camera, open_camera
from agent.capture.sources import build_source
from agent.config.schema import CameraConfig, RulesConfig
from agent.config.sections import LIVE
from agent.daemon.slowness import Slowness
from agent.daemon.viewpoints import Viewpoints
from agent.errors import ConfigError, ConfigProblem, FatalError, TransientError
from agent.health.governor import LADDER, Step
from agent.health.reasons import HealthState, Reason, reason_key
from agent.ports import PipelineListener, VideoSource
from agent.recognition import NOMINAL_FPS, CameraRun, Recognition
from agent.supervise import RestartPolicy, supervise
from agent.types import CameraPhase, CameraStatus

_log = structlog.get_logger(__name__)

_LIVE_KEYS = [name for name, info in CameraConfig.model_fields.items() if info.json_schema_extra == LIVE]

DRAIN_S = 5.0
"""How long a camera that was told to stop may finish what it has taken."""

CLOSE_S = 3.0
"""How long the end of its incidents is waited for, when it has not finished by then: somewhat longer than a commit is tried."""

_POLICY = RestartPolicy(restart_on=(TransientError, ConfigError))
"""As other core parts; and a source that was good when it was configured, and is not any more, is that camera's trouble alone."""

_REASONS = {
    CameraPhase.OFFLINE: Reason.CAMERA_OFFLINE,
    CameraPhase.FROZEN: Reason.CAMERA_FROZEN,
    CameraPhase.BLIND: Reason.CAMERA_BLIND,
}

_MOVED = "it shows another view than it used to"

_ABSENT = frozenset({CameraPhase.CONNECTING, CameraPhase.OFFLINE, CameraPhase.ENDED})
"""Nothing comes from such a camera, whatever the governor allows it."""


@dataclass(slots=True)
class _Entry:
    """One configured camera. camera, slowness, run: while they live; status: what the last life left; stopping: no life follows."""

    config: CameraConfig
    status: CameraStatus
    task: asyncio.Task[None] = field(init=False)
    camera: Camera | None = None
    slowness: Slowness | None = None
    run: CameraRun | None = None
    stopping: bool = False


def _same(old: CameraConfig, new: CameraConfig | None) -> bool:
    """Whether a running camera can become `new` without being opened again: only live keys differ."""
    return new is not None and old.model_copy(update={key: getattr(new, key) for key in _LIVE_KEYS}) == new


def check_sources(configs: Sequence[CameraConfig]) -> None:
    """Raises ConfigError with every source that nothing here can read. Opens none of them."""
    problems: list[ConfigProblem] = []
    for config in configs:
        try:
            build_source(config)
        except ConfigError as error:
            problems += error.problems
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever there is about one source, the cameras that run go on
            text = redact_in(f"{type(error).__name__}: {error}", config.source)
            problems.append(ConfigProblem(f"camera {config.id!r}: {text}", path="cameras"))
    if problems:
        raise ConfigError(problems)


class Cameras:
    """Runs a pipeline per camera. All methods belong to the loop.

    group: its tasks live there, so that a bug in one ends the process. on_ended: called with the camera's id when a life of it
    is over: no frame comes before the next one, whose time line may begin anew. on_removed: called after the last of them.
    viewpoints: outlive them.
    """

    def __init__(
        self,
        recognition: Recognition,
        listener: PipelineListener,
        *,
        group: asyncio.TaskGroup,
        health: HealthState,
        viewpoints: Viewpoints,
        on_restart: Callable[[str], None],
        on_ended: Callable[[str], None] = lambda _: None,
        on_removed: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recognition = recognition
        self._listener = listener
        self._group = group
        self._health = health
        self._viewpoints = viewpoints
        self._on_restart = on_restart
        self._on_ended = on_ended
        self._on_removed = on_removed
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._step = LADDER[0]
        self._changing = asyncio.Lock()  # two reloads, or a reload and the end, must not meet half-way
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()  # ends of incidents, on their way to a store that hangs

    # --- coming and going ---------------------------------------------------------------------------------------------

    async def apply(self, configs: Sequence[CameraConfig]) -> None:
        """Make the running cameras those of `configs`: what did not change goes on undisturbed.

        Raises ConfigError for a source that nothing here can read; then all is as before.
        """
        wanted = {config.id: config for config in configs if config.enabled}
        check_sources(list(wanted.values()))
        async with self._changing:
            if self._closed:
                return
            gone = [name for name, entry in self._entries.items() if not _same(entry.config, wanted.get(name))]
            await asyncio.gather(*(self._stop(self._entries.pop(name)) for name in gone))
            for name, config in wanted.items():
                if name in self._entries:
                    self._entries[name].config = config  # its live keys may have changed: `apply_step` reads them
                else:
                    self._start(config)
            self._recognition.pose.submitters = max(1, len(self._entries))
            self.apply_step(self._step)

    async def drain(self) -> None:
        """Stop all for good; returns when what was under way has become events. Cancelling it gives up the rest.

        They keep their last status: they were not removed, the agent ends.
        """
        async with self._changing:
            self._closed = True
            try:
                await asyncio.gather(*(self._stop(entry) for entry in self._entries.values()))
                if self._closing:
                    await asyncio.wait(self._closing, timeout=CLOSE_S)
            finally:
                for closing in self._closing:
                    closing.cancel()

    async def close_sources(self) -> None:
        """Take no new frames; the pipelines finish on their own (`drain` waits for them)."""
        await asyncio.gather(*(entry.camera.close() for entry in self._entries.values() if entry.camera is not None))

    def _start(self, config: CameraConfig) -> None:
        name = f"camera.{config.id}"
        entry = _Entry(config, CameraStatus(config.id, CameraPhase.CONNECTING, 0.0, 0, 0, 0, 0, 0))
        work = supervise(
            name, lambda: self._watch(entry), _POLICY, health=self._health, on_restart=self._on_restart,
            reason=reason_key(Reason.CAMERA_OFFLINE, config.id),
        )  # fmt: skip
        entry.task = self._group.create_task(work, name=name)
        self._entries[config.id] = entry

    async def _stop(self, entry: _Entry) -> None:
        name = entry.config.id
        entry.stopping = True
        try:
            if entry.camera is not None:  # else it waits for its next try, there is nothing to finish
                entry.camera.interrupt()
                _, late = await asyncio.wait([entry.task], timeout=DRAIN_S)
                if late:
                    _log.warning("camera_did_not_drain", camera=name)
        finally:
            entry.task.cancel()
        await asyncio.wait([entry.task])
        for reason in (*_REASONS.values(), Reason.CAMERA_MOVED, Reason.CAMERA_SLOW):
            self._health.clear_reason(reason_key(reason, name))
        self._on_ended(name)
        self._on_removed(name)

    async def _watch(self, entry: _Entry) -> None:
        """One life of a camera: opened, watched to its end, closed."""
        config = entry.config
        async with open_camera(config, viewpoint=self._viewpoints.of(config)) as camera:
            entry.camera = camera
            entry.slowness = Slowness() if camera.live else None
            try:
                entry.run = self._recognition.camera(
                    camera, self._listener, services=config.services, fps=lambda: camera.report().expected_fps
                )
                self._slow(entry, self._paused())
                await entry.run.pipeline.run()
            except asyncio.CancelledError:
                if entry.stopping:  # it did not drain
                    await self._close_incidents(entry)
                raise
            except TransientError:
                if not entry.stopping:  # else there is nothing to try again
                    raise
            finally:
                entry.status = replace(camera.status(), fps=0.0)
                entry.run = entry.camera = entry.slowness = None
                self._on_ended(config.id)

    async def _close_incidents(self, entry: _Entry) -> None:
        """Nobody must wait for their end until the agent starts anew: where the store hangs, they are written when it answers."""
        if entry.run is None:
            return
        name = entry.config.id
        closing = asyncio.create_task(entry.run.pipeline.close_events(), name=f"camera.{name}.close")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        _, late = await asyncio.wait({closing}, timeout=CLOSE_S)
        if late:
            _log.warning("camera_incidents_not_closed_yet", camera=name)
        else:
            closing.result()

    # --- adjusting ----------------------------------------------------------------------------------------------------

    def apply_step(self, step: Step) -> None:
        """Slow every camera down, or speed it up again, to what `step` allows."""
        self._step = step
        paused = self._paused()
        for entry in self._entries.values():
            self._slow(entry, paused)

    def apply_rules(self, rules: Mapping[str, RulesConfig]) -> None:
        """New thresholds for the services named; open events go on."""
        for entry in self._entries.values():
            for name, machine in (entry.run.rules if entry.run is not None else {}).items():
                if name in rules:
                    machine.update_config(rules[name])

    def _paused(self) -> frozenset[str]:
        """Who pauses now. No camera that works does so for the sake of one from which nothing comes."""
        return self._step.paused_cameras(
            {
                status.camera_id: self._entries[status.camera_id].config.priority
                for status in self.statuses()
                if status.phase not in _ABSENT
            }
        )

    def _slow(self, entry: _Entry, paused: frozenset[str]) -> None:
        camera, config = entry.camera, entry.config
        if camera is None:
            return
        camera.set_max_fps(self._step.camera_fps(config.max_fps))
        if config.id in paused:
            camera.pause()
        else:
            camera.resume()
        if entry.run is None:
            return
        fps = usual_fps = camera.report().nominal_fps or NOMINAL_FPS
        if camera.live:  # a file is not thinned
            usual_fps = min(usual_fps, config.max_fps or usual_fps)
            fps = self._step.camera_fps(usual_fps)
        for name, service in self._recognition.config.services.items():
            if name in entry.run.rules:
                stride = self._step.stride(service.window, service.rules.silence_s, usual_fps=usual_fps, fps=fps)
                entry.run.windows.set_stride(name, stride)

    # --- looking ------------------------------------------------------------------------------------------------------

    def statuses(self) -> list[CameraStatus]:
        """What each camera is doing, in order of configuration."""
        entries = self._entries.values()
        return [entry.camera.status() if entry.camera is not None else entry.status for entry in entries]

    def source(self, camera_id: str) -> VideoSource | None:
        """What a camera reads from; None while it does not run."""
        entry = self._entries.get(camera_id)
        return entry.camera.source if entry is not None and entry.camera is not None else None

    def resting(self) -> list[str]:
        """Cameras from which no frame is to be expected now."""
        return [status.camera_id for status in self.statuses() if status.phase is not CameraPhase.STREAMING]

    def silent(self) -> list[str]:
        """Those of them whose time goes on all the same: live ones, and files that are played as if they were."""
        live = {entry.config.id for entry in self._entries.values() if entry.camera is not None and entry.camera.live}
        return [name for name in self.resting() if name in live]

    def report_health(self) -> None:
        """Raise and clear each camera's reasons; a batch waits for company only from those that deliver, and who pauses is decided anew."""
        self.apply_step(self._step)  # cameras may have come or gone since, or said how many frames a second they show
        statuses = self.statuses()
        streaming = sum(status.phase is CameraPhase.STREAMING for status in statuses)
        self._recognition.pose.submitters = max(1, streaming)
        for status in statuses:
            for phase, reason in _REASONS.items():
                key = reason_key(reason, status.camera_id)
                self._health.set_reason(key, status.phase is phase, status.error)
            self._health.set_reason(reason_key(Reason.CAMERA_MOVED, status.camera_id), status.moved, _MOVED)
            slow = self._slowness(self._entries[status.camera_id], status)
            self._health.set_reason(reason_key(Reason.CAMERA_SLOW, status.camera_id), bool(slow), slow)

    def _slowness(self, entry: _Entry, status: CameraStatus) -> str:
        if entry.slowness is None or entry.run is None:
            return ""
        services = self._recognition.config.services
        return entry.slowness.look(status, self._clock(), {name: services[name].min_fps for name in entry.run.rules})
