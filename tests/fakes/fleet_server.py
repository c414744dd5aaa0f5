"""A fleet server at work on a real socket, with a real database and a real TUF repository; and devices that talk to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from securesystemslib.signer import CryptoSigner
from sqlalchemy import Connection
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.update.release import Contract, Release, TensorInfo
from ota.release.repository import custom_of
from ota.server.run import ADMIN_FILE, running
from ota.server.services import Services
from ota.server.settings import ServerSettings
from ota.store import actions, devices, feedback, releases, settings
from ota.store.rows import CLOSED, Action, ActionState, Device, ReleaseRow, Report

CONTRACT = Contract(
    task="pose",
    inputs=(TensorInfo(name="input", shape=(1, 3, 192, 256), meaning="letterbox"),),
    outputs=(TensorInfo(name="people", shape=(1, "people", 56), meaning="people"),),
)
ROLES = ("root", "targets", "snapshot", "timestamp")


def release(number: int, *, name: str = "pose-nano", slot: str = "pose") -> Release:
    return Release(
        slot=slot, name=name, version=f"0.{number}.0", number=number, manifest_sha256="ab" * 32, unpacked_bytes=1000,
        contract=None if slot == "configuration" else CONTRACT,
    )  # fmt: skip


@dataclass
class Repository:
    """A TUF repository as the release tools publish it, without their checks: tests also make wrong ones."""

    folder: Path
    expires: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0) + timedelta(days=10))
    version: int = 0
    targets: dict[str, TargetFile] = field(default_factory=dict)
    signers: dict[str, CryptoSigner] = field(
        default_factory=lambda: {role: CryptoSigner.generate_ed25519() for role in ROLES}
    )

    def __post_init__(self) -> None:
        root = Root(version=1, expires=self.expires, consistent_snapshot=True)
        for role, signer in self.signers.items():
            root.add_key(signer.public_key, role)
        self._write("1.root.json", root, "root")
        self.publish()

    @property
    def root(self) -> bytes:
        return (self.folder / "metadata" / "1.root.json").read_bytes()

    def add(self, given: Release, content: bytes, *, path: str = "") -> str:
        """Not public before `publish`; its target path."""
        path = path or given.path
        target = TargetFile.from_data(path, content, ["sha256"])
        target.unrecognized_fields["custom"] = custom_of(given)
        slot, _, name = path.rpartition("/")
        file = self.folder / "targets" / slot / f"{target.hashes['sha256']}.{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.targets[path] = target
        return path

    def publish(self) -> None:
        self.version += 1
        number = self.version
        self._write(
            f"{number}.targets.json", Targets(number, expires=self.expires, targets=dict(self.targets)), "targets"
        )
        snapshot = Snapshot(number, expires=self.expires)
        snapshot.meta["targets.json"].version = number
        self._write(f"{number}.snapshot.json", snapshot, "snapshot")
        timestamp = Timestamp(number, expires=self.expires)
        timestamp.snapshot_meta.version = number
        self._write("timestamp.json", timestamp, "timestamp")

    def _write(self, name: str, signed: Any, role: str) -> None:
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(self.signers[role])
        file = self.folder / "metadata" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_bytes(metadata.to_bytes())
        part.replace(file)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass
class FleetServer:
    """As its users see it, and with its inside for arranging things."""

    services: Services
    port: int
    admin: str
    session: aiohttp.ClientSession
    repository: Repository | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ask(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> Answer:
        given = dict(headers or {})
        if data is None and body is not None:
            data = json.dumps(body)
            given.setdefault("Content-Type", "application/json")
        async with self.session.request(method, self.url + path, data=data, headers=given) as response:
            return Answer(response.status, response.headers, await response.read())

    async def api(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Answer:
        """Management; token: another than the administrator's."""
        bearer = self.admin if token is None else token
        return await self.ask(method, f"/api/v1{path}", body, headers={"Authorization": f"Bearer {bearer}"})

    async def user(self, role: str) -> str:
        """A token of that role."""
        answer = await self.api("POST", "/users", {"name": f"a-{role}", "role": role})
        assert answer.status == 201, answer
        return str(answer.json["token"])

    async def device(self, controller_id: str = "box-1") -> FleetDevice:
        """A device that was entered by hand."""
        answer = await self.api("POST", "/devices", {"id": controller_id})
        assert answer.status == 201, answer
        return FleetDevice(self, controller_id, {"Authorization": f"TargetToken {answer.json['token']}"})

    async def publish(self, *numbers: int, content: bytes = b"a bundle " * 500, slot: str = "pose") -> list[ReleaseRow]:
        """Releases in the repository, and known to the server."""
        assert self.repository is not None
        for number in numbers:
            self.repository.add(release(number, slot=slot), content + bytes([number]))
        self.repository.publish()
        before = {row.id for row in (await self.releases())}
        await self.sync()
        return [row for row in await self.releases() if row.id not in before]

    async def releases(self) -> list[ReleaseRow]:
        return sorted((await self.services.store.read(releases.known)).values(), key=lambda row: row.id)

    async def sync(self) -> None:
        """Have the server read the repository now."""
        while self.services.sync is None:
            await asyncio.sleep(0.005)
        await self.services.sync()

    async def assign(self, device: FleetDevice, release_id: int, **options: Any) -> int:
        answer = await self.api("POST", f"/devices/{device.id}/actions", {"release": release_id, **options})
        assert answer.status == 201, answer
        return int(answer.json["id"])

    async def action(self, action_id: int) -> Action:
        return await self.services.store.read(actions.get, action_id)

    async def set_state(self, action_id: int, state: str) -> None:
        """Whatever the action was in."""

        def work(connection: Connection) -> None:
            action = actions.get(connection, action_id)
            move = actions.close if ActionState(state) in CLOSED else actions.set_state
            move(connection, action, ActionState(state), now_ms=1)

        await self.services.store.write(work)

    async def reports(self, action_id: int) -> list[tuple[str, str, str]]:
        """kind, execution, result; oldest first."""
        rows = await self.services.store.read(feedback.history, action_id, limit=10_000)
        return [(row.kind, row.execution, row.finished) for row in reversed(rows)]

    async def device_row(self, controller_id: str) -> Device:
        return await self.services.store.read(devices.get, controller_id)

    async def log(self, action_id: int, device_id: int, report: Report) -> None:
        await self.services.store.write(feedback.add, device_id, action_id, report, now_ms=1)

    async def set_gateway(self) -> dict[str, str]:
        answer = await self.api("POST", "/gateway-token")
        return {"Authorization": f"GatewayToken {answer.json['token']}"}

    async def stored_gateway(self) -> Any:
        return await self.services.store.read(settings.get, "gateway_token_hash")


@dataclass
class FleetDevice:
    """Speaks DDI, knows nothing of the agent."""

    server: FleetServer
    id: str
    headers: dict[str, str]

    @property
    def base(self) -> str:
        return f"/default/controller/v1/{self.id}"

    async def ask(self, method: str, path: str = "", body: Any = None, **headers: str) -> Answer:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.server.ask(method, self.base + path, body, headers=self.headers | named)

    async def poll(self) -> dict[str, str]:
        """Its links, by name."""
        answer = await self.ask("GET")
        assert answer.status == 200, answer
        return {name: link["href"] for name, link in answer.json.get("_links", {}).items()}

    async def report(
        self, action_id: int, execution: str, finished: str = "none", *details: str, kind: str = "deploymentBase"
    ) -> Answer:
        status = {"execution": execution, "result": {"finished": finished}, "details": list(details)}
        return await self.ask("POST", f"/{kind}/{action_id}/feedback", {"status": status})


@asynccontextmanager
async def fleet_server(
    folder: Path, *, repository: Repository | None = None, **given: Any
) -> AsyncIterator[FleetServer]:
    """given: settings."""
    options: dict[str, Any] = {"data": folder / "data", "port": 0}
    if repository is not None:
        options["repository"] = repository.folder
    async with (
        running(ServerSettings.model_validate(options | given), {}) as at_work,
        aiohttp.ClientSession() as session,
    ):
        admin = (folder / "data" / ADMIN_FILE).read_text().strip()
        yield FleetServer(at_work.services, at_work.port, admin, session, repository)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
