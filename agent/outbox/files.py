"""Names on disk that survive a power cut."""

from __future__ import annotations

import os
from pathlib import Path

SIDES = ("-wal", "-shm")
"""What SQLite keeps beside a database."""


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(path: Path, suffix: str) -> Path:
    """`events.db` and `-wal` give `events.db-wal`."""
    return path.with_name(path.name + suffix)


def remove_database(path: Path) -> None:
    """Delete a database and its side files, if they are there."""
    for suffix in (*SIDES, ""):
        beside(path, suffix).unlink(missing_ok=True)
