"""A copy of the event database while the agent writes it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from agent.durable import sync
from agent.errors import StorageError
from agent.outbox.faults import storage_error
from agent.outbox.files import beside, remove_database

_PAGES = 1024
"""Copied at a time; between two steps the agent can checkpoint."""


def back_up(database: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Copy `database` to `target`, one file, checked and synced before it gets its name; returns its size in bytes.

    The copy knows that it is one: an agent that is started on it goes on with numbers that were never given out, announces
    those in between, and sends again what was waiting when the copy was made. Only reads the original.
    progress: called with pages done and pages in all. Raises StorageError, StorageFullError; an existing `target` is refused.
    """
    if target.exists():
        raise StorageError(f"{target}: is there already (hint: choose a new name)")
    if not database.is_file():
        raise StorageError(f"{database}: no event database here (hint: check state_dir and outbox.file)")
    unfinished = beside(target, ".part")
    try:
        remove_database(unfinished)
        _copy(database, unfinished, progress)
        sync(unfinished)
        unfinished.rename(target)
        sync(target.absolute().parent)
        return target.stat().st_size
    except (sqlite3.Error, OSError) as error:
        raise storage_error(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            remove_database(unfinished)


def _copy(database: Path, unfinished: Path, progress: Callable[[int, int], None] | None) -> None:
    def report(_status: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(total - remaining, total)

    with (
        contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as copy,
    ):
        source.execute("BEGIN")  # one state of the database, however much is written meanwhile
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        source.backup(copy, pages=_PAGES, progress=report)
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.execute("UPDATE meta SET value = 1 WHERE key = 'copied'")
        (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise StorageError(f"{database}: damaged, no copy was made: {verdict}")
