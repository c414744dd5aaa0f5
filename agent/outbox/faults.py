"""Translates what SQLite and the file system say into the agent's storage errors."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from agent.errors import StorageError, StorageFullError

_PRIMARY = 0xFF  # an extended result code carries its primary code in the low byte
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HINTS = {
    sqlite3.SQLITE_READONLY: "the folder must be writable by the user that runs the agent",
    sqlite3.SQLITE_CANTOPEN: "the folder must exist and be writable by the user that runs the agent",
    sqlite3.SQLITE_PERM: "the file must be writable by the user that runs the agent",
    sqlite3.SQLITE_BUSY: "another program holds the write lock; is a second agent using this state_dir?",
}


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, so that it has to be set aside."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_broken_connection(error: sqlite3.Error) -> bool:
    """Whether the connection should be opened anew before the next commit."""
    return is_damage(error) or _code(error) in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


def storage_error(error: sqlite3.Error | OSError, path: Path) -> StorageError:
    """`error` as a StorageFullError or a StorageError that names the file and, where there is one, the remedy."""
    if isinstance(error, OSError):
        full = error.errno in _FULL
        hint = (
            _HINTS[sqlite3.SQLITE_READONLY] if isinstance(error, PermissionError) or error.errno == errno.EROFS else ""
        )
    else:
        code = _code(error)
        full = code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _disk_is_full(path))
        hint = _HINTS.get(code, "")
    if full:
        return StorageFullError(f"{path}: no room left on the disk ({error})")
    return StorageError(f"{path}: {error} (hint: {hint})" if hint else f"{path}: {error}")


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & _PRIMARY


def _disk_is_full(path: Path) -> bool:
    """SQLite reports a full disk as a plain I/O error where it grows its shared-memory file."""
    try:
        state = os.statvfs(path.parent)
    except OSError:
        return False
    return state.f_bavail * state.f_frsize < 64 * 1024 or state.f_favail == 0
