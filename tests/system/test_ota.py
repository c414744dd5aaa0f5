"""The whole agent on a simulated camera, with a fleet server and a signed repository: a model, a bad one and a configuration arrive."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
import yaml
from fakes.brokers import free_port
from fakes.candidates import derive, slower
from fakes.fleet_server import FleetServer, Repository, fleet_server

from agent.events.cloudevents import load_schema
from ota.release.pack import Wishes, pack

REPO = Path(__file__).resolve().parent.parent.parent


class Box:
    """The agent as a process."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self._folder = folder
        self._port = document["http"]["port"]
        self._config = folder / "box.yaml"
        self._config.write_text(yaml.safe_dump(document))
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "agent",
            "run",
            "--config",
            str(REPO / "configs/pose-nano.yaml"),
            "--config",
            str(self._config),
        ]
        with (self._folder / "agent.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, cwd=REPO)
        await self.until(lambda state: state.get("ready"), "ready", 60)

    async def state(self) -> dict[str, Any]:
        assert self._process.returncode is None, self.log()
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self._port}/api/v1/state") as answer,
            ):
                return dict(await answer.json())
        except aiohttp.ClientError:
            return {}

    async def until(
        self, what: Callable[[dict[str, Any]], object], text: str, limit_s: float = 240.0
    ) -> dict[str, Any]:
        state: dict[str, Any] = {}
        try:
            async with asyncio.timeout(limit_s):
                while not what(state := await self.state()):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(f"{text}: {json.dumps(state.get('updates'), indent=1)}\n{self.log()}")
        return state

    async def end(self, number: signal.Signals) -> int:
        if self._process.returncode is None:
            os.kill(self._process.pid, number)
        return await asyncio.wait_for(self._process.wait(), 40)

    def log(self) -> str:
        return (self._folder / "agent.log").read_text()[-4000:]


@asynccontextmanager
async def box_at(server: FleetServer, folder: Path) -> AsyncIterator[Box]:
    device = await server.device("gate-1")
    token, root = folder / "token", folder / "root.json"
    token.write_text(device.headers["Authorization"].partition(" ")[2])
    token.chmod(0o600)
    assert server.repository is not None
    root.write_bytes(server.repository.root)
    box = Box(
        folder,
        {
            "device_id": "gate-1", "state_dir": str(folder / "state"),
            "cameras": [{"id": "yard", "source": "sim://?scenario=mixed&seed=3&people=3&fps=6", "blind_after_s": 0}],
            "services": {"fight": {"enabled": False}, "fall": {"rules": {"alert_threshold": 0.99, "normal_threshold": 0.1}}},
            "mqtt": {"enabled": False}, "evidence": {"enabled": False}, "http": {"port": free_port()},
            "health": {"probe_interval_s": 0.5, "governor": {"enabled": False}},
            "update": {
                "enabled": True, "server": server.url, "repository": f"{server.url}/repository", "root_file": str(root),
                "token_file": str(token), "poll_min_s": 0.5, "reserve_bytes": 0, "shadow_s": 2, "probation_s": 2,
                "attributes": {"site": "berlin"},
            },
        },
    )  # fmt: skip
    await box.start()
    try:
        yield box
    finally:
        await box.end(signal.SIGKILL)


async def publish(server: FleetServer, source: Path, folder: Path, number: int, wishes: Wishes) -> int:
    """Pack, sign, let out; the id of the release."""
    assert server.repository is not None
    slot = "configuration" if source.suffix == ".yaml" else "pose"
    packed = pack(source, folder, {slot: number - 1}, wishes)
    server.repository.add(packed.release, packed.file.read_bytes())
    server.repository.publish()
    await server.sync()
    return next(row.id for row in await server.releases() if row.target == packed.release.path)


@pytest.mark.timeout(700)
async def test_a_model_a_bad_model_and_a_configuration(tmp_path: Path) -> None:
    good = derive("pose-nano-int8", tmp_path / "good", version="9.0.0")
    slow = derive("pose-nano-int8", tmp_path / "slow", slower(12), version="9.1.0")
    settings = tmp_path / "site.yaml"
    settings.write_text("services: {fall: {rules: {alert_threshold: 0.97}}}\n")
    repository = Repository(tmp_path / "repository")
    async with (
        fleet_server(tmp_path / "server", repository=repository, polling="00:00:01") as server,
        box_at(server, tmp_path) as box,
    ):
        device = (await server.device_row("gate-1")).controller_id
        wishes = Wishes(minimum={"latency_ratio": 6.0})

        async def roll_out(release: int, *, finished: bool, cut_off: bool = False) -> dict[str, Any]:
            answer = await server.api("POST", f"/devices/{device}/actions", {"release": release})
            action = str(answer.json["id"])
            if cut_off:  # goes on at the next start, once the models are loaded
                await box.until(lambda now: now.get("updates", {}).get("phase") == "shadow", f"shadow run of {action}")
                await box.end(signal.SIGKILL)
                await box.start()
            state = await box.until(
                lambda now: now.get("updates", {}).get("action_id") == action and now["updates"]["result"],
                f"end of {action}",
            )
            for _ in range(100):
                row = await server.action(int(action))
                if not row.open:
                    break
                await asyncio.sleep(0.1)
            assert (row.state == "finished") is finished, (row, state["updates"])
            return dict(state["updates"])

        state = await roll_out(await publish(server, good, tmp_path, 1, wishes), finished=True, cut_off=True)
        jsonschema.Draft202012Validator(load_schema("ota")).validate(state)
        assert state["versions"]["pose"]["version"] == "pose-nano-int8 9.0.0"
        assert {"latency_ms", "gap_ms"} <= state["figures"].keys()
        models = (await box.state())["models"]
        assert models["pose"] == "pose-nano-int8 9.0.0"

        refused = await roll_out(await publish(server, slow, tmp_path, 2, Wishes()), finished=False)
        assert (refused["phase"], refused["reason"]) == ("refused", "slower")
        assert (await box.state())["models"] == models

        sent = await publish(server, settings, tmp_path, 1, Wishes(name="site", version="1.0.0"))
        assert (await roll_out(sent, finished=True))["versions"]["configuration"]["version"] == "site 1.0.0"

        await box.end(signal.SIGKILL)
        await box.start()
        assert (await box.state())["models"] == models
        attributes = (await server.device_row("gate-1")).attributes
        assert attributes["site"] == "berlin"
        assert attributes["model.pose"] == "pose-nano-int8 9.0.0"
        assert await box.end(signal.SIGTERM) == 0
