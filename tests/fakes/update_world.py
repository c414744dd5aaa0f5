"""Everything around an update client: a TUF repository with real archives, a fleet server, a store, a journal and trials."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fakes.bundles import make_bundle
from fakes.ddi_server import DEVICE, TENANT, TOKEN, DdiServer, ddi_server
from fakes.trials import FakeTrials
from fakes.tuf_repository import TufRepository, TufServer, serving_tuf

from agent.config.update import UpdateConfig
from agent.runtime.bundle import read_bundle, seal_bundle
from agent.transfer.download import Limits, Wanted, download
from agent.update.archive import unpack
from agent.update.boot import JOURNAL, Booted, boot
from agent.update.client import UpdateClient
from agent.update.ddi import connect
from agent.update.fit import DeviceFacts, contract_of
from agent.update.journal import Journal
from agent.update.journal_file import sole_owner
from agent.update.models import VersionStore
from agent.update.parts import Pace, Parts
from agent.update.release import Release
from agent.update.requests import RequestFolder
from agent.update.threads import OneThread, T
from agent.update.trust import Target, Trust
from ota.release.pack import Wishes, pack

QUICK = Pace(first_s=0.02, longest_s=0.05, look_s=0.02, progress_s=0.05, requests_s=0.02)
LIMITS = Limits(connect_s=2, stall_s=1, attempts=1, initial_wait_s=0.01, max_wait_s=0.02, reserve_bytes=0)


class Releases:
    """Bundles that differ in version and in what they do on trial, packed and signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bundle = make_bundle(folder / "template", golden=False)
        self._number = 0
        self.repository = TufRepository()

    @property
    def configured(self) -> Path:
        """What the configuration names."""
        return self._bundle

    def make(self, version: str, *, publish: bool = True, number: int = 0, **fake: str) -> Release:
        """A release of `tiny`; fake: see `fakes.trials`."""
        self._number = number or self._number + 1
        work = self._folder / f"{version}-{self._number}"
        shutil.copytree(self._bundle, work)
        fields = json.loads((work / "manifest.json").read_bytes())
        fields.pop("files")
        seal_bundle(work, fields | {"version": version, "figures": {"fake": fake}})
        packed = pack(work, self._folder, {"pose": self._number - 1}, Wishes())
        self.repository.add(packed.release, packed.file.read_bytes())
        if publish:
            self.repository.publish()
        return packed.release

    def configuration(self, version: str, text: str) -> Release:
        """A configuration that is sent."""
        self._number += 1
        file = self._folder / f"configuration-{version}.yaml"
        file.write_text(text, encoding="utf-8")
        wishes = Wishes(name="site", version=version)
        packed = pack(file, self._folder, {"configuration": self._number - 1}, wishes)
        self.repository.add(packed.release, packed.file.read_bytes())
        self.repository.publish()
        return packed.release


class _Disk(OneThread):
    def __init__(self, name: str, slow_s: float) -> None:
        super().__init__(name)
        self._slow_s = slow_s

    async def do(self, work: Callable[..., T], *args: Any, **more: Any) -> T:
        """As OneThread."""
        await asyncio.sleep(self._slow_s)
        return await super().do(work, *args, **more)


@dataclass
class Device:
    """One life of a device's client; `state` outlives it. slow_s: of the disk, for every piece of work."""

    root: Path
    config: UpdateConfig
    repository_url: str
    root_metadata: bytes
    configured: Path
    step_s: float = 0.0
    slow_s: float = 0.0
    pace: Pace = QUICK
    local_time: Callable[[], datetime] = field(default=lambda: datetime.now().astimezone())
    facts: DeviceFacts | None = None
    trials: FakeTrials = field(init=False)
    client: UpdateClient = field(init=False)
    journal: Journal = field(init=False)
    store: VersionStore = field(init=False)
    booted: Booted = field(init=False)
    told: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def open(self) -> Iterator[Parts]:
        """Boot, as the agent does before it loads its models."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(sole_owner(self.root / JOURNAL))
            self.journal, self.store = Journal.open(self.root / JOURNAL), VersionStore(self.root)
            stack.callback(self.journal.close)
            self.booted = boot(self.journal, self.store, enabled=True)
            self.trials = FakeTrials({"pose": self.configured}, self.booted.models, step_s=self.step_s)
            disk, trust_thread = _Disk("disk", self.slow_s), OneThread("trust")
            stack.callback(disk.close)
            stack.callback(trust_thread.close)
            trust = Trust(self.root / "trust", self.repository_url, self.root_metadata)
            manifest = read_bundle(self.configured).manifest
            assert manifest is not None
            facts = self.facts or DeviceFacts("1.0.0", "cpu", {"pose": contract_of(manifest)}, 10_000_000)
            yield Parts(
                journal=self.journal, store=self.store, disk=disk, trust_thread=trust_thread, trust=lambda: trust,
                trials=self.trials, unpack=unpack, fetch=_fetch, facts=lambda: facts, config=lambda: self.config,
                attributes=lambda: {"agent_version": "1.0.0", **self._versions()}, changed=self._changed,
                local_time=self.local_time, pace=self.pace,
            )  # fmt: skip

    def _versions(self) -> dict[str, str]:
        current = self.client.slots.get("pose")
        return {"model.pose": current.current.release.title} if current and current.current else {}

    def _changed(self) -> None:
        self.told.append(self.client.state)
        self.client.notice()

    @contextlib.asynccontextmanager
    async def running(self, server: str | None) -> AsyncIterator[UpdateClient]:
        """The client at work; server: its URL, None = none."""
        with self.open() as parts:

            @contextlib.asynccontextmanager
            async def reach() -> AsyncIterator[Any]:
                assert server is not None
                async with connect(server, TENANT, DEVICE, authorization=f"TargetToken {TOKEN}") as client:
                    yield client

            self.client = UpdateClient(parts, RequestFolder(self.root / "requests"), reach if server else None)
            task = asyncio.create_task(self.client.run(), name="client")
            try:
                yield self.client
            finally:
                failed = task.done() and not task.cancelled() and task.exception()
                task.cancel()
                await asyncio.wait([task])
                if failed:
                    raise failed

    @property
    def serving(self) -> str:
        """Version of the bundle that runs now."""
        path = self.trials.running("pose")
        manifest = read_bundle(path).manifest if path is not None else None
        return manifest.version if manifest is not None else ""


async def _fetch(target: Target, part: Path, advance: Callable[[int], None]) -> None:
    wanted = Wanted(target.length, target.length, checksum_known=True)
    await download(target.url, part, wanted, _Watch(advance), limits=LIMITS)


class _Watch:
    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def advance(self, received: int, total: int | None) -> None:
        self._advance(received)

    def note(self, text: str) -> None:
        pass


@dataclass
class World:
    releases: Releases
    tuf: TufServer
    server: DdiServer
    device: Device


@contextlib.asynccontextmanager
async def world(folder: Path, **config: Any) -> AsyncIterator[World]:
    """All of it; config: of the section `update`."""
    releases = Releases(folder / "releases")
    with serving_tuf(releases.repository) as tuf:
        async with ddi_server() as server:
            fields = {"poll_min_s": 0.02, "poll_max_s": 1.0, "reserve_bytes": 0} | config
            device = Device(
                folder / "state", UpdateConfig.model_validate(fields), tuf.url(), releases.repository.root_bytes(),
                releases.configured,
            )  # fmt: skip
            yield World(releases, tuf, server, device)


async def until(what: Callable[[], object], limit_s: float = 10.0) -> None:
    """Wait until `what()` is true."""
    async with asyncio.timeout(limit_s):
        while not what():
            await asyncio.sleep(0.01)
