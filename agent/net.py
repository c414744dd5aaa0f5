"""Is there room to listen? And what a TLS client needs."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from agent.config.delivery import TlsConfig
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


def tls_client(tls: TlsConfig, key: str) -> ssl.SSLContext:
    """The context of a TLS client. key: of `tls` in the configuration. Raises ConfigError when a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except OSError as error:
        raise ConfigError([ConfigProblem(f"{tls.ca_file}: {error}", path=f"{key}.ca_file")]) from error
    context.check_hostname = tls.verify_hostname
    if tls.cert_file is not None:
        show_certificate(context, tls.cert_file, tls.key_file, f"{key}.cert_file")
    return context


def show_certificate(context: ssl.SSLContext, cert: Path, key: Path | None, setting: str) -> None:
    """The certificate that this side shows. setting: for errors. Raises ConfigError when a file cannot be used."""
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        message = f"{cert}, {key}: {error}"
        hint = "a PEM certificate with its unencrypted PEM key"
        raise ConfigError([ConfigProblem(message, path=setting, hint=hint)]) from error


def _no_passphrase() -> str:
    """Without this OpenSSL would ask at the terminal, and wait."""
    raise ValueError("the key is encrypted")
