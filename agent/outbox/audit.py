"""Who asked for what, and what came of it, on a connection that somebody else owns."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from agent.outbox.moments import from_us

ACCEPTED = "accepted"
_REFUSED = "\n"
"""Behind the id of what was refused before it was accepted. It does not print, so no sender can choose it."""

_KNOWN = "SELECT command_id, name, client, role, arguments, t_us, state, answer FROM commands WHERE command_id = ?"
_LATEST = (
    "SELECT command_id, name, client, role, arguments, t_us, state, answer FROM commands ORDER BY t_us DESC LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command as recorded. command_id: as sent; arguments: JSON; state: `accepted` until there is an answer, then the answer's.

    client: empty = nobody signed it; role: empty = nothing of it was verified.
    """

    command_id: str
    name: str
    client: str
    role: str
    arguments: str
    t_utc: datetime
    state: str
    answer: bytes | None


def refused_id(command_id: str) -> str:
    """Under which a command that was never accepted is recorded: another each time, and the id of none that is accepted."""
    return f"{command_id}{_REFUSED}{uuid4()}"


class CommandLog:
    """Reads and writes of one connection; nothing here opens or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection, clock_us: Callable[[], int]) -> None:
        self._connection = connection
        self._clock_us = clock_us

    def accept(self, command_id: str, name: str, client: str, role: str, arguments: str) -> CommandEntry | None:
        """Record a command before it is carried out; the earlier entry when its id is known already."""
        known = self._connection.execute(_KNOWN, (command_id,)).fetchone()
        if known is not None:
            return _entry(known)
        self._connection.execute(
            "INSERT INTO commands (command_id, name, client, role, arguments, t_us, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (command_id, name, client, role, arguments, self._clock_us(), ACCEPTED),
        )
        return None

    def finish(self, command_id: str, state: str, answer: bytes) -> None:
        """Record what came of it."""
        self._connection.execute(
            "UPDATE commands SET state = ?, answer = ?, t_done_us = ? WHERE command_id = ?",
            (state, answer, self._clock_us(), command_id),
        )

    def purge(self, before_us: int, keep: int) -> None:
        """Forget what came before `before_us`, and all but the latest `keep`.

        Of commands that were refused unaccepted a tenth as many, whoever sent them: they must not push out the ids of those that
        were carried out. Those of earlier versions have no role.
        """
        self._connection.execute("DELETE FROM commands WHERE t_us < ?", (before_us,))
        for refused, most in ((True, keep // 10), (False, keep)):
            self._connection.execute(
                "DELETE FROM commands WHERE (role = '' OR instr(command_id, ?)) = ? AND t_us < "
                "(SELECT t_us FROM commands WHERE (role = '' OR instr(command_id, ?)) = ? ORDER BY t_us DESC LIMIT 1 OFFSET ?)",
                (_REFUSED, refused, _REFUSED, refused, most),
            )


def select_commands(connection: sqlite3.Connection, limit: int) -> list[CommandEntry]:
    """The latest, newest first."""
    rows = connection.execute(_LATEST, (limit,))
    return [_entry(row) for row in rows]


def _entry(row: tuple[str, str, str, str, str, int, str, bytes | None]) -> CommandEntry:
    command_id, name, client, role, arguments, t_us, state, answer = row
    return CommandEntry(command_id.partition(_REFUSED)[0], name, client, role, arguments, from_us(t_us), state, answer)
