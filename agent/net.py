"""Is there room to listen?"""

from __future__ import annotations

import socket

from agent.errors import ConfigError, ConfigProblem


def free_port(host: str) -> int:
    """A port of `host` that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_free(host: str, port: int) -> None:
    """Try to listen on `host`:`port` for a moment; port 0 always works. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def require_free(host: str, port: int, key: str) -> None:
    """As `check_free`. Raises ConfigError that names `key`, the configuration's or the option."""
    try:
        check_free(host, port)
    except OSError as error:
        hint = "stop the program that uses it, or choose another port"
        raise ConfigError([ConfigProblem(f"{host}:{port}: {error.strerror}", path=key, hint=hint)]) from error
