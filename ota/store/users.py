"""Who may use the management interface."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from ota.store import tables
from ota.store.errors import ConflictError, MissingError
from ota.store.rows import Role, User

_T = tables.users.c


def of_row(row: Row[Any]) -> User:
    return User(row.id, row.name, Role(row.role), row.active, row.created_by, row.created_ms)


def find_by_token(connection: Connection, token_hash: str) -> User | None:
    """Only one that is active. The hash is of 256 random bits: looking it up tells nobody anything by the time it takes."""
    row = connection.execute(select(tables.users).where(_T.token_hash == token_hash, _T.active)).one_or_none()
    return of_row(row) if row is not None else None


def get(connection: Connection, name: str) -> User:
    """Raises MissingError."""
    row = connection.execute(select(tables.users).where(_T.name == name)).one_or_none()
    if row is None:
        raise MissingError("there is no such user")
    return of_row(row)


def all_of(connection: Connection) -> list[User]:
    return [of_row(row) for row in connection.execute(select(tables.users).order_by(_T.name))]


def create(connection: Connection, name: str, role: Role, token_hash: str, *, by: str, now_ms: int) -> User:
    """Raises ConflictError when there is one of that name."""
    if connection.execute(select(_T.id).where(_T.name == name)).first() is not None:
        raise ConflictError(f"there is a user {name} already")
    connection.execute(
        insert(tables.users).values(
            name=name, role=role, token_hash=token_hash, active=True, created_by=by, created_ms=now_ms
        )
    )
    return get(connection, name)


def change(
    connection: Connection,
    name: str,
    *,
    role: Role | None = None,
    active: bool | None = None,
    token_hash: str | None = None,
) -> User:
    """None: as it was. Raises MissingError, ConflictError when no active administrator would be left."""
    before = get(connection, name)
    values = {"role": role, "active": active, "token_hash": token_hash}
    given = {key: value for key, value in values.items() if value is not None}
    if given:
        connection.execute(update(tables.users).where(_T.id == before.id).values(**given))
    if admins(connection) == 0:
        raise ConflictError("the last administrator must stay one")
    return get(connection, name)


def admins(connection: Connection) -> int:
    """Active ones."""
    chosen = select(func.count()).select_from(tables.users).where(_T.role == Role.ADMIN, _T.active)
    return connection.execute(chosen).scalar_one()
