"""A database and what SQLite keeps beside it."""

from __future__ import annotations

from pathlib import Path

SIDES = ("-wal", "-shm")
"""What SQLite keeps beside a database."""


def beside(path: Path, suffix: str) -> Path:
    """`events.db` and `-wal` give `events.db-wal`."""
    return path.with_name(path.name + suffix)


def remove_database(path: Path) -> None:
    """Delete a database and its side files, if they are there."""
    for suffix in (*SIDES, ""):
        beside(path, suffix).unlink(missing_ok=True)
