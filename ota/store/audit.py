"""Who changed what: written with the change, never altered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, insert, select

from ota.store import tables
from ota.store.rows import AuditRow, Entry

_T = tables.audit.c


def add(connection: Connection, entry: Entry) -> None:
    connection.execute(
        insert(tables.audit).values(
            at_ms=entry.at_ms, who=entry.who, role=entry.role, address=entry.address, what=entry.what, subject=entry.subject,
            detail=dict(entry.detail),
        )
    )  # fmt: skip


def page(
    connection: Connection, *, limit: int, offset: int, who: str = "", what: str = ""
) -> tuple[list[AuditRow], int]:
    """Some entries, newest first, and how many there are. what: a kind (`device`) or one change (`device.create`)."""
    chosen: Any = select(tables.audit)
    if who:
        chosen = chosen.where(_T.who == who)
    if what:
        chosen = chosen.where((_T.what == what) | _T.what.startswith(f"{what}.", autoescape=True))
    total = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
    rows = connection.execute(chosen.order_by(_T.id.desc()).limit(limit).offset(offset))
    return [
        AuditRow(row.at_ms, row.who, row.role, row.address, row.what, row.subject, row.detail, row.id) for row in rows
    ], total
