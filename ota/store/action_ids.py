"""Ids of actions: a device knows an update by its id alone, so that none may stand for two."""

from __future__ import annotations

from sqlalchemy import Connection, text

_SINCE_MS = 1_704_067_200_000
"""2024 begins: seconds since then fit into 31 bits until 2092, should a foreign client have no more for an id."""
_SEQUENCE = "pg_get_serial_sequence('actions', 'id')"
_STATEMENTS = {
    "sqlite": (
        "UPDATE sqlite_sequence SET seq = :last WHERE name = 'actions' AND seq < :last",
        """INSERT INTO sqlite_sequence (name, seq)
        SELECT 'actions', :last WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'actions')""",
    ),
    "postgresql": (
        "LOCK TABLE actions IN SHARE ROW EXCLUSIVE MODE",  # nobody takes an id meanwhile
        f"SELECT setval({_SEQUENCE}, :last) WHERE coalesce(pg_sequence_last_value(CAST({_SEQUENCE} AS regclass)), 0) < :last",
    ),
}


def skip_those_given(connection: Connection, now_ms: int) -> None:
    """At a start: ids go on from the clock unless they are beyond it. A database that was begun anew, or comes from a backup, then gives
    none that it gave before, as long as there are fewer actions than seconds."""
    last = (now_ms - _SINCE_MS) // 1000
    if last < 1:
        return
    for statement in _STATEMENTS[connection.dialect.name]:
        connection.execute(text(statement), {"last": last} if ":last" in statement else {})
