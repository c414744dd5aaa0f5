"""Settings that the server changes itself: the gateway token's hash, the repository's root in force."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from ota.store import tables

_T = tables.settings.c


def get(connection: Connection, key: str) -> Any:
    """None when it is not set."""
    return connection.execute(select(_T.value).where(_T.key == key)).scalar_one_or_none()


def put(connection: Connection, key: str, value: Any) -> None:
    """None: forget it."""
    if value is None:
        connection.execute(delete(tables.settings).where(_T.key == key))
    elif not connection.execute(update(tables.settings).where(_T.key == key).values(value=value)).rowcount:
        connection.execute(insert(tables.settings).values(key=key, value=value))
