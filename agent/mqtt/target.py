"""Where and as whom the agent connects, with the files that it needs for that."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass

from agent.config.delivery import MqttConfig, TlsConfig
from agent.errors import ConfigError, ConfigProblem
from agent.mqtt.topics import Topics
from agent.net import tls_client


@dataclass(frozen=True, slots=True)
class Target:
    """One connection to make. will_topic: gets `will_payload` when it is lost, retained where `will_retained`.

    session_expiry_s: how long the broker keeps subscriptions and messages for this client after the connection, 0 = not at
    all; fresh: forget the session there is. max_inbound_bytes: of a packet that the broker may send.
    """

    host: str
    port: int
    v5: bool
    client_id: str
    keepalive_s: int
    username: str
    password: str
    tls: ssl.SSLContext | None
    will_topic: str
    will_payload: bytes
    ack_timeout_s: float
    dead_after_s: float
    session_expiry_s: int = 0
    fresh: bool = True
    max_inbound_bytes: int = 65_536
    will_retained: bool = True


class TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho then forgets it open. For `SSLContext.sslsocket_class`."""

    def do_handshake(self, block: bool = False) -> None:
        """As in SSLSocket."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def default_client_id(topics: Topics) -> str:
    """Under each base topic another one: two clients of one id throw each other out.

    >>> default_client_id(Topics("recognizer", "gate-1")), default_client_id(Topics("site-a", "gate-1"))
    ('recognizer-gate-1', 'recognizer-gate-1-d74a1ffe')
    """
    plain = f"recognizer-{topics.device}"
    if topics.base == MqttConfig.model_fields["base_topic"].default:
        return plain
    return f"{plain}-{hashlib.sha256(topics.base.encode()).hexdigest()[:8]}"


def read_password(config: MqttConfig) -> str:
    """Raises ConfigError when the file cannot be read."""
    if config.password_file is None:
        return config.password
    try:
        return config.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([ConfigProblem(f"cannot read the password: {error}", path="mqtt.password_file")]) from error


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """Raises ConfigError when a file cannot be used."""
    context = tls_client(tls, "mqtt.tls")
    context.sslsocket_class = TlsSocket
    return context
