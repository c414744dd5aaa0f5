"""What can be asked of a subscription, and what is made of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict
from urllib.parse import unquote, urlsplit

from paho.mqtt.enums import MQTTProtocolVersion

from agent.client.replay import Signer
from agent.client.transport import Broker, tls_context
from agent.masking import mask_userinfo

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_LEVEL = re.compile(r"\+|[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_BASE = re.compile(r"[^/+#$\x00][^+#$\x00]*(?<!/)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeOptions:
    """Everything but where to connect. Raises ValueError.

    device: one, or `+` for all. client_id: empty = the one in the state file, else a random one. state_file: where the
    subscriber stands, written after each item. ca_file: None = the system's authorities. window: messages that the broker
    may have unacknowledged (MQTT 5). session_expiry_s: how long the broker keeps what comes while the subscriber is away.
    reconnect_s: full-jitter waits, the first and the longest. grace_s: how long a missing number may still be on its way, while
    subscriber and device are connected and nothing comes into the hole. replay: ask the device for what is missing before it is
    reported; command_client, command_key_file: in whose name, and its key (docs/commands.md). signing_key_file: the devices'
    `mqtt.signing_key_file`, one for all or one for each device id: events that are not signed with it are `Unreadable`.
    max_holes, max_ids: memory per device, see `SequenceTracker`.
    """

    device: str = "+"
    base_topic: str = "recognizer"
    client_id: str = ""
    state_file: Path | str | None = None
    username: str = ""
    password: str = ""
    ca_file: Path | str | None = None
    cert_file: Path | str | None = None
    key_file: Path | str | None = None
    protocol: Literal["5", "3.1.1", 5] = "5"
    keepalive_s: int = 30
    window: int = 100
    session_expiry_s: int = 30 * 86_400
    reconnect_s: tuple[float, float] = (1.0, 30.0)
    grace_s: float = 60.0
    replay: bool = False
    replay_timeout_s: float = 20.0
    command_client: str = ""
    command_key_file: Path | str | None = None
    signing_key_file: Path | str | Mapping[str, Path | str] | None = None
    max_holes: int = 1000
    max_ids: int = 512

    def __post_init__(self) -> None:
        for name, value, pattern in (("device", self.device, _LEVEL), ("base_topic", self.base_topic, _BASE)):
            if not pattern.fullmatch(value):
                raise ValueError(f"{name}: {value!r} is not one (hint: a plain name; device: '+' for all)")
        if self.protocol not in ("5", "3.1.1", 5):
            raise ValueError(f"protocol: expected '5' or '3.1.1', got {self.protocol!r}")
        if self.protocol == "3.1.1" and self.signing_key_file is not None:
            raise ValueError("signing_key_file needs protocol 5, whose properties hold the signature")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if bool(self.command_client) != (self.command_key_file is not None):
            raise ValueError("command_client and command_key_file go together")
        for name, number, lowest in (
            ("grace_s", self.grace_s, 0.001), ("window", self.window, 1), ("reconnect_s", self.reconnect_s[0], 0.001),
            ("max_holes", self.max_holes, 2), ("max_ids", self.max_ids, 1),
        ):  # fmt: skip
            if number < lowest:
                raise ValueError(f"{name}: expected {lowest:g} or more, got {number:g}")

    def signer(self) -> Signer | None:
        """Who gives commands. Raises OSError (the key file)."""
        if self.command_key_file is None:
            return None
        return Signer(self.command_client, _key(self.command_key_file))

    def broker(self, url: str, kept_client_id: str) -> Broker:
        """Where `url` leads. Raises ValueError (the address), OSError (the TLS and key files)."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(f"{mask_userinfo(url)!r}: expected mqtt://[user:password@]host[:port] or mqtts://...")
        tls = None
        if parts.scheme == "mqtts":
            tls = tls_context(*(str(path) if path else None for path in (self.ca_file, self.cert_file, self.key_file)))
        elif self.ca_file or self.cert_file:  # whoever names them must not send a password in the clear
            raise ValueError("ca_file, cert_file and key_file are of TLS: expected mqtts://, got mqtt://")
        keeps_session = bool(self.client_id or self.state_file)
        return Broker(
            host=parts.hostname,
            port=parts.port or _PORTS[parts.scheme],
            client_id=self.client_id or kept_client_id or f"recognizer-subscriber-{uuid.uuid4().hex[:12]}",
            protocol=MQTTProtocolVersion.MQTTv311 if self.protocol == "3.1.1" else MQTTProtocolVersion.MQTTv5,
            username=self.username or unquote(parts.username or ""),
            password=self.password or unquote(parts.password or ""),
            tls=tls,
            keepalive_s=self.keepalive_s,
            window=self.window,
            session_expiry_s=self.session_expiry_s if keeps_session else 0,
            base_topic=self.base_topic,
            signing_keys=self._signing_keys(),
        )

    def _signing_keys(self) -> dict[str, bytes] | None:
        if self.signing_key_file is None:
            return None
        files = self.signing_key_file
        if isinstance(files, Path | str):
            files = {"+": files}
        return {device_id: _key(file) for device_id, file in files.items()}


def _key(file: Path | str) -> bytes:
    return Path(file).read_bytes().strip()


class OptionNames(TypedDict, total=False):
    """The fields of `SubscribeOptions`, for the signature of `subscribe`."""

    device: str
    base_topic: str
    client_id: str
    state_file: Path | str | None
    username: str
    password: str
    ca_file: Path | str | None
    cert_file: Path | str | None
    key_file: Path | str | None
    protocol: Literal["5", "3.1.1", 5]
    keepalive_s: int
    window: int
    session_expiry_s: int
    reconnect_s: tuple[float, float]
    grace_s: float
    replay: bool
    replay_timeout_s: float
    command_client: str
    command_key_file: Path | str | None
    signing_key_file: Path | str | Mapping[str, Path | str] | None
    max_holes: int
    max_ids: int
