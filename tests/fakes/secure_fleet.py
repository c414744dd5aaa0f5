"""The fleet server over TLS, and one device with the agent's own update client that talks with it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fakes.authority import SERVER, Authority, Pair
from fakes.bundles import make_bundle
from fakes.fleet_server import FleetServer, Repository, fleet_server
from fakes.trials import FakeTrials
from fakes.update_ports import ports_of

from agent.config.schema import AgentConfig
from agent.daemon.updates import Updates
from agent.health.reasons import HealthState, Reason
from agent.observe.metrics import Metrics
from agent.update.parts import Pace
from ota.release.pack import Wishes, pack
from ota.store import devices

QUICK = Pace(first_s=0.05, longest_s=0.2, look_s=0.02, progress_s=0.1, requests_s=0.1)
HERE = ("localhost", "127.0.0.1")


@dataclasses.dataclass(frozen=True)
class Papers:
    """Who vouches for whom. fleet: signs servers; devices: signs devices; stranger: signs neither, and a `box-1` of its own."""

    fleet: Authority
    devices: Authority
    stranger: Authority
    server: Pair


def make_papers(folder: Path) -> Papers:
    """Three authorities."""
    fleet = Authority(folder / "fleet-ca")
    server = fleet.issue("server", names=HERE, usage=SERVER)
    return Papers(
        fleet, Authority(folder / "device-ca", "device ca"), Authority(folder / "stranger-ca", "stranger"), server
    )


@asynccontextmanager
async def secure_fleet(
    folder: Path, papers: Papers, server: Pair | None = None, **given: Any
) -> AsyncIterator[SecureFleet]:
    """The fleet server with TLS; it asks devices for certificates and knows box-1 and box-2."""
    pair = server or papers.server
    tls = {"cert": pair.cert, "key": pair.key, "client_ca": papers.devices.ca}
    repository = Repository(folder / "repository")
    async with fleet_server(folder, repository=repository, tls=tls, **given) as fleet:
        secure = SecureFleet(fleet.services, fleet.port, fleet.admin, fleet.session, repository, papers.fleet.ca)
        for name in ("box-1", "box-2"):
            await fleet.services.store.write(_enter, name)
        yield secure


def _enter(connection: Any, name: str) -> None:
    devices.create(connection, name, now_ms=1)


@dataclasses.dataclass
class SecureFleet(FleetServer):
    """As `FleetServer`, over TLS."""

    ca: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def ask(self, method: str, path: str, body: Any = None, **given: Any) -> Any:
        context = ssl.create_default_context(cafile=self.ca)
        data = None if body is None else json.dumps(body)
        headers = dict(given.get("headers") or {}) | {"Content-Type": "application/json"}
        async with self.session.request(method, self.url + path, data=data, headers=headers, ssl=context) as got:
            content = await got.read()
            assert got.status < 300, content
            return _Answered(got.status, content)

    def release(self, folder: Path) -> str:
        """A small model, packed, signed and published; its target path."""
        assert self.repository is not None
        bundle = make_bundle(folder / "bundle", golden=False)
        packed = pack(bundle, folder, {"pose": 0}, Wishes())
        self.repository.add(packed.release, packed.file.read_bytes())
        self.repository.publish()
        return packed.release.path

    async def offer(self, target: str, device: str = "box-1") -> int:
        await self.sync()
        release = next(row.id for row in await self.releases() if row.target == target)
        answer = await self.api("POST", f"/devices/{device}/actions", {"release": release})
        return int(answer.json["id"])


@dataclasses.dataclass(frozen=True)
class _Answered:
    status: int
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Box:
    """One device with the agent's own update client, trials without models."""

    def __init__(self, updates: Updates, health: HealthState, trials: FakeTrials) -> None:
        self._updates = updates
        self._health = health
        self.trials = trials

    @property
    def state(self) -> dict[str, Any]:
        return self._updates.report()

    @property
    def reason(self) -> str:
        """What health says about the server."""
        found = [one.detail for one in self._health.snapshot().reasons if one.reason == str(Reason.UPDATE_SERVER)]
        return found[0] if found else ""

    async def is_told(self, state: str, text: str = "") -> str:
        """The server takes it so, with that text; the detail."""
        async with asyncio.timeout(30):
            while True:
                server = self.state.get("server", {})
                if server.get("state") == state and text in server["detail"]:
                    return str(server["detail"])
                await asyncio.sleep(0.02)

    async def until(self, what: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while not what(state := self.state):
                await asyncio.sleep(0.02)
        return state


@asynccontextmanager
async def box(
    folder: Path, server: str, signed: Repository, tls: Mapping[str, object], environ: Mapping[str, str] | None = None, **update: Any
) -> AsyncIterator[Box]:  # fmt: skip
    """update: of its section of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "root.json"
    root.write_bytes(signed.root)
    section = {
        "enabled": True, "server": server, "repository": f"{server}/repository", "root_file": root, "tls": dict(tls),
        "poll_min_s": 0.05, "poll_max_s": 60.0, "reserve_bytes": 0, "retries": 1000,
    }  # fmt: skip
    config = AgentConfig.model_validate(
        {"device_id": "box-1", "state_dir": folder / "state", "update": section | update}
    )
    configured = folder / "configured"
    trials = FakeTrials({"pose": configured if configured.exists() else make_bundle(configured, golden=False)})
    health = HealthState()
    async with AsyncExitStack() as stack:
        updates = Updates(
            ports_of(config, trials), health=health, metrics=Metrics("test"), environ=environ or {}, pace=QUICK
        )
        await updates.open(stack)
        tasks: list[asyncio.Task[None]] = []

        def start(name: str, factory: Callable[[], Coroutine[Any, Any, None]]) -> None:
            tasks.append(asyncio.create_task(factory(), name=name))

        updates.start(start)
        try:
            yield Box(updates, health, trials)
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result


def shown(pair: Pair) -> dict[str, Path]:
    return {"cert_file": pair.cert, "key_file": pair.key}
