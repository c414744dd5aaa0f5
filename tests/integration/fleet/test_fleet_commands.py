"""`recognizer-fleet rollout`, `devices` and `users` against a running server."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes.commandline import call
from fakes.fleet_server import FleetServer, Repository, fleet_server

from ota.cli import main

Run = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]


def write_token(folder: Path, token: str, mode: int = 0o600) -> Path:
    file = folder / "token"
    file.write_text(token + "\n")
    file.chmod(mode)
    return file


@pytest.fixture
def run(fleet: FleetServer, tmp_path: Path) -> Run:
    """The command in a thread of its own, with server and token in the environment."""
    token = write_token(tmp_path, fleet.admin)

    async def run(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {
            "RECOGNIZER_FLEET_SERVER": fleet.url,
            "RECOGNIZER_FLEET_TOKEN_FILE": str(token),
            "PATH": os.environ["PATH"],
        }
        found = await asyncio.to_thread(call, tmp_path, list(arguments), known | environment, main)
        assert found.returncode == code, (found.stdout, found.stderr)
        return found

    return run


async def answer(run: Run, *arguments: str) -> Any:
    return json.loads((await run(*arguments, "--json")).stdout)


async def test_devices(fleet: FleetServer, run: Run, tmp_path: Path) -> None:
    assert (await run("devices", "list")).stdout.strip() == "no devices"
    token = (await run("devices", "add", "box-1", "--name", "Gate [north]")).stdout.strip()
    out = tmp_path / "box-2.token"
    assert token not in (await run("devices", "add", "box-2", "--token-out", str(out))).stdout
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    for name, secret in (("box-1", token), ("box-2", out.read_text().strip())):
        polled = await fleet.ask(
            "GET", f"/default/controller/v1/{name}", headers={"Authorization": f"TargetToken {secret}"}
        )
        assert polled.status == 200
    assert "it is there already" in (await run("devices", "token", "box-2", "--token-out", str(out), code=1)).stderr
    assert (await run("devices", "token", "box-1")).stdout.strip() != token
    missing = tmp_path / "missing" / "box-3.token"
    assert str(missing) in (await run("devices", "add", "box-3", "--token-out", str(missing), code=1)).stderr
    assert "there is no such device" in (await run("devices", "show", "box-3", code=1)).stderr
    taken = tmp_path / "taken.token"
    assert "box-1" in (await run("devices", "add", "box-1", "--token-out", str(taken), code=1)).stderr
    assert not taken.exists()
    first, _ = await fleet.publish(6, 7)
    told = (await run("devices", "assign", "box-1", "pose-nano 0.6.0", "--forced")).stdout
    assert "box-1 is to install pose-nano 0.6.0" in told
    listed = (await run("devices", "list")).stdout
    assert "Gate [north]" in listed
    assert "pending" in listed
    assert [one["id"] for one in await answer(run, "devices", "list", "--filter", "id==box-2")] == ["box-2"]
    shown = await answer(run, "devices", "show", "box-1")
    assert (shown["actions"][0]["release"], shown["actions"][0]["forced"]) == (first.id, True)
    assert "pose-nano 0.6.0" in (await run("devices", "show", "box-1")).stdout
    await run("devices", "remove", "box-2")
    assert "there is no such device" in (await run("devices", "show", "box-2", code=1)).stderr
    assert "column 3" in (await run("devices", "list", "--filter", "id=box", code=1)).stderr


async def test_a_rollout_by_hand(fleet: FleetServer, run: Run, tmp_path: Path) -> None:
    await fleet.publish(6, 7)
    boxes = [await fleet.device(f"box-{n}") for n in range(10)]
    dry = (await run("rollout", "create", "x", "--release", "pose-nano 0.7.0", "--dry-run", "--canary", "30")).stdout
    assert dry.strip() == "10 devices match, 10 would get it (3 in canary, 7 in rest)"
    data = {"agent_version": "0.1.0", "model.action-fight": "fight 1.0"}
    await boxes[0].ask("PUT", "/configData", {"mode": "merge", "data": data})
    dry = (await run("rollout", "create", "x", "--release", "pose-nano 0.7.0", "--dry-run", "--canary", "30")).stdout
    assert dry.strip().endswith("(3 in canary, 7 in rest); 1 report no such slot")
    assert (await run("rollout", "list")).stdout.strip() == "no rollouts"
    made = (await run("rollout", "create", "nano [b]7[/]", "--release", "pose-nano-0.7.0", "--start")).stdout
    assert "1 nano [b]7[/] is running" in made
    await asyncio.sleep(1)
    for box in boxes:
        links = await box.poll()
        if "deploymentBase" in links:
            await box.report(int(links["deploymentBase"].partition("?")[0].rpartition("/")[2]), "closed", "success")
    await asyncio.sleep(1)
    assert "paused" in (await run("rollout", "pause", "1")).stdout
    assert "it must be running" in (await run("rollout", "pause", "1", code=1)).stderr
    waited = await run("rollout", "show", "1", "--devices", "--wait", "5", "--json", code=1)  # paused is not finished
    shown = json.loads(waited.stdout)
    assert [group["counts"]["succeeded"] for group in shown["groups"]] == [1, 0]
    assert len(shown["members"]) == 10
    assert "box-3" in (await run("rollout", "show", "1", "--devices")).stdout
    await run("rollout", "resume", "1")
    assert "rolling_back" in (await run("rollout", "abort", "1", "--roll-back")).stdout
    assert "nano [b]7[/]" in (await run("rollout", "list")).stdout
    assert [one["id"] for one in await answer(run, "rollout", "list", "--state", "finished")] == []


async def test_who_has_no_way_back_is_said_before_a_roll_back(fleet: FleetServer, run: Run) -> None:
    """Nothing that the server knows served there before."""
    await fleet.publish(7)
    boxes = [await fleet.device(f"box-{n}") for n in range(2)]
    await run("rollout", "create", "first", "--release", "1", "--canary", "100", "--start")
    for box in boxes:
        async with asyncio.timeout(30):
            while "deploymentBase" not in (links := await box.poll()):
                await asyncio.sleep(0.05)
        await box.report(int(links["deploymentBase"].partition("?")[0].rpartition("/")[2]), "closed", "success")
    await run("rollout", "show", "1", "--wait", "30")
    said = await run("rollout", "abort", "1", "--roll-back")
    assert said.stderr == "warning: of 2 devices that got it 2 have no way back, and stay as they are\n"
    ended = await run("rollout", "show", "1", "--wait", "30", code=1)
    told = "1 first is aborted: rolled back by admin; nobody went back: 2 succeeded, 2 have no way back"
    assert told in ended.stdout


async def test_users(fleet: FleetServer, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "anna.token"
    added = await run("users", "add", "anna", "--role", "operator", "--token-out", str(out))
    assert added.stdout == f"anna: its token is in {out}\n"
    mine = {"RECOGNIZER_FLEET_TOKEN_FILE": str(out)}
    await run("devices", "add", "box-1", **mine)
    assert "needs the role admin" in (await run("users", "list", code=1, **mine)).stderr
    assert (await run("users", "role", "anna", "viewer")).stdout == "anna is viewer\n"
    await run("devices", "add", "box-2", code=1, **mine)
    assert (await run("users", "disable", "anna")).stdout == "anna is viewer, disabled\n"
    await run("devices", "list", code=1, **mine)
    assert "viewer, disabled" in (await run("users", "list")).stdout
    assert (await run("users", "enable", "anna")).stdout == "anna is viewer\n"
    await run("devices", "list", **mine)
    token = (await run("users", "token", "anna")).stdout.strip()
    await run("devices", "list", code=1, **mine)
    out.write_text(token)
    await run("devices", "list", **mine)
    assert (await answer(run, "users", "add", "vic"))["role"] == "viewer"
    assert [(one["name"], one["role"]) for one in await answer(run, "users", "list")] == [
        ("admin", "admin"), ("anna", "viewer"), ("vic", "viewer"),
    ]  # fmt: skip
    assert "there is a user anna already" in (await run("users", "add", "anna", code=1)).stderr
    assert "the last administrator must stay one" in (await run("users", "disable", "admin", code=1)).stderr
    await run("users", "add", "bob", "--role", "king", code=2)


async def test_a_plan_from_a_file(fleet: FleetServer, run: Run, tmp_path: Path) -> None:
    await fleet.publish(7)
    await fleet.device("box-1")
    plan = tmp_path / "plan.yaml"
    plan.write_text("groups:\n- {name: bench, filter: id==box-*, wait_s: 60}\n- {name: rest}\nroll_back: all\n")
    made = await answer(run, "rollout", "create", "x", "--release", "1", "--plan", str(plan), "--forced", "--approval")
    assert made["state"] == "draft"
    assert made["plan"]["roll_back"] == "all"
    assert made["plan"]["forced"] is True
    assert (made["plan"]["groups"][0]["approval"], made["plan"]["groups"][0]["wait_s"]) == (True, 60)
    assert [(group["name"], group["devices"]) for group in made["preview"]["groups"]] == [("bench", 1), ("rest", 0)]
    assert "second person" in (await run("rollout", "approve", "1", code=1)).stderr
    other = write_token(plan.parent, await fleet.user("operator"))
    agreed = (await run("rollout", "approve", "1", RECOGNIZER_FLEET_TOKEN_FILE=str(other))).stdout
    assert "is ready" in agreed
    assert "waits for `recognizer-fleet rollout start 1`\n" in agreed
    at = await run("rollout", "create", "x", "--release", "1", "--start-at", "2030-12-01T03:00:00+01:00")
    assert "waits for `recognizer-fleet rollout start 2`, or for 2030-12-01T02:00:00 UTC\n" in at.stdout
    plan.write_text("groups:\n- {name: bench, percent: 5}\n")
    wrong = await run("rollout", "create", "x", "--release", "1", "--plan", str(plan), code=78)
    assert "the last group takes what is left" in wrong.stderr
    plan.write_text("groups:\n- {name: bench, percent: 5}\n- {name: rest, wait_s: soon}\n")
    wrong = await run("rollout", "create", "x", "--release", "1", "--plan", str(plan), code=78)
    assert f"{plan}:3:groups.1.wait_s: " in wrong.stderr
    plan.write_text("roll_back: all\nstart_at: 2026-02-30T03:00:00+01:00\n")
    wrong = await run("rollout", "create", "x", "--release", "1", "--plan", str(plan), code=78)
    assert f"{plan}:2:start_at: " in wrong.stderr
    plan.write_text("[" * 5000)
    wrong = await run("rollout", "create", "x", "--release", "1", "--plan", str(plan), code=78)
    assert "too deeply" in wrong.stderr
    plan.write_text("groups: [")
    assert str(plan) in (await run("rollout", "create", "x", "--release", "1", "--plan", str(plan), code=78)).stderr
    assert "it knows pose-nano 0.7.0" in (await run("rollout", "create", "x", "--release", "odd 1", code=1)).stderr


async def test_a_start_that_is_refused_tells_that_the_rollout_is_there(fleet: FleetServer, run: Run) -> None:
    await fleet.publish(7)
    refused = await run("rollout", "create", "x", "--release", "1", "--start", code=1)
    assert "rollout 1 now exists, but its start failed: the filter takes no device" in refused.stderr
    assert "recognizer-fleet rollout start 1" in refused.stderr
    await fleet.device("box-1")
    assert "1 x is running" in (await run("rollout", "start", "1")).stdout


async def test_waiting_outlives_a_restart_of_the_server(tmp_path: Path, repository: Repository) -> None:
    async with fleet_server(tmp_path, repository=repository) as fleet:
        await fleet.publish(7)
        await fleet.device("box-1")
        await fleet.api("POST", "/rollouts", {"name": "x", "release": 1})
        await fleet.api("POST", "/rollouts/1/start")
        words = ["rollout", "show", "1", "--wait", "60", "--server", fleet.url]
        waiting = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ota.cli", *words, "--token-file", str(write_token(tmp_path, fleet.admin)),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        figure = fleet.services.metrics.requests.labels("GET", "/api/v1/rollouts/{rollout}", 200)
        async with asyncio.timeout(30):
            while not any(sample.value for sample in figure.collect()[0].samples if sample.name.endswith("_count")):
                await asyncio.sleep(0.05)
    assert waiting.stderr is not None
    async with asyncio.timeout(30):
        assert b"does not answer" in await waiting.stderr.readline()
    async with fleet_server(tmp_path, repository=repository, port=fleet.port) as fleet:
        await fleet.api("POST", "/rollouts/1/pause")
        async with asyncio.timeout(30):
            stdout, _ = await waiting.communicate()
    assert b"1 x is paused" in stdout
    assert waiting.returncode == 1  # paused is not finished


async def test_waiting_ends_at_its_deadline_without_a_server(run: Run) -> None:
    asked = 0

    async def once(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked > 1 and request.transport is not None:
            request.transport.abort()
        return web.json_response({"state": "running"})

    app = web.Application()
    app.router.add_get("/{path:.*}", once)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert "does not answer" in (await run("rollout", "show", "1", "--wait", "1", "--server", url, code=1)).stderr
    assert asked == 2


async def test_what_a_device_says_does_not_steer_the_terminal(fleet: FleetServer, run: Run) -> None:
    box = await fleet.device("box-1")
    said = {
        "health": "\x1b]0;mine\x07\x1b[2J",
        "site": "\x9b2J[b]here[/b]\rthere",
        "b\x1b[31mar": "\u202eolleh",
        "town": "K\u00f6ln",
    }
    assert (await box.ask("PUT", "/configData", {"mode": "merge", "data": said})).status == 200
    listed, shown = (await run("devices", "list")).stdout, (await run("devices", "show", "box-1")).stdout
    as_json = (await run("devices", "show", "box-1", "--json")).stdout
    for text in (listed, shown, as_json):
        assert not set(text) & set("\x1b\x07\r\x9b\u202e")
        assert r"\u001b]0;mine\u0007\u001b[2J" in text
    assert r"\u009b2J[b]here[/b]" in shown
    assert "K\u00f6ln" in shown
    assert json.loads(as_json)["attributes"] == said


async def test_tokens_and_servers_that_do_not_do(fleet: FleetServer, run: Run, tmp_path: Path) -> None:
    open_file = tmp_path / "open"
    open_file.write_text(fleet.admin)
    open_file.chmod(0o644)
    refused = await run("devices", "list", "--token-file", str(open_file), code=78)
    assert "others can read" in refused.stderr
    assert fleet.admin not in refused.stderr
    viewer = write_token(tmp_path, await fleet.user("viewer"))
    assert "needs the role operator" in (await run("rollout", "pause", "1", "--token-file", str(viewer), code=1)).stderr
    wrong = write_token(tmp_path, "wrong")
    assert "valid token" in (await run("devices", "list", "--token-file", str(wrong), code=1)).stderr
    assert "does not answer" in (await run("devices", "list", "--server", "http://127.0.0.1:9", code=1)).stderr
    assert "unencrypted" in (await run("devices", "list", "--server", "http://fleet.example", code=78)).stderr
    assert "no address" in (await run("devices", "list", "--server", "fleet", code=78)).stderr
    for address in (
        "http://[::1:8090",
        f"http://{'a' * 64}.example",
        "http://127.0.0.1:9/\u00e9",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:9?\u00e9",
        "http://\u00e9@127.0.0.1:9",
        "http://127.0.0.1:9\n?",
    ):
        assert "no address" in (await run("devices", "list", "--server", address, code=78)).stderr
    doubled = await run("devices", "list", "--server", "http://a..b", "--allow-http", code=78)
    assert "no address" in doubled.stderr
    assert "which server" in (await run("devices", "list", RECOGNIZER_FLEET_SERVER="", code=78)).stderr
    assert "no token" in (await run("devices", "list", RECOGNIZER_FLEET_TOKEN_FILE="", code=78)).stderr
    await run("devices", code=2)
    await run("rollout", "show", "x", code=2)


async def test_a_redirect_does_not_take_the_token_along(fleet: FleetServer, run: Run) -> None:
    seen: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{request.url.port}/other"})

    app = web.Application()
    app.router.add_get("/{path:.*}", elsewhere)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert "302" in (await run("devices", "list", "--server", url, code=1)).stderr
    assert len(seen) == 1


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from ota.cli import build_parser; build_parser();"
        "print([name for name in ('aiohttp', 'sqlalchemy', 'tuf', 'yaml') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
