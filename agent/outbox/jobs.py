"""What the event loop and the writer thread tell each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.errors import StorageError
from agent.outbox.database import OpenReport
from agent.outbox.tables import Tables
from agent.ports import Message
from agent.types import Lane, Loss, LossReason

# Plain tuples: there is one of each for every message.
Put = tuple[Message, "asyncio.Future[int | None]"]
"""A message to commit, and where its number is awaited."""
Answer = tuple["asyncio.Future[Any] | None", Any, BaseException | None]
"""Who waits (None = nobody), the result of the job, and the error, which wins."""


@dataclass(slots=True)
class Ask:
    """A function of the tables. writes: inside the transaction, answered after its commit; else on its own after it.

    reply: None = nobody waits.
    """

    function: Callable[[Tables], Any]
    reply: asyncio.Future[Any] | None
    writes: bool = False


@dataclass(slots=True)
class Jobs:
    """What the event loop hands over at a time.

    forget, attempts: row ids; lost: messages that their producers gave up, as lane and reason; done: the last sequence that each
    further sink is done with. Nobody waits for these.
    """

    puts: list[Put] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    forget: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    lost: list[tuple[Lane, LossReason]] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    stop: bool = False

    def add(self, more: Jobs) -> None:
        """Append `more`."""
        self.puts += more.puts
        self.asks += more.asks
        self.forget += more.forget
        self.attempts += more.attempts
        self.lost += more.lost
        self.done |= more.done
        self.stop = self.stop or more.stop

    def __bool__(self) -> bool:
        return bool(self.puts or self.asks or self.forget or self.attempts or self.lost or self.done or self.stop)


@dataclass(slots=True)
class Outcome:
    """News from the writer thread.

    answers: in the order of the jobs. newest: highest committed row id of each lane that got new rows.
    losses: what was given up, once that and its announcement are on disk.
    opened: the database was opened (at start, or again after an I/O error). stopped: the thread has ended; failure: why,
    when it could not even start. room: False = the disk is full and the reserve given up; True = a round of upkeep went
    through, and the disk is not full; None = no news.
    """

    answers: list[Answer] = field(default_factory=list)
    newest: dict[Lane, int] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    opened: OpenReport | None = None
    failure: StorageError | None = None
    stopped: bool = False
    room: bool | None = None
