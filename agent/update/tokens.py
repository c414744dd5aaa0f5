"""The device's proof of who it is, from files that nobody else can read."""

from __future__ import annotations

from pathlib import Path

from agent.config.update import UpdateConfig
from agent.errors import ConfigError, ConfigProblem
from agent.net import tls_client
from agent.private_files import mark_of, read_private, require_private
from agent.transfer.tls import Tls

Mark = tuple[tuple[int, ...] | None, ...]


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


def client_tls(config: UpdateConfig, credentials: Path | None) -> Tls:
    """What connections to the server and the repository are made with. credentials: see `read_private`. Raises ConfigError."""
    tls = config.tls
    if tls is None:
        return Tls(None, "update.tls.ca_file (or SSL_CERT_FILE)", "update.tls.cert_file: none is set")
    if tls.key_file is not None:
        _require_private_key(tls.key_file, credentials)
    authority = f"update.tls.ca_file ({tls.ca_file})" if tls.ca_file else "update.tls.ca_file (or SSL_CERT_FILE)"
    certificate = f"update.tls.cert_file ({tls.cert_file})" if tls.cert_file else "update.tls.cert_file: none is set"
    return Tls(tls_client(tls, "update.tls"), authority, certificate)


def _require_private_key(path: Path, credentials: Path | None) -> None:
    try:
        require_private(path, credentials)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        hint = f"chmod 600 {path}, owned by the agent's user; or one of systemd's credentials"
        raise ConfigError([ConfigProblem(f"{path}: {why}", path="update.tls.key_file", hint=hint)]) from None


def mark(config: UpdateConfig) -> Mark:
    """Another one once a token or a certificate was renewed on the disk, or its rights were changed."""
    tls = config.tls
    paths = (config.token_file, config.gateway_token_file, *((tls.ca_file, tls.cert_file, tls.key_file) if tls else ()))
    return tuple(mark_of(path) if path is not None else None for path in paths)
