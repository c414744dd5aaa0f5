"""What the writer does once a minute: old messages go, the file stays small. Used by the writer thread only."""

from __future__ import annotations

import time

from agent.config.delivery import CommandsConfig, OutboxConfig
from agent.outbox.clock import SteadyClock
from agent.outbox.limits import commands_most, commands_us, history_us, max_age_us
from agent.outbox.tables import Tables
from agent.types import Lane

_EVERY_S = 60.0
_TIGHT_EVERY_S = 5.0
_SOON_S = 1.0
_ROWS = 1000
_VACUUM_PAGES = 512
"""2 MB at a time: no commit waits long."""
_FREE_KEPT_BYTES = 4_000_000
"""Free pages that stay in the file for the next messages."""


class Upkeep:
    """Works in slices so that no commit waits long; due again soon when there is more. due_s: on the monotonic clock."""

    def __init__(self, clock: SteadyClock, commands: CommandsConfig) -> None:
        self.due_s = time.monotonic() + _EVERY_S
        self._clock = clock
        self._commands = commands
        self._purged_to = 0

    def begin(self, *, tight: bool) -> None:
        """A round begins. tight: the disk is full, and its end is to be noticed soon."""
        self.due_s = time.monotonic() + (_TIGHT_EVERY_S if tight else _EVERY_S)

    def give_up(self, tables: Tables, config: OutboxConfig, first_id: int) -> None:
        """Inside a transaction: messages that waited too long, and history that is too old or too much.

        first_id: of the messages of this process. Their history is not too old while the process is not, whatever they are stamped.
        """
        now_us, more = self._clock(), False
        kept_us = history_us(config)
        young = self._clock.running_us < kept_us
        for lane in Lane:
            more |= tables.expire(lane, now_us - max_age_us(config, lane), _ROWS) == _ROWS
        end = first_id if young else None
        last = tables.purge_history(now_us, kept_us, _ROWS, self._purged_to, end)
        self._purged_to = last or 0
        tables.commands.purge(now_us - commands_us(config, self._commands), commands_most(self._commands))
        if tables.used_bytes() > config.max_bytes:
            more |= tables.drop_history(_ROWS) == _ROWS
        if more or last is not None:
            self.due_s = time.monotonic() + _SOON_S

    def shrink(self, tables: Tables) -> None:
        """Outside a transaction: give free pages back to the file system. Raises sqlite3.Error."""
        excess = tables.free_bytes() - _FREE_KEPT_BYTES
        if excess > 0:
            tables.vacuum(_VACUUM_PAGES)
            self.due_s = min(self.due_s, time.monotonic() + _SOON_S)
