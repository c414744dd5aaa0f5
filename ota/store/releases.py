"""Releases, as the signed targets name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from agent.update.release import Release
from ota.store import tables
from ota.store.errors import MissingError
from ota.store.rows import ReleaseRow

_T = tables.releases.c


def of_row(row: Row[Any]) -> ReleaseRow:
    return ReleaseRow(
        row.id, row.slot, row.name, row.version, row.number, row.target, row.length, row.sha256, row.sha1, row.md5, row.custom,
        row.created_ms, row.available,
    )  # fmt: skip


def get(connection: Connection, release_id: int) -> ReleaseRow:
    """Raises MissingError."""
    row = connection.execute(select(tables.releases).where(_T.id == release_id)).one_or_none()
    if row is None:
        raise MissingError("there is no such release")
    return of_row(row)


def find(connection: Connection, name: str, version: str) -> ReleaseRow:
    """Raises MissingError."""
    chosen = select(tables.releases).where(_T.name == name, _T.version == version, _T.available)
    row = connection.execute(chosen.order_by(_T.id.desc()).limit(1)).one_or_none()
    if row is None:
        raise MissingError("there is no such release")
    return of_row(row)


def of_title(connection: Connection, slot: str, name: str, version: str) -> ReleaseRow | None:
    """The latest of that name in a slot, also one that is gone from the signed targets."""
    chosen = select(tables.releases).where(_T.slot == slot, _T.name == name, _T.version == version)
    row = connection.execute(chosen.order_by(_T.id.desc()).limit(1)).one_or_none()
    return of_row(row) if row is not None else None


def many(connection: Connection, release_ids: Sequence[int]) -> dict[int, ReleaseRow]:
    rows = connection.execute(select(tables.releases).where(_T.id.in_(set(release_ids))))
    return {row.id: of_row(row) for row in rows}


def page(
    connection: Connection, *, limit: int, offset: int, slot: str = "", all_of_them: bool = False
) -> tuple[list[ReleaseRow], int]:
    """Some releases, highest number of each slot first, and how many there are. all_of_them: also those that are gone."""
    chosen = select(tables.releases)
    if slot:
        chosen = chosen.where(_T.slot == slot)
    if not all_of_them:
        chosen = chosen.where(_T.available)
    total = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
    rows = connection.execute(chosen.order_by(_T.slot, _T.number.desc(), _T.id.desc()).limit(limit).offset(offset))
    return [of_row(row) for row in rows], total


def known(connection: Connection) -> dict[tuple[str, str], ReleaseRow]:
    """All of them, by target path and SHA-256."""
    return {(row.target, row.sha256): of_row(row) for row in connection.execute(select(tables.releases))}


def add(
    connection: Connection, release: Release, *, target: str, length: int, sha256: str, sha1: str, md5: str, now_ms: int
) -> ReleaseRow:
    statement = insert(tables.releases).values(
        slot=release.slot, name=release.name, version=release.version, number=release.number, target=target, length=length,
        sha256=sha256, sha1=sha1, md5=md5, custom=release.model_dump(mode="json"), created_ms=now_ms, available=True,
    )  # fmt: skip
    return of_row(connection.execute(statement.returning(tables.releases)).one())


def says(row: ReleaseRow, release: Release) -> bool:
    """Whether a row is what was signed last: the same bytes may be signed anew, under another number and with other conditions."""
    return (row.number, row.custom) == (release.number, release.model_dump(mode="json"))


def sign_anew(connection: Connection, release_id: int, release: Release) -> ReleaseRow:
    """What is signed of the same bytes now takes the place of what was."""
    changed = update(tables.releases).where(_T.id == release_id)
    values = {"number": release.number, "custom": release.model_dump(mode="json")}
    return of_row(connection.execute(changed.values(**values).returning(tables.releases)).one())


def set_available(connection: Connection, release_id: int, available: bool) -> None:
    connection.execute(update(tables.releases).where(_T.id == release_id).values(available=available))
