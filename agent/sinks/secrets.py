"""Secrets from files that nobody else can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.errors import ConfigError, ConfigProblem
from agent.sinks.signature import parse_secret

_MAX_BYTES = 4096


def read_secret(path: Path, key: str, credentials: Path | None) -> bytes:
    """The webhook secret in `path`. key: of the configuration, for errors.

    credentials: systemd's folder of this service's credentials, if there is one; systemd guards what lies in it, with access
    lists that look like rights of a group. Every other file must be the agent's or root's, without rights for group and others.
    Raises ConfigError, which never holds the secret.
    """
    try:
        text = _read(path, guarded=credentials is not None and path.absolute().parent == credentials.absolute())
        return parse_secret(text.strip())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        hint = "make one: python3 -c \"import secrets, base64; print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
        if isinstance(error, PermissionError):
            hint = f"chmod 600 {path}; owned by the agent's user"
        raise ConfigError([ConfigProblem(f"{path}: {why}", path=key, hint=hint)]) from None


def _read(path: Path, *, guarded: bool) -> str:
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # a pipe without a writer must not be waited for
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if not guarded and stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"others can read or write it (mode {stat.S_IMODE(status.st_mode):04o})")
        if not guarded and status.st_uid not in (os.geteuid(), 0):
            raise PermissionError("it belongs to another user")
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError("not plain text") from None
