"""Secret keys in files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.errors import ConfigError, ConfigProblem

LEAST_KEY_BYTES = 32


def read_key(file: Path, path: str) -> bytes:
    """The key in `file`, without white space around it. path: of the configuration, for errors, which never hold the key.

    Raises ConfigError when it cannot be read, is not the agent's or root's own, may be read or written by others, or is too short.
    """
    try:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            key = opened.read().strip()
    except OSError as error:
        raise ConfigError([ConfigProblem(f"cannot read the key: {error}", path=path)]) from error
    if status.st_mode & (
        stat.S_IRWXO | stat.S_IWGRP
    ):  # the group may read: systemd's credentials have such access lists
        problem = ConfigProblem(f"{file}: others may read or write the key", path=path, hint="chmod 600")
    elif status.st_uid not in (os.geteuid(), 0):
        problem = ConfigProblem(f"{file}: belongs to another user", path=path, hint="chown to the agent's user")
    elif len(key) < LEAST_KEY_BYTES:
        text = f"the key has {len(key)} bytes, at least {LEAST_KEY_BYTES} are needed"
        problem = ConfigProblem(text, path=path, hint="openssl rand -hex 32 makes one")
    else:
        return key
    raise ConfigError([problem])
