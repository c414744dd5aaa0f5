"""Composition root of the daemon: the only place that builds its parts and knows them all."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog

from agent import __version__
from agent.config.paths import prepare_state_dir
from agent.config.reload import compare
from agent.config.schema import AgentConfig
from agent.daemon.cameras import Cameras
from agent.daemon.delivery import Delivery, discard
from agent.daemon.drift import ModelWatch
from agent.daemon.evidence import Evidence, lookback_s
from agent.daemon.listener import AgentListener
from agent.daemon.live import LiveHub
from agent.daemon.losses import LossDesk
from agent.daemon.monitor import Monitor, MonitorPorts, OutboxFigures
from agent.daemon.orphans import close_orphans
from agent.daemon.remote import Reloaded, Remote, RemotePorts
from agent.daemon.rounds import Rounds
from agent.daemon.sinks import Sinks
from agent.daemon.trials import AgentTrials, TrialPorts
from agent.daemon.updates import UpdatePorts, Updates
from agent.daemon.view import View
from agent.daemon.viewpoints import Viewpoints
from agent.daemon.vitals import Vitals
from agent.daemon.watching import Watching
from agent.errors import ConfigError, ModelError, TransientError, TrustError
from agent.events.evidence_writer import EvidenceWriter
from agent.events.ids import Uuid7
from agent.health.probes import Probes
from agent.health.reasons import HealthState, Reason
from agent.http.server import HttpServer, describe
from agent.masking import mask_text
from agent.mqtt.topics import Topics
from agent.observe.logging import set_level
from agent.observe.metrics import Metrics
from agent.outbox.database import OpenReport
from agent.outbox.history import check
from agent.outbox.store import OutboxStore
from agent.recognition import Recognition
from agent.sdnotify import Notifier, patience
from agent.supervise import EDGE, ProgressWatch, Stage, StagedShutdown, feed_watchdog, supervise
from agent.types import Event, Lane

_log = structlog.get_logger(__name__)

_REFUSED = (ConfigError, ModelError, TransientError, TrustError)
"""A configuration that cannot be applied: the one before stays."""

PATIENCE_S = 15 * 60.0
"""How long systemd is asked to wait for either half of a start: the database, then the models. A healthy one takes seconds."""


class Agent:
    """The running agent. `run` builds everything, `stop` ends it.

    load: reads the configuration again, for SIGHUP; raises ConfigError.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        environ: Mapping[str, str],
        load: Callable[[], AgentConfig],
    ) -> None:
        self.config = config
        self.health = HealthState()
        self.metrics = Metrics(__version__)
        self.watch = ProgressWatch()
        self.topics = Topics(config.mqtt.base_topic, config.device_id)
        self.live = LiveHub(config.http, _alert_thresholds(config))
        self.vitals = Vitals()
        self.trials = AgentTrials(
            TrialPorts(
                recognition=lambda: self.recognition, config=lambda: self.config, health=self.health,
                incidents=lambda: self.live.active_incidents, vitals=self.vitals,
            )
        )  # fmt: skip
        self.updates = Updates(
            UpdatePorts(
                trials=self.trials, config=lambda: self.config, load=load, reload=self._reload_whole,
                recognition=lambda: self.recognition,
                publish=lambda document: self._put_state(self.topics.ota_state, document),
            ),
            health=self.health, metrics=self.metrics, environ=environ,
        )  # fmt: skip
        self.notifier = Notifier.from_environment(environ)
        self.new_id = Uuid7()
        self.ready = False
        self.ready_event = asyncio.Event()
        self.store: OutboxStore
        self.evidence: Evidence
        self.evidence_writer: EvidenceWriter
        self.monitor: Monitor
        self.drift: ModelWatch
        self.viewpoints: Viewpoints
        self.sinks: Sinks
        self.watching = Watching(self)
        self.delivery: Delivery | None = None
        self.http: HttpServer | None = None
        self._listener: AgentListener
        self._load = load
        self._environ = environ
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._reload_wanted = False
        self._group: asyncio.TaskGroup
        self._stack: AsyncExitStack
        self._parts: list[asyncio.Task[None]] = []
        self._monitor_task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Begin the staged stop."""
        self._stop.set()
        self.watching.give_up()

    async def run(self) -> None:
        """Until `stop`, SIGTERM or SIGINT. Raises what ends the process: ConfigError, StorageError, FatalError, bugs."""
        async with AsyncExitStack() as self._stack:
            self._note_hangup()
            with patience(self.notifier, most_s=PATIENCE_S):
                await self._open_updates()
                await self._open()
            async with asyncio.TaskGroup() as self._group:
                async with self._reloading:
                    with patience(self.notifier, most_s=PATIENCE_S):
                        await self._begin()
                await self._stop.wait()
                await self._shut_down()
                for task in self._parts:
                    task.cancel()

    # --- start --------------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """A reload that is asked for meanwhile comes afterwards; a stop does not wait for models that are being loaded."""
        self._handle_signals()
        self._start_parts()
        await close_orphans(self.store, self._listener, self.new_id, alive=self.drift.incidents)
        self.watching.open(self._group, self._listener)
        await self.watching.apply(self.config)
        if self._stop.is_set():
            return
        self.updates.start(self._start)  # a trial that goes on needs the models, or takes them for not served
        self._announce_ready()

    async def _open_updates(self) -> None:
        """Which models and which configuration serve is decided before anything is built of them."""
        await asyncio.to_thread(prepare_state_dir, self.config.state_dir)
        await self.updates.open(self._stack)
        self.trials.paths |= self.updates.models
        self.config = compare(self.config, self.updates.with_layer(self.config, starting=True)).effective
        if self.updates.layer_remark:  # the operator has changed what it was laid over
            self.health.raise_reason(Reason.CONFIG_RELOAD, self.updates.layer_remark)
        self.live.reconfigure(self.config.http, _alert_thresholds(self.config))

    async def _open(self) -> None:
        config = self.config
        if config.mqtt.enabled:
            self.delivery = Delivery(config, self.topics, metrics=self.metrics, health=self.health)
        await asyncio.to_thread(prepare_state_dir, config.state_dir)
        self._stack.callback(self.notifier.close)
        self._stack.callback(self.live.close)
        losses = LossDesk(self.topics, self.new_id, self.metrics, self.health)
        self.store = await OutboxStore.open(
            config.state_dir / config.outbox.file, config.outbox, announce=losses.announce, commands=config.commands
        )
        self._stack.push_async_callback(self.store.close)
        self.store.on_loss(losses.report)
        self._report_database(self.store.report)
        self.store.on_reopened(self._report_database)
        self.sinks = Sinks(config, self.store, health=self.health, metrics=self.metrics, environ=self._environ)
        await self.sinks.open()
        probes = Probes.open(config.state_dir)
        self._stack.callback(probes.close)
        self.evidence_writer = EvidenceWriter(config.state_dir / "evidence", config.evidence)
        self.evidence = Evidence(config.evidence, self.evidence_writer, lookback_s=lookback_s(config))
        self._stack.callback(self.evidence.close)
        self.drift = ModelWatch(
            config.drift, config.state_dir / "drift.json", new_id=self.new_id, metrics=self.metrics, health=self.health,
            tell=self._tell,
        )  # fmt: skip
        await self.drift.open()
        self.drift.keep_cameras([camera.id for camera in config.cameras])
        self.viewpoints = Viewpoints(config.state_dir / "viewpoints.json")
        await self.viewpoints.open()
        self.viewpoints.keep(config.cameras)
        self._listener = AgentListener(
            device_id=config.device_id, store=self.store, topic_of=self.topics.event, lanes=self._lanes(),
            models=lambda: self.models, evidence=self.evidence, live=self.live, metrics=self.metrics,
            health=self.health, beat=self.watching.beat, drift=self.drift, vitals=self.vitals,
        )  # fmt: skip
        self.monitor = Monitor(config.health, probes, self.health, self.metrics, self._monitor_ports())
        self._stack.push_async_callback(self.watching.close)

    async def _tell(self, event: Event) -> None:
        await self._listener.on_event(event)

    def _report_database(self, report: OpenReport) -> None:
        if report.damage:
            where = f" and lies now at {report.set_aside}" if report.set_aside is not None else ""
            self.health.raise_reason(Reason.EVENTS_LOST, f"the event database was damaged ({report.damage}){where}")

    def _lanes(self) -> dict[str, Lane]:
        return {name: Lane[service.lane.upper()] for name, service in self.config.services.items()}

    def _start_parts(self) -> None:
        config = self.config
        if self.delivery is not None:
            self.delivery.start(self._start, self.store, Remote(self._remote_ports()).handlers())
        else:
            self._start("discard", lambda: discard(self.store))
        self.sinks.start(self._start)
        if config.http.enabled:
            self.http = HttpServer(config.http, View(self))
            self._start("http", self.http.run, Reason.HTTP)
        if config.evidence.enabled:
            self._start("evidence", self.evidence_writer.run)
        self._monitor_task = self._start("monitor", Rounds(self).run)
        interval_s = self.notifier.feed_interval_s
        if interval_s is not None:
            self._start("watchdog", lambda: feed_watchdog(self.notifier, self.watch, interval_s, self.health))

    def _start(self, name: str, factory: Callable[[], Any], reason: str = "") -> asyncio.Task[None]:
        restarted = self.metrics.count_restart
        work = supervise(name, factory, EDGE, health=self.health, on_restart=restarted, reason=reason)
        task = self._group.create_task(work, name=name)
        self._parts.append(task)
        return task

    def _announce_ready(self) -> None:
        self.ready = True
        self.ready_event.set()
        self.notifier.ready(describe(View(self).state()))
        _log.info("ready", device=self.config.device_id, cameras=len(self.config.cameras), models=self.models)

    @property
    def recognition(self) -> Recognition | None:
        """The models; None while none are loaded."""
        return self.watching.recognition

    @property
    def cameras(self) -> Cameras | None:
        """None while there is nothing to watch, or nothing to watch it with."""
        return self.watching.cameras

    @property
    def models(self) -> dict[str, str]:
        """Model name by slot; empty while none is loaded."""
        return self.recognition.models if self.recognition is not None else {}

    # --- while running ------------------------------------------------------------------------------------------------

    def _note_hangup(self) -> None:
        """There is nothing to reload yet; the configuration has been read, though."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: setattr(self, "_reload_wanted", True))
        self._stack.callback(loop.remove_signal_handler, signal.SIGHUP)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
            self._stack.callback(loop.remove_signal_handler, number)
        loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        if self._reload_wanted:
            self._start_reload()

    def _start_reload(self) -> None:
        self._group.create_task(self.reload(), name="reload")

    async def reload(self) -> Reloaded:
        """Read the configuration again: apply what can change now, say what waits for a restart, keep all if it is bad."""
        async with self._reloading:
            if self._stop.is_set():
                return Reloaded(error="the agent stops")
            self.notifier.reloading()
            outcome = await self._reload()
            if not self._stop.is_set():
                self.notifier.ready(describe(View(self).state()))
            return outcome

    async def _reload(self) -> Reloaded:
        try:
            loaded = self.watching.recognition is not None
            change = compare(self.config, await asyncio.to_thread(self._load_whole), models_loaded=loaded)
        except _REFUSED as error:
            return self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - nothing has changed yet: a bug there is no reason to stop watching
            return self._refuse(mask_text(f"{type(error).__name__}: {error}"), bug=error)
        try:
            await self.watching.apply(change.effective)
        except _REFUSED as error:
            waiting = f" (besides, these need a restart: {', '.join(change.restart)})" if change.restart else ""
            return self._refuse(f"{error}{waiting}")
        self._apply_config(change.effective)
        _log.info("reloaded", applied=change.live, needs_restart=change.restart)
        waiting = f"needs a restart: {', '.join(change.restart)}" if change.restart else ""
        remarks = [remark for remark in (self.updates.layer_remark, waiting) if remark]
        self.health.set_reason(Reason.CONFIG_RELOAD, bool(remarks), "; ".join(remarks))
        return Reloaded(needs_restart=change.restart)

    def _refuse(self, error: str, bug: Exception | None = None) -> Reloaded:
        _log.error("reload_refused", error=error, exc_info=bug)
        self.health.raise_reason(Reason.CONFIG_RELOAD, f"not applied: {error}")
        return Reloaded(error=error)

    def _load_whole(self) -> AgentConfig:
        return self.updates.with_layer(self._load())

    def _reload_whole(self) -> Awaitable[Reloaded]:
        """Not cut off half-way when the one who waits for it gives up."""
        return asyncio.shield(self._group.create_task(self.reload(), name="reload"))

    def _apply_config(self, config: AgentConfig) -> None:
        """What cannot fail, after what can: a configuration is in force as a whole or not at all."""
        before, self.config = self.config, config
        set_level(config.log.level)
        self.store.reconfigure(config.outbox)
        self.evidence_writer.update_config(config.evidence)
        self.evidence.look_back(lookback_s(config))
        self.live.reconfigure(config.http, _alert_thresholds(config))
        if self.http is not None:
            self.http.reconfigure(config.http)
        self.monitor.reconfigure(config.health)
        if self.delivery is not None:
            self.delivery.reconfigure(config)
        for gone in _enabled(before) - _enabled(config):
            self.live.forget(gone)
        self.drift.keep_cameras([camera.id for camera in config.cameras])
        self.viewpoints.keep(config.cameras)
        if self.cameras is not None:
            self.cameras.apply_rules({name: service.rules for name, service in config.services.items()})

    # --- monitor's ports ----------------------------------------------------------------------------------------------

    def _monitor_ports(self) -> MonitorPorts:
        return MonitorPorts(
            cameras=lambda: self.cameras.statuses() if self.cameras is not None else [],
            outbox=self._outbox_figures,
            sinks=self.sinks.report,
            models=lambda: self.models,
            apply_step=self.watching.apply_step,
            publish_health=lambda document: self._put_state(self.topics.health, document),
            publish_camera=lambda name, document: self._put_state(self.topics.camera_state(name), document),
        )

    async def _outbox_figures(self) -> OutboxFigures:
        depth = await self.store.depth()
        oldest = max((lane.oldest_age_s for lane in depth.values()), default=0.0)
        return OutboxFigures({lane: figures.rows for lane, figures in depth.items()}, oldest)

    def _put_state(self, topic: str, document: dict[str, Any]) -> None:
        if self.delivery is not None:
            self.delivery.put_state(topic, document)

    def _accept_view(self, camera_id: str) -> None:
        self.viewpoints.accept(camera_id)
        self.drift.forget_camera(camera_id)

    def _remote_ports(self) -> RemotePorts:
        delivery = self.delivery
        assert delivery is not None  # noqa: S101 - nobody else asks
        return RemotePorts(
            topics=self.topics,
            live=self.live,
            reload=self._reload_whole,
            hold_degradation=self.monitor.hold_degradation,
            set_log_level=set_level,
            requeue=partial(self.store.requeue, turn_back=delivery.turn_back),
            publish=delivery.publish,
            check_database=lambda: asyncio.to_thread(check, self.config.state_dir / self.config.outbox.file),
            statuses=lambda: self.cameras.statuses() if self.cameras is not None else [],
            models=lambda: self.recognition.slots if self.recognition is not None else {},
            check_updates=self.updates.check,
            accept_view=self._accept_view,
        )

    # --- stop ---------------------------------------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        _log.info("stopping")
        self.ready = False
        self.notifier.stopping("stopping")
        stages = StagedShutdown()
        if self.cameras is not None:
            stages.add(Stage.CAPTURE, "cameras", self.cameras.close_sources)
            stages.add(Stage.DRAIN, "pipelines", self.cameras.drain)
        if self.config.evidence.enabled:
            stages.add(Stage.COMMIT, "evidence", self.evidence.drain)
        stages.add(Stage.COMMIT, "events", self._listener.settle)
        stages.add(Stage.COMMIT, "drift", self.drift.save)
        stages.add(Stage.COMMIT, "viewpoints", self.viewpoints.save)
        stages.add(Stage.COMMIT, "updates", self.updates.stop)
        stages.add(Stage.ANNOUNCE, "sinks", self.sinks.drain)
        if self.delivery is not None:
            stages.add(Stage.ANNOUNCE, "mqtt", self._say_goodbye)
        await stages.run()

    async def _say_goodbye(self) -> None:
        if self._monitor_task is not None:
            self._monitor_task.cancel()  # it would publish what the cameras were doing before
        if self.delivery is not None:
            await self.delivery.say_goodbye(self._something_waits)

    async def _something_waits(self) -> bool:
        return any((await self._outbox_figures()).rows.values())


def _alert_thresholds(config: AgentConfig) -> dict[str, float]:
    return {name: service.rules.alert_threshold for name, service in config.services.items()}


def _enabled(config: AgentConfig) -> set[str]:
    return {camera.id for camera in config.cameras if camera.enabled}
