"""Secrets from files that nobody else can read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

_MAX_BYTES = 4096


def read_private(path: Path, credentials: Path | None) -> str:
    """The text of a file with a secret, without white space around it.

    credentials: systemd's folder of this service's credentials, if there is one; systemd guards what lies in it, with access
    lists that look like rights of a group. Every other file must be the agent's or root's, without rights for group and others.
    Raises OSError (PermissionError where the rights are too wide), ValueError; neither holds the secret.
    """
    guarded = _is_guarded(path, credentials)
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # a pipe without a writer must not be waited for
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        _require(status, guarded=guarded, too_much=0o077)
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    try:
        return content.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ValueError("not plain text") from None


def require_private(path: Path, credentials: Path | None) -> None:
    """For a key that a library reads by itself. As `read_private`, but root's file may be readable for a group (0640), which is how
    certificates' keys are shared between services. Raises OSError (PermissionError where the rights are too wide), ValueError.
    """
    status = path.stat()
    too_much = 0o037 if status.st_uid == 0 else 0o077
    _require(status, guarded=_is_guarded(path, credentials), too_much=too_much)


def credentials_of(environ: Mapping[str, str]) -> Path | None:
    """systemd's folder with this service's credentials."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None


def mark_of(path: Path) -> tuple[int, ...] | None:
    """Another one once the file was replaced, written, or its rights were changed; None while it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _require(status: os.stat_result, *, guarded: bool, too_much: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a file")
    if guarded:
        return
    if stat.S_IMODE(status.st_mode) & too_much:
        raise PermissionError(f"others can read or write it (mode {stat.S_IMODE(status.st_mode):04o})")
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError("it belongs to another user")


def _is_guarded(path: Path, credentials: Path | None) -> bool:
    return credentials is not None and path.absolute().parent == credentials.absolute()
