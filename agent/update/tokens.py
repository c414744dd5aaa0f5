"""The device's proof of who it is, from a file that nobody else can read."""

from __future__ import annotations

from pathlib import Path

from agent.config.update import UpdateConfig
from agent.errors import ConfigError, ConfigProblem
from agent.private_files import read_private


def authorization(config: UpdateConfig, credentials: Path | None) -> str:
    """The header `Authorization`; empty when no token is configured. credentials: see `read_private`.

    Raises ConfigError, which never holds the token.
    """
    for kind, key, path in (
        ("TargetToken", "token_file", config.token_file),
        ("GatewayToken", "gateway_token_file", config.gateway_token_file),
    ):
        if path is not None:
            return f"{kind} {_read(path, key, credentials)}"
    return ""


def _read(path: Path, key: str, credentials: Path | None) -> str:
    try:
        return _one_word(read_private(path, credentials))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        hint = f"the server's token, alone; chmod 600 {path}, owned by the agent's user"
        raise ConfigError([ConfigProblem(f"{path}: {why}", path=f"update.{key}", hint=hint)]) from None


def _one_word(text: str) -> str:
    if not text or any(sign.isspace() for sign in text):
        raise ValueError("empty, or more than one word")
    return text
