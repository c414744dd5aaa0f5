"""The life of the further sinks: places in the history, a task for each, figures, a moment's grace at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from agent.config.schema import AgentConfig
from agent.daemon.monitor import STORE_PATIENCE_S
from agent.errors import StorageError
from agent.observe.metrics import Metrics
from agent.outbox.cursors import SinkDepth
from agent.outbox.store import OutboxStore
from agent.ports import HealthSink
from agent.private_files import credentials_of
from agent.sinks.build import build_sink
from agent.sinks.runner import SinkRunner, SinkStats

_GOODBYE_S = 1.5


class Sinks:
    """All sinks of the configuration. environ: names systemd's folder of credentials."""

    def __init__(
        self,
        config: AgentConfig,
        store: OutboxStore,
        *,
        health: HealthSink,
        metrics: Metrics,
        environ: Mapping[str, str],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._depth: dict[str, SinkDepth] = {}
        self._counted: dict[str, SinkStats] = {}
        credentials = credentials_of(environ)
        self.runners: dict[str, SinkRunner] = {}
        for name, sink in config.sinks.items():
            make = partial(build_sink, name, sink, state_dir=config.state_dir, credentials=credentials)
            self.runners[name] = SinkRunner(name, sink, store, make, health)

    async def open(self) -> None:
        """Before the first event: a new sink begins with it, one that is not configured any more is forgotten. Raises StorageError."""
        await self._store.keep_sinks(self.runners.keys())
        for runner in self.runners.values():
            self._store.on_commit(runner.wake)

    def start(self, start: Callable[[str, Callable[[], Coroutine[Any, Any, None]]], object]) -> None:
        """start: runs a part under a name, supervised."""
        for name, runner in self.runners.items():
            start(f"sink.{name}", runner.run)

    async def look(self) -> None:
        """Once a round: the figures. A database that cannot be read, or does not answer, leaves those of the round before."""
        if not self.runners:
            return
        try:
            async with asyncio.timeout(STORE_PATIENCE_S):
                self._depth = await self._store.sink_depth()
                if self._depth.keys() != self.runners.keys():  # a damaged database was replaced, and the places with it
                    await self._store.keep_sinks(self.runners.keys())
        except (StorageError, TimeoutError):
            return  # the monitor says so
        for name, runner in self.runners.items():
            now, before = runner.stats, self._counted.get(name, SinkStats())
            for result, delta in (
                ("ok", now.delivered - before.delivered),
                ("retry", now.failed - before.failed),
                ("rejected", now.refused - before.refused),
            ):
                self._metrics.count_sink(name, result, delta)
            depth = self._depth.get(name, SinkDepth(0, 0.0))
            self._metrics.set_sink(name, depth.numbers, depth.oldest_age_s)
            self._counted[name] = SinkStats(now.delivered, now.failed, now.refused)

    def report(self) -> dict[str, dict[str, object]]:
        """The member `sinks` of the health document."""
        return {
            name: {
                "waiting": self._depth[name].numbers if name in self._depth else 0,
                "oldest_age_s": round(self._depth[name].oldest_age_s, 1) if name in self._depth else 0.0,
                "delivered": runner.stats.delivered,
                "failed": runner.stats.failed,
                "refused": runner.stats.refused,
                "error": runner.stats.error,
            }
            for name, runner in self.runners.items()
        }

    async def drain(self) -> None:
        """Let those that can deliver what is waiting, for a moment; the rest comes after the next start."""
        deadline = asyncio.get_running_loop().time() + _GOODBYE_S
        while not all(runner.idle for runner in self.runners.values()):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.02)
