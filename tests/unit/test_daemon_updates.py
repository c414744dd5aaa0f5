"""Updates in the daemon: what serves at the start, the slot `configuration`, and that nothing here keeps the agent from watching."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.ddi_server import DEVICE, TOKEN, ddi_server
from fakes.downloads import say_nothing
from fakes.trials import FakeTrials
from fakes.tuf_repository import TufRepository, release, serving_tuf
from fakes.update_world import Releases, until

from agent.app import Agent
from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.daemon.remote import Reloaded
from agent.daemon.slot_trials import SlotTrials
from agent.daemon.updates import UpdatePorts, Updates
from agent.errors import ConfigError, StorageError
from agent.health.reasons import HealthState
from agent.observe.metrics import Metrics
from agent.runtime.bundle import sha256_of
from agent.update.archive import unpack
from agent.update.boot import JOURNAL, boot
from agent.update.journal import Journal
from agent.update.journal_file import sole_owner
from agent.update.machine import Phase, report
from agent.update.models import VersionStore
from agent.update.records import Version
from agent.update.trials import Candidate, Refusal


def config_of(folder: Path, *, enabled: bool = True) -> AgentConfig:
    (folder / "root.json").write_text("{}")
    file = folder / "agent.yaml"
    file.write_text(
        f"state_dir: {folder / 'state'}\nupdate: {{enabled: {str(enabled).lower()}, server: 'http://127.0.0.1:1', "
        "repository: 'http://127.0.0.1:1/repository', root_file: root.json}\n"
    )
    return load_config([file], env={})


@asynccontextmanager
async def opened(config: AgentConfig, trials: FakeTrials | None = None) -> AsyncIterator[tuple[Updates, HealthState]]:
    async def reload() -> Reloaded:
        return Reloaded()

    health = HealthState()
    ports = UpdatePorts(
        trials=trials or FakeTrials({}), config=lambda: config, load=lambda: config, reload=reload, recognition=lambda: None,
        publish=lambda _: None,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        updates = Updates(ports, health=health, metrics=Metrics("test"), environ={})
        await updates.open(stack)
        yield updates, health


def committed(root: Path, releases: Releases, text: str = "") -> Version:
    """A device with a version of the slot `pose`, or with the configuration `text`."""
    wanted = releases.configuration("2026.1", text) if text else releases.make("1.1.0", publish=False)
    slot = "configuration" if text else "pose"
    archive = root.parent / "archive"
    root.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(
        next(
            content for path, content in releases.repository.files.items() if slot in path and path.endswith(".tar.zst")
        )
    )
    version, store = Version(sha256_of(archive), wanted), VersionStore(root)
    store.add(version, lambda folder: unpack(archive, folder, wanted))
    journal = Journal.open(root / JOURNAL)
    action = journal.begin(slot, wanted.path, slot, report(Phase.DOWNLOADING))
    action = journal.enter(action, Phase.PROBATION, report(Phase.PROBATION), version=version, came_from="")
    journal.commit(action, report(Phase.COMMITTED))
    boot(journal, store, enabled=True)
    journal.close()
    return version


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "releases")


async def test_an_agent_without_updates_leaves_no_trace(tmp_path: Path) -> None:
    async with opened(config_of(tmp_path, enabled=False)) as (updates, _):
        assert updates.models == {}
        assert updates.report()["phase"] == "off"
        with pytest.raises(StorageError, match=r"update\.enabled"):
            await updates.check()
    assert not (tmp_path / "state" / "updates").exists()


@pytest.mark.parametrize("enabled", [True, False])
async def test_what_was_committed_serves_whether_updates_are_enabled_or_not(
    tmp_path: Path, releases: Releases, enabled: bool
) -> None:
    version = committed(tmp_path / "state" / "updates", releases)
    async with opened(config_of(tmp_path, enabled=enabled)) as (updates, health):
        assert updates.models == {"pose": VersionStore(tmp_path / "state" / "updates").path(version)}
        assert health.snapshot().reasons == ()


async def test_a_journal_that_cannot_be_used_leaves_the_links(tmp_path: Path, releases: Releases) -> None:
    root = tmp_path / "state" / "updates"
    version = committed(root, releases)
    connection = sqlite3.connect(root / JOURNAL)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    async with opened(config_of(tmp_path)) as (updates, health):
        assert updates.models == {"pose": VersionStore(root).path(version)}
        assert [one.reason for one in health.snapshot().reasons] == ["update_store"]
        updates.start(lambda *_: pytest.fail("nothing to start"))


async def test_a_journal_that_cannot_be_used_leaves_the_configuration_that_was_sent(
    tmp_path: Path, releases: Releases
) -> None:
    root = tmp_path / "state" / "updates"
    committed(root, releases, "log: {level: debug}\n")
    config = config_of(tmp_path)
    with sole_owner(root / JOURNAL):
        async with opened(config) as (updates, _):
            assert updates.with_layer(config).log.level == "debug"


async def test_a_full_disk_takes_away_neither_the_configuration_nor_updates(
    tmp_path: Path, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    committed(tmp_path / "state" / "updates", releases, "log: {level: debug}\n")
    (tmp_path / "state" / "updates" / "numbers.json").unlink()
    monkeypatch.setattr(VersionStore, "write_numbers", full)
    config, started = config_of(tmp_path), []
    async with opened(config) as (updates, health):
        assert updates.with_layer(config).log.level == "debug"
        updates.start(lambda name, _: started.append(name))
        assert started == ["updates"]
        assert "No space left" in health.snapshot().reasons[0].detail


async def test_a_configuration_that_no_longer_fits_at_the_start_holds_up_no_reload(
    tmp_path: Path, releases: Releases
) -> None:
    committed(tmp_path / "state" / "updates", releases, "services: {queue: {rules: {alert_threshold: 0.9}}}\n")
    file = tmp_path / "agent.yaml"

    def write(text: str) -> None:
        file.write_text(f"state_dir: state\nmqtt: {{enabled: false}}\nhttp: {{enabled: false}}\n{text}")

    def reason() -> str:
        return {one.reason: one.detail for one in agent.health.snapshot().reasons}.get("config_reload", "")

    write("log: {level: info}\n")
    agent = Agent(load_config([file], env={}), environ={}, load=lambda: load_config([file], env={}))
    running = asyncio.create_task(agent.run())
    await asyncio.wait_for(agent.ready_event.wait(), 30)
    aside = "the configuration that was sent is left aside: "
    assert reason().startswith(aside)
    write("log: {level: error}\ndevice_id: other\n")
    assert (await agent.reload()).error == ""
    assert agent.config.log.level == "error"
    assert reason().startswith(aside)
    assert reason().endswith("; needs a restart: device_id")

    sent = tmp_path / "site.yaml"  # another one is not left aside
    sent.write_text("services: {queue: {enabled: true}}\n")
    agent.updates._trials.layer = sent
    assert "no such entry" in (await agent.reload()).error
    sent.write_text("services: {fight: {rules: {alert_threshold: 0.7}}}\n")
    assert (await agent.reload()).error == ""
    assert agent.config.services["fight"].rules.alert_threshold == 0.7
    assert aside not in reason()
    sent.write_text("services: {queue: {enabled: true}}\n")  # nor is one that was in force
    assert "no such entry" in (await agent.reload()).error
    agent.stop()
    await asyncio.wait_for(running, 30)


async def test_one_that_was_left_aside_comes_into_force_when_it_fits_again(tmp_path: Path, releases: Releases) -> None:
    committed(tmp_path / "state" / "updates", releases, "services: {fight: {rules: {alert_threshold: 0.9}}}\n")
    config = config_of(tmp_path)
    async with opened(config) as (updates, _):
        without = config.model_copy(update={"services": {}})
        assert updates.with_layer(without, starting=True) == without
        assert "no such entry" in updates.layer_remark
        assert updates.with_layer(config).services["fight"].rules.alert_threshold == 0.9
        assert updates.layer_remark == ""


async def test_a_second_process_does_not_touch_the_journal(tmp_path: Path, releases: Releases) -> None:
    root = tmp_path / "state" / "updates"
    committed(root, releases)
    with sole_owner(root / JOURNAL):
        async with opened(config_of(tmp_path)) as (updates, health):
            assert updates.models.keys() == {"pose"}
            assert "already in use" in health.snapshot().reasons[0].detail


async def test_a_slot_that_is_no_longer_configured_is_not_served(tmp_path: Path, releases: Releases) -> None:
    committed(tmp_path / "state" / "updates", releases)
    root = tmp_path / "state" / "updates"
    (root / "current" / "pose").rename(root / "current" / "action-gone")
    async with opened(config_of(tmp_path)) as (updates, _):
        assert updates.models.keys() <= {"pose"}


async def test_a_repository_that_says_nothing_does_not_make_a_stop_wait(tmp_path: Path) -> None:
    repository = TufRepository()
    config = config_of(tmp_path)
    (tmp_path / "root.json").write_bytes(repository.root_bytes())
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    with serving_tuf(repository) as tuf:
        tuf.behaviours["/metadata/2.root.json"] = say_nothing
        async with ddi_server() as server:
            where = {
                "server": server.url,
                "repository": tuf.url(),
                "token_file": tmp_path / "token",
                "controller_id": DEVICE,
            }
            config = config.model_copy(update={"update": config.update.model_copy(update=where)})
            server.offer("7", "pose/tiny-1.1.0.tar.zst", "pose")
            tasks: list[asyncio.Task[None]] = []
            async with opened(config) as (updates, _):
                updates.start(lambda name, run: tasks.append(asyncio.create_task(run(), name=name)))
                async with asyncio.timeout(15):
                    while not tuf.asked:
                        await asyncio.sleep(0.01)
                await updates.stop()
                tasks[0].cancel()
                await asyncio.wait(tasks)
                stopping_s = time.monotonic()
            assert time.monotonic() - stopping_s < 10  # of 20 that the repository is silent, and more that it might be


@pytest.mark.parametrize("loads", [True, False])
async def test_the_server_is_not_told_of_a_version_that_was_left_aside(
    tmp_path: Path, releases: Releases, loads: bool
) -> None:
    version = committed(tmp_path / "state" / "updates", releases)
    config = config_of(tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    trials = FakeTrials({"pose": releases.configured})
    async with ddi_server() as server:
        where = {"server": server.url, "token_file": tmp_path / "token", "controller_id": DEVICE}
        config = config.model_copy(update={"update": config.update.model_copy(update=where)})
        async with opened(config, trials) as (updates, _):
            trials.begin(updates.models if loads else {})
            tasks: list[asyncio.Task[None]] = []
            updates.start(lambda name, run: tasks.append(asyncio.create_task(run(), name=name)))
            await until(lambda: server.attributes)
            tasks[0].cancel()
            await asyncio.wait(tasks)
    told = {name: value for name, value in server.attributes.items() if name.startswith(("model.", "number."))}
    number = str(version.release.number)
    assert told == ({"model.pose": "tiny 1.1.0", "number.pose": number} if loads else {})


# --- the slot `configuration` -----------------------------------------------------------------------------------------


class Desk:
    """A daemon's configuration that can be reloaded."""

    def __init__(self, folder: Path) -> None:
        self.operators = config_of(folder)
        self.current = self.operators
        self.refuses = ""
        self.link: Path | None = None
        self.in_force: Path | None = None
        self.trials = SlotTrials(
            FakeTrials({"pose": folder}), load=lambda: self.operators, current=lambda: self.current, reload=self.reload,
            linked=lambda: self.link,
        )  # fmt: skip

    async def reload(self) -> Reloaded:
        if not self.refuses:
            self.in_force = self.trials.layer
        return Reloaded(error=self.refuses)

    async def install(self, path: Path | None) -> None:
        """As the worker does it: the link first."""
        self.link = path
        await self.trials.install("configuration", path)


def candidate(folder: Path, text: str) -> Candidate:
    file = folder / "configuration.yaml"
    file.write_text(text)
    return Candidate(release("configuration"), file, "ab" * 32)


def tell(*_: Any) -> None:
    """Nobody listens."""


async def test_a_configuration_is_checked_laid_over_and_taken_back(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    wanted = candidate(tmp_path, "log: {level: debug}\n")
    assert await desk.trials.validate(wanted, tell) == {"changed_keys": 1}
    assert await desk.trials.shadow(wanted, tell) == {}
    assert desk.trials.running("configuration") is None
    await desk.trials.install("configuration", wanted.path)
    assert desk.trials.running("configuration") == wanted.path
    assert not isinstance(await desk.trials.watch(wanted, tell), Refusal)
    await desk.trials.install("configuration", None)
    assert desk.trials.running("configuration") is None


async def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    found = await Desk(tmp_path).trials.validate(candidate(tmp_path, "update: {enabled: false}\n"), tell)
    assert isinstance(found, Refusal)
    assert found.reason == "configuration"
    assert "belongs to the device" in found.text


async def test_a_reload_that_is_refused_leaves_what_there_was(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.refuses = "cameras.0.source: no such file"
    with pytest.raises(ConfigError, match="no such file"):
        await desk.trials.install("configuration", tmp_path / "configuration.yaml")
    assert desk.trials.running("configuration") is None


async def test_a_way_back_that_is_refused_is_made_by_the_next_good_reload(tmp_path: Path) -> None:
    """The operator's own file is broken at that moment."""
    desk, sent = Desk(tmp_path), tmp_path / "configuration.yaml"
    await desk.install(sent)
    desk.refuses = "agent.yaml:2: not valid YAML"
    with pytest.raises(ConfigError, match="not valid YAML"):
        await desk.install(None)
    assert desk.in_force == sent
    desk.refuses = ""
    await desk.reload()
    assert desk.in_force is None
    assert desk.trials.running("configuration") is None
    await desk.install(sent)  # once more is possible
    assert desk.in_force == desk.trials.running("configuration") == sent


async def test_where_going_back_was_taken_back_the_next_reload_stays_with_what_there_was(tmp_path: Path) -> None:
    """`Worker.exchange`: the person is told that it was not done, and the link is what it was."""
    desk, before, sent = Desk(tmp_path), tmp_path / "before.yaml", tmp_path / "configuration.yaml"
    await desk.install(sent)
    desk.refuses = "agent.yaml:2: not valid YAML"
    with pytest.raises(ConfigError):
        await desk.install(before)
    desk.link, desk.refuses = sent, ""
    await desk.reload()
    assert desk.in_force == sent
