"""Updates in the running agent: opened before the models are, run at the edge, told to MQTT, health and metrics."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from agent import __version__
from agent.config.layer import lay_over
from agent.config.schema import AgentConfig
from agent.daemon.remote import Reloaded
from agent.daemon.slot_trials import SlotTrials
from agent.errors import AccessError, ConfigError, StorageError
from agent.health.reasons import HealthState, Reason
from agent.observe.metrics import Metrics
from agent.private_files import credentials_of
from agent.recognition import Recognition, bundle_of
from agent.transfer.download import Access, Limits, Wanted, download
from agent.transfer.faults import TlsError
from agent.types import POSE_SLOT, action_slot
from agent.update.archive import unpack
from agent.update.boot import JOURNAL, Booted, boot, from_links, linked_layer, serving_attributes
from agent.update.client import UpdateClient
from agent.update.ddi import DdiClient, connect
from agent.update.fit import DeviceFacts, contract_of
from agent.update.journal import Journal
from agent.update.journal_file import sole_owner
from agent.update.machine import Phase
from agent.update.models import VersionStore
from agent.update.parts import Pace, Parts
from agent.update.records import Action, Serving
from agent.update.release import Release
from agent.update.requests import RequestFolder
from agent.update.state import ServerView
from agent.update.threads import OneThread
from agent.update.tokens import authorization, client_tls, mark
from agent.update.trials import Trials
from agent.update.trust import Target, Trust

_log = structlog.get_logger(__name__)

FOLDER = "updates"
_PUBLISH_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class UpdatePorts:
    """What updates reach of the agent. load: the operator's configuration, read anew; publish: `ota/state`."""

    trials: Trials
    config: Callable[[], AgentConfig]
    load: Callable[[], AgentConfig]
    reload: Callable[[], Awaitable[Reloaded]]
    recognition: Callable[[], Recognition | None]
    publish: Callable[[dict[str, Any]], None]


class Updates:
    """Opened once per life of the agent; its client may be started again and again. environ: names systemd's credentials."""

    def __init__(
        self,
        ports: UpdatePorts,
        *,
        health: HealthState,
        metrics: Metrics,
        environ: Mapping[str, str],
        pace: Pace | None = None,
    ) -> None:
        self._ports = ports
        self._health = health
        self._metrics = metrics
        self._credentials = credentials_of(environ)
        self._pace = pace or Pace()
        self._root = ports.config().state_dir / FOLDER
        self._booted = Booted()
        self._journal: Journal | None = None
        self._store = VersionStore(self._root)
        self._trials = SlotTrials(
            ports.trials, load=ports.load, current=ports.config, reload=ports.reload, linked=self._linked_layer
        )
        self._disk = OneThread("updates")
        self._trust_thread = OneThread("trust")
        self._trust: Trust | None = None
        self._client: UpdateClient | None = None
        self._left_aside: frozenset[Path] = frozenset()
        self._stale = asyncio.Event()
        self._layer_aside: Path | None = None
        self.layer_remark = ""
        """Why the configuration that was sent is left aside; empty where it is not, or none was."""

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self, stack: AsyncExitStack) -> None:
        """Decide what serves each slot. An agent that never had updates enabled has nothing to decide."""
        if not self._ports.config().update.enabled and not (self._root / JOURNAL).exists():
            return
        stack.callback(self._disk.close)
        stack.callback(self._trust_thread.close)
        stack.callback(self._give_up)
        try:
            stack.enter_context(sole_owner(self._root / JOURNAL))
            journal = await self._disk.do(Journal.open, self._root / JOURNAL)
            stack.callback(journal.close)
            enabled = self._ports.config().update.enabled
            self._booted = await self._disk.do(boot, journal, self._store, enabled=enabled)
            self._journal = journal
        except (StorageError, OSError) as error:  # watching goes on, with what the links say
            self._booted = from_links(self._store, f"no updates until the next start: {error}")
        self._trials.layer = self._booted.layer
        if self._booted.remarks:
            self._health.raise_reason(Reason.UPDATE_STORE, "; ".join(self._booted.remarks))

    @property
    def models(self) -> dict[str, Path]:
        """Bundles that serve in place of the configured ones, by slot, at the start."""
        config = self._ports.config()
        known = {POSE_SLOT, *(action_slot(name) for name in config.services)}
        return {slot: path for slot, path in self._booted.models.items() if slot in known}

    def with_layer(self, config: AgentConfig, *, starting: bool = False) -> AgentConfig:
        """The operator's configuration with what was sent laid over it. Raises ConfigError.

        What no longer fits it at the start is left aside, until it fits again or another is sent: it was not in force, so no
        reload waits for it.
        """
        layer, self.layer_remark = self._trials.layer, ""
        if layer is None:
            return config
        try:
            return lay_over(config, layer)
        except ConfigError as error:
            if starting:
                self._layer_aside = layer
            elif layer != self._layer_aside:
                raise
            self.layer_remark = f"the configuration that was sent is left aside: {error}"
            return config

    def start(self, start: Callable[[str, Callable[[], Coroutine[Any, Any, None]]], object]) -> None:
        """When the models are loaded. start: runs a part under a name, supervised."""
        running = self._ports.trials.running
        self._left_aside = frozenset(path for slot, path in self.models.items() if running(slot) not in {None, path})
        if self._journal is not None and self._ports.config().update.enabled:
            start("updates", self._run)

    async def stop(self) -> None:
        """Before the end of a proper stop: the next start is no sign against what is on trial."""
        if self._journal is not None:
            await self._disk.do(self._journal.stopped)

    def _linked_layer(self) -> Path | None:
        """As the links on the disk say. Raises ConfigError."""
        try:
            return linked_layer(self._store)
        except OSError as error:
            raise ConfigError(f"which configuration was sent cannot be read: {error}") from error

    def _give_up(self) -> None:
        """A repository that answers slowly, or not at all, does not make a stop wait."""
        if self._trust is not None:
            self._trust.give_up()

    async def _run(self) -> None:
        client = UpdateClient(
            self._parts(), RequestFolder(self._root / "requests"), self._connect,
            on_server=self._on_server, on_end=self._on_end,
        )  # fmt: skip
        self._client = client
        async with asyncio.TaskGroup() as group:
            group.create_task(client.run(), name="updates.client")
            group.create_task(self._publish(), name="updates.state")

    async def _publish(self) -> None:
        """The newest state, not more than once a second."""
        while True:
            self._ports.publish(self.report())
            await asyncio.sleep(_PUBLISH_EVERY_S)
            await self._stale.wait()
            self._stale.clear()

    # --- for the others -----------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """`ota/state`, with the version of the agent itself."""
        state = self._client.state if self._client is not None else {"phase": "off"}
        return {"agent": __version__, **state}

    async def check(self) -> dict[str, Any]:
        """Ask the fleet server now (command `ota-check`). Raises StorageError when updates are off."""
        if self._client is None or not self._client.check():
            raise StorageError("updates are not enabled (hint: update.enabled)")
        return {"state": self.report()}

    # --- parts --------------------------------------------------------------------------------------------------------

    def _parts(self) -> Parts:
        assert self._journal is not None  # noqa: S101 - opened before it is started
        return Parts(
            journal=self._journal, store=self._store, disk=self._disk, trust_thread=self._trust_thread,
            trust=self._genuine, trials=self._trials, unpack=self._unpack, fetch=self._fetch, facts=self._facts,
            config=lambda: self._ports.config().update, attributes=self._attributes, changed=self._changed,
            local_time=lambda: datetime.now().astimezone(), pace=self._pace,
        )  # fmt: skip

    def _changed(self) -> None:
        self._stale.set()
        if self._client is not None:
            self._client.notice()

    def _genuine(self) -> Trust:
        """Made anew with certificates as they are now; files that are missing or wrong are somebody's to mend, not the release's fault."""
        config = self._ports.config().update
        try:
            tls = client_tls(config, self._credentials)
            root = config.root_file.read_bytes() if config.root_file is not None else b""
            self._trust = Trust(self._root / "trust", config.repository, root, tls=tls)
        except ConfigError as error:
            raise AccessError(str(error)) from error
        except OSError as error:
            raise AccessError(f"update.root_file: {error}") from error
        return self._trust

    def _unpack(self, archive: Path, folder: Path, release: Release) -> None:
        unpack(archive, folder, release, allow_custom_ops=self._ports.config().update.allow_custom_ops)

    async def _fetch(self, target: Target, part: Path, advance: Callable[[int], None]) -> None:
        config = self._ports.config().update
        wanted = Wanted(target.length, target.length, checksum_known=True)
        limits = Limits(max_bytes_per_s=config.max_bytes_per_s, reserve_bytes=config.reserve_bytes)
        try:
            access = Access(tls=await asyncio.to_thread(client_tls, config, self._credentials))
            await download(target.url, part, wanted, _Watcher(advance), limits=limits, access=access)
        except (ConfigError, TlsError) as error:  # not the release's fault
            raise AccessError(str(error)) from error

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[DdiClient]:
        config = self._ports.config()
        update = config.update
        before = mark(update)  # of what is read after it
        header = await asyncio.to_thread(authorization, update, self._credentials)
        tls = await asyncio.to_thread(client_tls, update, self._credentials)
        async with connect(
            update.server, update.tenant, update.controller_id or config.device_id,
            authorization=header, tls=tls, outdated=lambda: mark(update) != before,
        ) as client:  # fmt: skip
            yield client

    # --- what this device is ------------------------------------------------------------------------------------------

    def _facts(self) -> DeviceFacts:
        config, recognition = self._ports.config(), self._ports.recognition()
        contracts: dict[str, Any] = {POSE_SLOT: None}
        contracts |= {action_slot(name): None for name, service in config.services.items() if service.enabled}
        if recognition is not None:
            bundles = {slot: bundle_of(model) for slot, model in recognition.slots.items()}
            contracts |= {
                slot: contract_of(bundle.manifest) if bundle is not None and bundle.manifest is not None else None
                for slot, bundle in bundles.items()
            }
        return DeviceFacts(__version__, _runtime(recognition), contracts, config.update.max_download_bytes)

    def _attributes(self) -> dict[str, str]:
        recognition = self._ports.recognition()
        running = recognition.models if recognition is not None else {}
        slots = self._client.slots if self._client is not None else {}
        serving = {slot: one for slot, one in slots.items() if not self._is_left_aside(one)}
        return {
            **self._ports.config().update.attributes,
            "agent_version": __version__,
            "device": _device(recognition) or "unknown",
            "runtime": _runtime(recognition) or "unknown",
            "python": platform.python_version(),
            "architecture": platform.machine(),
            "health": self._health.snapshot().level.value,
            **{f"model.{slot.replace('/', '-', 1)}": name for slot, name in running.items()},
            **serving_attributes(serving),
        }

    def _is_left_aside(self, serving: Serving) -> bool:
        """Whether what should serve could not be loaded at the start, and still does not."""
        if serving.current is None or (path := self._store.path(serving.current)) not in self._left_aside:
            return False
        return self._ports.trials.running(serving.slot) != path

    # --- what is told -------------------------------------------------------------------------------------------------

    def _on_server(self, view: ServerView) -> None:
        self._health.set_reason(Reason.UPDATE_SERVER, view.state in {"denied", "confused"}, view.detail)
        self._metrics.count_update_poll(view.state)
        self._stale.set()

    def _on_end(self, action: Action) -> None:
        self._metrics.count_update(action.phase.value, action.reason)
        untrusted = action.phase is Phase.REFUSED and action.reason == "trust"
        self._health.set_reason(Reason.UPDATE_TRUST, untrusted, f"{action.title}: {action.text}")
        self._health.clear_reason(Reason.UPDATE_STORE)


class _Watcher:
    """A download's progress."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def advance(self, received: int, total: int | None) -> None:
        """As `Progress`."""
        self._advance(received)

    def note(self, text: str) -> None:
        """As `Progress`."""
        _log.info("update_download", note=text)


def _device(recognition: Recognition | None) -> str:
    """Of the pose estimator: `cpu`, `cuda:0`; empty while no model is loaded, or where it does not say."""
    model = recognition.slots.get(POSE_SLOT) if recognition is not None else None
    return str(getattr(model, "device", ""))


def _runtime(recognition: Recognition | None) -> str:
    return _device(recognition).partition(":")[0]
