"""The copy of a database from before its schema was changed, beside it, with which the agent before can go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from agent.errors import StorageFullError

_SUFFIX = ".schema-"


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
