"""What the agent looks at again and again, at the pace of its probes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.daemon.upkeep import Upkeep
from agent.daemon.view import View
from agent.http.server import describe

if TYPE_CHECKING:
    from agent.app import Agent


class Rounds:
    """The monitor's rounds, and what is due at the same pace."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._upkeep = Upkeep(agent.health, agent.metrics)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._round()
            await asyncio.sleep(self._agent.config.health.probe_interval_s)

    async def _round(self) -> None:
        agent = self._agent
        agent.watching.look()
        if agent.delivery is not None:
            oldest_age_s = agent.monitor.outbox.oldest_age_s  # of the round before
            self._upkeep.look_at_delivery(
                agent.delivery.stats, connected=agent.delivery.connected, oldest_age_s=oldest_age_s
            )
        if agent.recognition is not None:
            self._upkeep.look_at_models(agent.recognition.slots)
            await agent.drift.round(agent.recognition.slots)
        await agent.viewpoints.round()
        self._upkeep.look_at_evidence(agent.evidence_writer.stats)
        await agent.sinks.look()
        self._upkeep.let_go()
        await agent.monitor.round()
        agent.notifier.status(describe(View(agent).state()))
