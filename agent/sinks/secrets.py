"""The webhook's secret, from a file that nobody else can read."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ConfigError, ConfigProblem
from agent.private_files import read_private
from agent.sinks.signature import parse_secret


def read_secret(path: Path, key: str, credentials: Path | None) -> bytes:
    """The webhook secret in `path`. key: of the configuration, for errors; credentials: see `read_private`.

    Raises ConfigError, which never holds the secret.
    """
    try:
        return parse_secret(read_private(path, credentials))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        hint = "make one: python3 -c \"import secrets, base64; print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
        if isinstance(error, PermissionError):
            hint = f"chmod 600 {path}; owned by the agent's user"
        raise ConfigError([ConfigProblem(f"{path}: {why}", path=key, hint=hint)]) from None
