"""The life of the sinks in the daemon: places, tasks, figures, credentials, a moment's grace."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fakes.sinks import record
from fakes.webhooks import code, hang, receiving

import agent.daemon.sinks
from agent.config.delivery import OutboxConfig
from agent.config.schema import AgentConfig
from agent.daemon.sinks import Sinks
from agent.health.reasons import HealthState
from agent.observe.metrics import Metrics
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.supervise import EDGE, supervise
from agent.types import Lane


def message() -> Message:
    return Message(Lane.EVENT, "id", "recognizer/box/events/door/fight", lambda n: record(n or 0).payload, kind="fight")


class Desk:
    """The parts of the daemon that sinks touch."""

    def __init__(self, store: OutboxStore, config: AgentConfig, environ: dict[str, str]) -> None:
        self.store = store
        self.metrics, self.health = Metrics("1"), HealthState()
        self.sinks = Sinks(config, store, health=self.health, metrics=self.metrics, environ=environ)
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, factory: Callable[[], Coroutine[Any, Any, None]]) -> None:
        work = supervise(name, factory, EDGE, health=self.health)
        self.tasks.append(asyncio.create_task(work, name=name))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"recognizer_{name}", labels)


@contextlib.asynccontextmanager
async def desk(folder: Path, sinks: dict[str, Any], environ: dict[str, str] | None = None) -> AsyncIterator[Desk]:
    config = AgentConfig.model_validate({"state_dir": str(folder), "sinks": sinks})
    store = await OutboxStore.open(folder / "events.db", OutboxConfig(reserve_bytes=0))
    found = Desk(store, config, environ or {})
    await found.sinks.open()
    found.sinks.start(found.start)
    try:
        yield found
    finally:
        for task in found.tasks:
            task.cancel()
        if found.tasks:
            await asyncio.wait(found.tasks)
        await store.close()


def webhook(folder: Path, url: str, mode: int = 0o600) -> dict[str, Any]:
    path = folder / "secret"
    path.write_text("whsec_" + base64.b64encode(bytes(32)).decode())
    path.chmod(mode)
    return {"type": "webhook", "url": url, "secret_files": [str(path)], "backoff": {"initial_s": 0.01, "max_s": 100}}


async def test_figures_of_what_is_delivered_failed_and_waits(tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.answers.extend([code(503), code(413)])
        sinks = {"pager": webhook(tmp_path, receiver.url), "lines": {"type": "file"}}
        async with desk(tmp_path, sinks) as one:
            for _ in range(3):
                await one.store.put(message())
            await one.sinks.drain()
            await one.sinks.look()
            await one.sinks.look()
            report = one.sinks.report()
            assert report["lines"] | {"oldest_age_s": 0} == {
                "waiting": 0, "oldest_age_s": 0, "delivered": 3, "failed": 0, "refused": 0, "error": "",
            }  # fmt: skip
            assert report["pager"]["refused"] == 1
            assert report["pager"]["failed"] == 1
            for result, count in (("ok", 2), ("retry", 1), ("rejected", 1)):
                assert one.metric("sink_deliveries_total", sink="pager", result=result) == count
            assert one.metric("sink_depth", sink="lines") == 0
            json.dumps(report)


async def test_without_sinks_there_is_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path, {"lines": {"type": "file"}}) as one:
        await one.store.put(message())
    async with desk(tmp_path, {}) as one:
        await one.sinks.look()
        await one.sinks.drain()
        assert one.sinks.report() == {}
        assert await one.store.sink_depth() == {}, "one that is not configured any more is forgotten"


async def test_places_that_are_gone_with_a_database_are_made_again(tmp_path: Path) -> None:
    async with desk(tmp_path, {"lines": {"type": "file"}}) as one:
        await one.store.put(message())
        await one.sinks.drain()
        await one.store.keep_sinks([])
        await one.sinks.look()
        await one.store.put(message())
        async with asyncio.timeout(10):
            while one.sinks.runners["lines"].stats.delivered < 2:
                await asyncio.sleep(0.01)


async def test_figures_of_a_disk_that_hangs_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.daemon.sinks, "STORE_PATIENCE_S", 0.05)
    async with desk(tmp_path, {"lines": {"type": "file"}}) as one:
        await one.store.put(message())
        await one.sinks.drain()
        await one.sinks.look()
        before, disk = one.sinks.report(), threading.Event()
        hanging = asyncio.create_task(one.store._ask(lambda _: disk.wait()))
        async with asyncio.timeout(5):
            await one.sinks.look()
        assert one.sinks.report() == before
        disk.set()
        await hanging
        await one.sinks.look()


async def test_a_stop_does_not_wait_long_for_a_receiver_that_hangs_nor_for_one_that_is_away(tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.always = hang
        async with desk(tmp_path, {"pager": webhook(tmp_path, receiver.url)}) as one:
            await one.store.put(message())
            while not receiver.seen:
                await asyncio.sleep(0.01)
            began_s = asyncio.get_running_loop().time()
            await one.sinks.drain()
            assert 1 < asyncio.get_running_loop().time() - began_s < 5
    async with desk(tmp_path, {"pager": webhook(tmp_path, "http://127.0.0.1:1/")}) as one:
        while not one.sinks.runners["pager"].stats.failed:
            await asyncio.sleep(0.01)
        began_s = asyncio.get_running_loop().time()
        await one.sinks.drain()
        assert asyncio.get_running_loop().time() - began_s < 1


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_credential_of_systemd_may_look_readable_and_nothing_else_may(tmp_path: Path, guarded: bool) -> None:
    async with receiving() as receiver:
        environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)} if guarded else {}
        async with desk(tmp_path, {"pager": webhook(tmp_path, receiver.url, 0o440)}, environ) as one:
            await one.store.put(message())
            async with asyncio.timeout(10):
                while not receiver.taken and not one.health.snapshot().reasons:
                    await asyncio.sleep(0.01)
            assert bool(receiver.taken) is guarded
            reasons = [reason.reason for reason in one.health.snapshot().reasons]
            assert reasons == ([] if guarded else ["part_failed:sink.pager"])
