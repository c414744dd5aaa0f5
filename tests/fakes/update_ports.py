"""What updates reach of an agent, where there is nothing of it but a configuration and trials."""

from __future__ import annotations

from agent.config.schema import AgentConfig
from agent.daemon.remote import Reloaded
from agent.daemon.updates import UpdatePorts
from agent.update.trials import Trials


def ports_of(config: AgentConfig, trials: Trials) -> UpdatePorts:
    """A reload changes nothing, and nobody is told."""

    async def reload() -> Reloaded:
        return Reloaded()

    return UpdatePorts(
        trials=trials, config=lambda: config, load=lambda: config, reload=reload, recognition=lambda: None,
        publish=lambda _: None,
    )  # fmt: skip
