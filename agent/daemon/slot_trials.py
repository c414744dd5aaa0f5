"""Trials of every slot: models by whoever runs them, the configuration by laying it over the operator's and reloading."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.config.layer import lay_over
from agent.config.reload import compare
from agent.config.schema import AgentConfig
from agent.daemon.remote import Reloaded
from agent.errors import ConfigError
from agent.update.models import CONFIGURATION
from agent.update.trials import Candidate, Figures, Ready, Refusal, Tell, Trials


class SlotTrials:
    """Implements `Trials`.

    models: for every other slot. load: the operator's configuration without what was sent; current: the one in use; reload: reads
    everything again; linked: the configuration that should serve as the disk has it, None = none was sent; raises ConfigError.
    """

    def __init__(
        self,
        models: Trials,
        *,
        load: Callable[[], AgentConfig],
        current: Callable[[], AgentConfig],
        reload: Callable[[], Awaitable[Reloaded]],
        linked: Callable[[], Path | None],
    ) -> None:
        self._models = models
        self._load = load
        self._current = current
        self._reload = reload
        self._linked = linked
        self._layer: Path | None = None
        self._refused = False

    @property
    def layer(self) -> Path | None:
        """The file that the next reload lays over the operator's, None = none. Raises ConfigError.

        After a reload that was refused the links decide: whoever wished for it goes back, stays gone back, or tries something else, and
        lets them say so; what is in force by then may be none of it.
        """
        return self._linked() if self._refused else self._layer

    @layer.setter
    def layer(self, path: Path | None) -> None:
        self._layer, self._refused = path, False

    def not_now(self, *, back: bool = False) -> str:
        """As `Trials`."""
        return self._models.not_now(back=back)

    def running(self, slot: str) -> Path | None:
        """As `Trials`; None also for a configuration of which that is not sure."""
        if slot != CONFIGURATION:
            return self._models.running(slot)
        return None if self._refused else self._layer

    async def validate(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """As `Trials`; a configuration is checked as `check-config` would, and that nothing in it is the device's own."""
        if candidate.release.slot != CONFIGURATION:
            return await self._models.validate(candidate, tell)
        try:
            wanted = await asyncio.to_thread(lambda: lay_over(self._load(), candidate.path))
        except ConfigError as error:
            return Refusal("configuration", str(error))
        return {"changed_keys": len(compare(self._current(), wanted).live)}

    async def shadow(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """As `Trials`; nothing to be seen of a configuration."""
        return {} if candidate.release.slot == CONFIGURATION else await self._models.shadow(candidate, tell)

    async def install(self, slot: str, path: Path | None, ready: Ready | None = None) -> Figures:
        """As `Trials`."""
        if slot != CONFIGURATION:
            return await self._models.install(slot, path, ready)
        self.layer = path
        outcome = await self._reload()
        if outcome.error:
            self._refused = True
            raise ConfigError(outcome.error)
        return {"needs_restart": len(outcome.needs_restart)}

    def let_go(self, slot: str) -> None:
        """As `Trials`."""
        if slot != CONFIGURATION:
            self._models.let_go(slot)

    async def watch(self, candidate: Candidate, tell: Tell) -> Figures | Refusal:
        """As `Trials`."""
        return await self._models.watch(candidate, tell)
