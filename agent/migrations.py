"""Schemas of the agent's databases: their migrations, and the copy from before one, with which the agent before can go on."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

from agent.errors import StorageFullError

_SUFFIX = ".schema-"


def migrations_of(package: str) -> list[tuple[int, str]]:
    """Number and script of each migration in `package`, in their order."""
    return sorted(
        (int(file.name.partition("_")[0]), file.read_text(encoding="utf-8"))
        for file in resources.files(package).iterdir()
        if file.name.endswith(".sql")
    )


def advance(connection: sqlite3.Connection, migrations: Iterable[tuple[int, str]], version: int) -> None:
    """Those after `version`: each and its `user_version` are one transaction. Raises sqlite3.Error."""
    for number, script in migrations:
        if number <= version:
            continue
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.rollback()
            raise


def place_of(database: Path, version: int) -> Path:
    """Where the copy with that schema is, or would be."""
    return database.with_name(f"{database.name}{_SUFFIX}{version}")


def written_by_a_newer_agent(what: str, database: Path, version: int, newest: int) -> str:
    """What to say, and what helps, when `database` has a schema that this agent, which knows those up to `newest`, does not know."""
    candidates = (place_of(database, known) for known in range(newest, 0, -1))
    copy = next((file for file in candidates if file.is_file()), None)
    way = f"put {copy.name}, the copy from before, in its place (docs/operations.md)" if copy else "move the file away"
    hint = f"it was written by a newer agent; go back to that version or {way}"
    return f"{what} has schema {version}, this agent knows {newest} (hint: {hint})"


def keep(database: Path, version: int, make: Callable[[Path], None]) -> None:
    """Have `make` write the copy of a database with that schema; it takes the place of copies with others.

    Raises StorageFullError where the disk has no room for both it and the migration, OSError, and what `make` raises:
    what there was stays then.
    """
    need, free = 2 * database.stat().st_size, shutil.disk_usage(database.parent).free
    if free < need:
        raise StorageFullError(f"{database}: {free / 1e6:,.1f} MB free, {need / 1e6:,.1f} MB needed")
    target = place_of(database, version)
    make(target)
    for other in database.parent.glob(f"{database.name}{_SUFFIX}*"):
        if other != target:
            other.unlink()
