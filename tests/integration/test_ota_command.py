"""`recognizer-agent ota status|rollback|check`, beside an agent that runs and without one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fakes.ddi_server import TOKEN
from fakes.update_world import Device, World, until, world

from agent.cli import main
from agent.update.boot import JOURNAL
from agent.update.journal import Journal
from agent.update.machine import Phase, report


def configured(here: World, folder: Path) -> list[str]:
    """`--config` for the device of `here`: its state folder is the one above `updates`."""
    file = folder / "agent.yaml"
    file.write_text(f"state_dir: {here.device.root.parent}\n")
    return ["--config", str(file)]


async def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()  # an agent that ran before in this process may have logged
    code = await asyncio.to_thread(main, ["ota", *arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


async def committed(here: World, device: Device) -> None:
    release = here.releases.make("1.1.0")
    here.server.offer("7", release.path, "pose")
    async with device.running(here.server.url):
        await until(lambda: here.server.result("7"))


async def test_a_device_without_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"state_dir: {tmp_path}\n")
    code, out, _ = await said(capsys, "status", "--config", str(file))
    assert code == 0
    assert "every slot has what the configuration names" in out
    code, _, err = await said(capsys, "rollback", "pose", "--config", str(file))
    assert (code, "no update has come" in err) == (1, True)
    code, _, err = await said(capsys, "check", "--config", str(file))
    assert (code, "not running" in err) == (1, True)


async def test_what_a_server_calls_an_update_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"state_dir: {tmp_path}\n")
    (tmp_path / "updates").mkdir(mode=0o700)
    journal = Journal.open(tmp_path / "updates" / JOURNAL)
    journal.begin("[/b]", "pose/[red]tiny.tar.zst", "pose", report(Phase.DOWNLOADING))
    journal.close()
    code, out, _ = await said(capsys, "status", "--config", str(file))
    assert code == 0
    assert "[/b]" in out


async def test_without_an_agent_the_next_start_is_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as here:
        here.device.root = tmp_path / "state" / "updates"
        await committed(here, here.device)
        config = configured(here, tmp_path)
        code, out, _ = await said(capsys, "status", "--json", *config)
        status = json.loads(out)
        assert (code, status["running"]) == (0, False)
        assert status["versions"]["pose"]["version"] == "tiny 1.1.0"
        assert status["actions"][0]["phase"] == "committed"
        code, out, _ = await said(capsys, "rollback", "pose", *config)
        assert (code, out) == (0, "pose: as configured serves from the next start on\n")
        async with here.device.running(None):
            assert here.device.serving == "1.0.0"
        code, out, _ = await said(capsys, "rollback", "pose", "--json", *config)
        assert json.loads(out) == {"good": True, "text": "pose: tiny 1.1.0 serves from the next start on"}
        code, _, err = await said(capsys, "rollback", "action/fight", *config)
        assert (code, "no version to go back to" in err) == (1, True)
        code, out, _ = await said(capsys, "status", *config)
        assert "tiny 1.1.0" in out


async def test_an_agent_that_runs_does_it_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as here:
        here.device.root = tmp_path / "state" / "updates"
        await committed(here, here.device)
        config = configured(here, tmp_path)
        async with here.device.running(here.server.url):
            polls = here.server.polls
            code, out, _ = await said(capsys, "check", *config)
            assert (code, out) == (0, "the server has answered\n")
            assert here.server.polls > polls
            here.device.trials.step_s = 2.0  # long enough to be said to be under way
            code, out, err = await said(capsys, "rollback", "pose", *config)
            assert (code, out) == (0, "pose: as configured serves\n")
            assert "under way" in err
            assert here.device.serving == "1.0.0"
            code, out, _ = await said(capsys, "status", "--json", *config)
            assert json.loads(out)["running"]


async def test_a_server_that_does_not_let_the_device_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as here:
        here.device.root = tmp_path / "state" / "updates"
        config, file, url = configured(here, tmp_path), tmp_path / "agent.yaml", here.server.url
        update = f"update: {{enabled: true, server: '{url}', repository: '{url}', root_file: r, token_file: t}}\n"
        file.write_text(file.read_text() + update)
        async with here.device.running(url):
            await until(lambda: here.device.client.state["server"]["state"] == "ok")
            code, out, _ = await said(capsys, "status", "--json", *config)
            server = json.loads(out)["server"]
            assert (code, server["state"], server["detail"]) == (0, "ok", "")
            here.server.token = "another"
            code, out, err = await said(capsys, "check", *config)
            told = err.splitlines()[-1].removeprefix("error: ")  # the agent of this process logs there, too
            assert (code, out, told.startswith("denied: "), "401 Unauthorized" in told) == (1, "", True, True)
            code, out, _ = await said(capsys, "status", *config)
            assert f"server: {told}; last good answer: {server['polled'][:11]}" in out
            here.server.token = TOKEN
            assert (await said(capsys, "check", *config))[:2] == (0, "the server has answered\n")
        code, out, _ = await said(capsys, "status", "--json", *config)
        assert (json.loads(out)["running"], json.loads(out)["server"]) == (False, None)


async def test_a_probation_that_a_death_cut_off_can_be_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world(tmp_path) as here:
        here.device.root = tmp_path / "state" / "updates"
        release = here.releases.make("1.1.0", watch="hang")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.device.serving == "1.1.0")
        code, out, _ = await said(capsys, "rollback", "pose", *configured(here, tmp_path))
        assert (code, out) == (0, "tiny 1.1.0: taken back\n")
        async with here.device.running(here.server.url):
            assert here.device.serving == "1.0.0"
            await until(lambda: here.server.result("7"))
        assert "reason: command" in here.server.told("7")[-1]["details"]


@pytest.mark.parametrize("phase", ["downloading", "shadow"])
async def test_an_update_that_has_not_changed_anything_yet_ends_without_an_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], phase: str
) -> None:
    """As with one: else it would install itself at the next start, after somebody has said that it should go."""
    async with world(tmp_path) as here:
        here.device.root = tmp_path / "state" / "updates"
        await committed(here, here.device)
        release = here.releases.make("1.2.0", **({"shadow": "hang"} if phase == "shadow" else {}))
        here.server.offer("8", release.path, "pose", download="skip" if phase == "downloading" else "forced")
        async with here.device.running(here.server.url):
            await until(lambda: any(one.phase == phase and one.release for one in here.device.journal.unsettled()))
        code, out, _ = await said(capsys, "rollback", "pose", *configured(here, tmp_path))
        assert (code, out) == (0, "tiny 1.2.0: taken back\n")
        here.server.actions["8"].download = "forced"
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("8"))
            assert here.device.serving == "1.1.0"
        assert {"refused", "reason: command"} <= set(here.server.told("8")[-1]["details"])
