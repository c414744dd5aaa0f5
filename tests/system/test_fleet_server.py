"""`recognizer-fleet serve` as a process: first start, settings, stop, kill; and its systemd unit."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from fakes.fleet_server import Repository

from agent.net import free_port

UNIT = "recognizer-fleet.service"
MAX_EXPOSURE = 2.5
needs_systemd_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


class Process:
    """The server in a folder of its own; its log is read for errors."""

    def __init__(self, folder: Path, repo: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port("127.0.0.1")
        self.log = folder / "log"
        command = [
            sys.executable,
            "-m",
            "ota.cli",
            "serve",
            "--data",
            str(folder / "data"),
            "--port",
            str(self.port),
            *options,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=repo, stdout=log, stderr=log, env=os.environ | (env or {}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.folder / 'data' / 'admin-token').read_text().strip()}"}

    async def ready(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(60):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    async with session.get(f"{self.url}/health") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


async def test_first_start_makes_an_administrator_and_a_clean_stop(tmp_path: Path, repo_dir: Path) -> None:
    server = Process(tmp_path, repo_dir)
    try:
        async with aiohttp.ClientSession() as session:
            await server.ready(session)
            async with session.get(f"{server.url}/api/v1/me", headers=server.admin) as answer:
                assert await answer.json() == {"name": "admin", "role": "admin"}
            feed = await session.get(f"{server.url}/api/v1/events", headers=server.admin)
            began = time.monotonic()
            assert server.stop() == 0  # an open event feed does not hold it up
            assert time.monotonic() - began < 5
            feed.close()
    finally:
        server.stop(signal.SIGKILL)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "data", *(tmp_path / "data").iterdir()]
    }
    assert modes.pop("data") == 0o700
    assert set(modes.values()) == {0o600}, modes
    log = server.log.read_text()
    assert server.admin["Authorization"].split()[1] not in log
    assert "error" not in [json.loads(line)["level"] for line in log.splitlines()]


async def test_a_backup_of_a_running_server_is_a_whole_one(tmp_path: Path, repo_dir: Path) -> None:
    """As docs/ota.md says; the file alone, without the log beside it, is not."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first / "data", second / "data"):
        folder.mkdir(parents=True)
    server = Process(first, repo_dir)
    try:
        async with aiohttp.ClientSession() as session:
            await server.ready(session)
            body = {"id": "box-1"}
            async with session.post(f"{server.url}/api/v1/devices", json=body, headers=server.admin) as answer:
                token = (await answer.json())["token"]
            source = sqlite3.connect(f"file:{first / 'data' / 'fleet.db'}?mode=ro", uri=True)
            target = sqlite3.connect(second / "data" / "fleet.db")
            source.backup(target)
            source.close()
            target.close()
            admin = server.admin
            server.stop()
            server = Process(second, repo_dir)
            await server.ready(session)
            headers = {"Authorization": f"TargetToken {token}"}
            async with session.get(f"{server.url}/default/controller/v1/box-1", headers=headers) as answer:
                assert answer.status == 200
            async with session.get(f"{server.url}/api/v1/me", headers=admin) as answer:
                assert answer.status == 200
    finally:
        server.stop(signal.SIGKILL)


async def test_token_of_a_start_that_was_broken_off_is_taken_up(tmp_path: Path, repo_dir: Path) -> None:
    (tmp_path / "data").mkdir()
    token = tmp_path / "data" / "admin-token"
    token.write_text("the-token-of-before-the-power-loss\n")
    token.chmod(0o600)
    server = Process(tmp_path, repo_dir)
    try:
        async with aiohttp.ClientSession() as session:
            await server.ready(session)
            async with session.get(f"{server.url}/api/v1/me", headers=server.admin) as answer:
                assert answer.status == 200
    finally:
        server.stop(signal.SIGKILL)


async def test_no_answered_report_is_lost_by_kill_9(tmp_path: Path, repo_dir: Path) -> None:
    """Twice: what was answered before the kill is in the database after it, and the next start goes on with it."""
    server = Process(tmp_path, repo_dir)
    answered: Counter[str] = Counter()
    try:
        async with aiohttp.ClientSession() as session:
            await server.ready(session)
            headers = await _devices(session, server, 20, tmp_path)
            for _ in range(2):
                reporting = [
                    asyncio.create_task(_report(session, server, path, one, answered)) for path, one in headers.items()
                ]
                await asyncio.sleep(1.5)
                server.stop(signal.SIGKILL)
                await asyncio.gather(*reporting)
                server = Process(tmp_path, repo_dir)
                await server.ready(session)
    finally:
        server.stop()
    assert sum(answered.values()) > 200
    connection = sqlite3.connect(tmp_path / "data" / "fleet.db")
    found = {json.loads(details)[0] for (details,) in connection.execute("SELECT details FROM feedback")}
    connection.close()
    assert set(answered) <= found


async def _devices(
    session: aiohttp.ClientSession, server: Process, number: int, folder: Path
) -> dict[str, dict[str, str]]:
    """Credentials of devices with an open action each, by its path; the release is put into the table by hand."""
    connection = sqlite3.connect(folder / "data" / "fleet.db", timeout=10)
    with connection:
        connection.execute(
            "INSERT INTO releases VALUES (1, 'pose', 'p', '1.0', 1, 'pose/p-1.0.tar.zst', 1, 'aa', '', '', '{}', 0, 1)"
        )
    connection.close()
    found = {}
    for n in range(number):
        body = {"id": f"box-{n}"}
        async with session.post(f"{server.url}/api/v1/devices", json=body, headers=server.admin) as answer:
            token = (await answer.json())["token"]
        path = f"{server.url}/api/v1/devices/box-{n}/actions"
        async with session.post(path, json={"release": 1}, headers=server.admin) as answer:
            assert answer.status == 201
            action = (await answer.json())["id"]
        found[f"box-{n}/deploymentBase/{action}"] = {"Authorization": f"TargetToken {token}"}
    return found


async def _report(
    session: aiohttp.ClientSession, server: Process, path: str, headers: dict[str, str], answered: Counter[str]
) -> None:
    """As fast as answers come, until the server is gone."""
    url = f"{server.url}/default/controller/v1/{path}/feedback"
    while True:
        mark = f"{path} {time.monotonic_ns()}"
        status = {"execution": "proceeding", "result": {"finished": "none"}, "details": [mark]}
        try:
            async with session.post(url, json={"status": status}, headers=headers) as answer:
                if answer.status == 403:  # as many as an action may have
                    return
                assert answer.status == 200
                await answer.read()
        except aiohttp.ClientError:
            return
        answered[mark] += 1


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["start", "check"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("data: d\nhots: x\n", "fleet.yaml:2:hots: unknown key (hint: did you mean 'host'?)"),
        ("data: d\npolling: 30\n", "fleet.yaml:2:polling: "),
        ("data: d\npolling: '00:00:00'\n", "polling must be at least 00:00:01"),
        ("data: d\nport: 99999\n", "fleet.yaml:2:port: Input should be less than or equal to 65535"),
        ("data: d\nproxy:\n  trusted: [nonsense]\n", "fleet.yaml:3:proxy.trusted.0"),
        ("data: d\ndatabase: mysql://x\n", "database: mysql is not supported"),
        ("port: 8090\n", "data: required key is missing"),
        ("data: d\ntls:\n  cert: no.pem\n  key: no.key\n", "tls.cert: "),
        ("data: d\nrepository: nowhere\n", "make the repository first"),
        ("data: d\nrepository: .\nroot: no.json\n", "no.json: No such file or directory (hint: metadata/1.root.json"),
        ("data: d\ngateway_token_file: open\n", "others can read or write it (mode 0644) (hint: chmod 600"),
        ("data: d\ngateway_token_file: none\n", "none: No such file or directory (hint: python3"),
        ("data: [\n", "not valid YAML"),
    ],
)
def test_wrong_settings_are_said_with_their_place(
    tmp_path: Path, repo_dir: Path, text: str, complaint: str, check: tuple[str, ...]
) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    (tmp_path / "open").write_text("a-token-that-everybody-reads")
    (tmp_path / "open").chmod(0o644)
    result = subprocess.run(
        [sys.executable, "-m", "ota.cli", "serve", "--config", str(tmp_path / "fleet.yaml"), "--host", "127.0.0.1", *check],
        cwd=repo_dir, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 78, result.stderr
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_look_at_good_settings_changes_nothing(tmp_path: Path, repo_dir: Path) -> None:
    repository = Repository(tmp_path / "repository")
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("a-token-of-the-gateway")
    (tmp_path / "fleet.yaml").write_text(f"data: d\nrepository: {repository.folder}\ngateway_token_file: token\n")
    before = set(tmp_path.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-m", "ota.cli", "serve", "--config", str(tmp_path / "fleet.yaml"), "--check"],
        cwd=repo_dir, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    assert set(tmp_path.rglob("*")) == before


def test_port_that_is_taken(tmp_path: Path, repo_dir: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "ota.cli", "serve", "--data", str(tmp_path), "--port", port],
            cwd=repo_dir, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert result.returncode == 78
    assert f"port: cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "choose another port" in result.stderr


# --- the unit ---------------------------------------------------------------------------------------------------------


def lay(repo_dir: Path, target: Path) -> Path:
    """A copy of the unit that starts a program which exists everywhere."""
    target.mkdir(parents=True, exist_ok=True)
    copy = target / UNIT
    text = (repo_dir / "systemd" / UNIT).read_text()
    copy.write_text(text.replace("/opt/recognizer-fleet/current/bin/recognizer-fleet", "/bin/true"))
    return copy


@needs_systemd_analyze
def test_unit_verifies_without_a_word(repo_dir: Path, tmp_path: Path) -> None:
    command = ["systemd-analyze", "verify", str(lay(repo_dir, tmp_path))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in (result.stdout + result.stderr).splitlines() if "recognizer" in line] == []
    assert result.returncode == 0, result.stderr


@needs_systemd_analyze
def test_exposure_is_low(repo_dir: Path, tmp_path: Path) -> None:
    lay(repo_dir, tmp_path / "etc/systemd/system")
    limit = f"--threshold={MAX_EXPOSURE * 10:.0f}"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", limit, f"--root={tmp_path}", UNIT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", result.stdout)
    assert found is not None, result.stderr
    assert float(found[1]) <= MAX_EXPOSURE
    assert result.returncode == 0


def test_wrong_settings_are_not_tried_again(repo_dir: Path) -> None:
    lines = (repo_dir / "systemd" / UNIT).read_text().splitlines()
    assert "RestartPreventExitStatus=78" in lines
    assert "Type=notify" in lines


def test_settings_that_come_with_the_unit_are_valid(repo_dir: Path) -> None:
    from ota.server.settings import load_settings

    settings = load_settings(repo_dir / "systemd" / "fleet.yaml", {}, env={})
    assert (settings.data, settings.polling_s) == (Path("/var/lib/recognizer-fleet"), 30)


def test_every_setting_in_comments_is_valid_too(repo_dir: Path, tmp_path: Path) -> None:
    from ota.server.settings import load_settings

    text = (repo_dir / "systemd" / "fleet.yaml").read_text()
    uncommented = re.sub(r"^# (?=( +)?[a-z_]+:( |$))", "", text, flags=re.MULTILINE)
    (tmp_path / "fleet.yaml").write_text(uncommented)
    settings = load_settings(tmp_path / "fleet.yaml", {}, env={"FLEET_DB_PASSWORD": "x"})
    assert settings.tls is not None
    assert settings.tls.client_ca == tmp_path / "devices-ca.pem"  # beside the file that names it
    assert settings.gateway_token_file == tmp_path / "gateway-token"
    assert (settings.database_url, settings.proxy.client_header) == (
        "postgresql://fleet:x@db.example/fleet",
        "X-Client-CN",
    )
