"""The part of the configuration that events leave by: event database, broker, further sinks, commands."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from agent.config.paths import ConfigPath
from agent.config.sections import LIVE, BackoffConfig, Name, NonNegative, Positive, Section


class OutboxConfig(Section):
    """The event database."""

    file: str = "events.db"
    """Relative to `state_dir`."""
    commit_max_rows: int = Field(default=200, ge=1, le=10_000)
    commit_max_wait_ms: NonNegative = 2.0
    """Group commit: how long the writer gathers before it commits."""
    history_days: Positive = Field(default=30.0, le=36_500, json_schema_extra=LIVE)
    max_bytes: int = Field(default=2_000_000_000, ge=1_000_000, json_schema_extra=LIVE)
    """Of the database file; above it the oldest delivered events leave the history early."""
    reserve_bytes: int = Field(default=16_777_216, ge=0)
    """Disk space set aside for the moment when the disk is full, so that alarms still fit; 0 = none."""
    alarm_max_age_s: Positive = Field(default=2_592_000.0, json_schema_extra=LIVE)
    """What waits longer is given up, and announced as a gap."""
    event_max_age_s: Positive = Field(default=2_592_000.0, json_schema_extra=LIVE)
    state_max_age_s: Positive = Field(default=3600.0, json_schema_extra=LIVE)
    telemetry_max_age_s: Positive = Field(default=600.0, json_schema_extra=LIVE)
    alarm_max_bytes: int = Field(default=256_000_000, ge=100_000, json_schema_extra=LIVE)
    """Of the payloads that wait in a lane; above it the oldest are given up, and announced as a gap."""
    event_max_bytes: int = Field(default=512_000_000, ge=100_000, json_schema_extra=LIVE)
    state_max_bytes: int = Field(default=16_000_000, ge=100_000, json_schema_extra=LIVE)
    telemetry_max_bytes: int = Field(default=32_000_000, ge=100_000, json_schema_extra=LIVE)


class TlsConfig(Section):
    """TLS towards the broker, or the receiver of a webhook."""

    ca_file: ConfigPath | None = None
    """Absent = the system's authorities."""
    cert_file: ConfigPath | None = None
    key_file: ConfigPath | None = None
    verify_hostname: bool = True

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class DiscoveryConfig(Section):
    """Home Assistant's discovery (docs/home-assistant.md)."""

    enabled: bool = False
    prefix: str = Field(default="homeassistant", pattern=r"^[^/+#$\x00]([^+#$\x00]*[^/+#$\x00])?$")
    """As set in Home Assistant's MQTT integration."""


class MqttConfig(Section):
    """The broker."""

    enabled: bool = True
    host: str = "127.0.0.1"
    """Name or address alone."""
    port: int = Field(default=1883, ge=1, le=65535)
    protocol: Literal["3.1.1", "5"] = "5"
    client_id: str = ""
    """Empty = `recognizer-<device id>`; where `base_topic` is not the default, with eight characters more that stand for it."""
    username: str = ""
    password: str = Field(default="", repr=False)
    password_file: ConfigPath | None = None
    tls: TlsConfig | None = None
    base_topic: str = "recognizer"
    keepalive_s: int = Field(default=30, ge=5, le=3600)
    max_in_flight: int = Field(default=20, ge=1, le=1000)
    publish_timeout_s: Positive = 20.0
    """Without any acknowledgement for so long the connection is given up; one message may wait three times as long."""
    dead_after_s: Positive = 5.0
    """A connection over which nothing that was sent has reached the broker's host for so long is given up (TCP_USER_TIMEOUT)."""
    discovery: DiscoveryConfig = DiscoveryConfig()
    reconnect: BackoffConfig = BackoffConfig()
    spread_s: NonNegative = 2.0
    """After a lost connection each device waits its own, always equal share of this, on top of `reconnect`: the devices of a
    site do not all come back in the same moment."""
    session_expiry_s: int = Field(default=3600, ge=0, le=4_294_967_295)
    """How long the broker keeps what was sent to a device that is away (MQTT 3.1.1: for ever); 0 = not at all."""
    inbound_max_bytes: int = Field(default=65_536, ge=1024, le=1_048_576)
    """Larger messages to the agent are dropped and counted."""
    inbound_max_per_s: Positive = 20.0
    """Messages to the agent above this rate are dropped and counted."""
    max_bytes_per_s: NonNegative = Field(default=0.0, json_schema_extra=LIVE)
    """For metered links: bound on topics and payloads sent; 0 = none. Alarms do not wait for anything but alarms."""
    give_up_after: int = Field(default=10, ge=1)
    """A message that the broker refuses without a reason (0x80, 0x83) this often, over `give_up_after_s`, while it takes others,
    becomes a dead letter."""
    give_up_after_s: NonNegative = 300.0
    compression: Literal["none", "deflate", "gzip"] = "none"
    """Of events from 256 bytes on; every subscriber must know it (MQTT 5)."""
    signing_key_file: ConfigPath | None = None
    """Key of at least 32 bytes by which events are signed (MQTT 5); absent = no signature."""

    @model_validator(mode="after")
    def _seals_need_properties(self) -> Self:
        if self.protocol != "5" and (self.compression != "none" or self.signing_key_file is not None):
            raise ValueError("compression and signing_key_file need protocol 5, whose properties name them")
        return self

    @field_validator("protocol", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("host")
    @classmethod
    def _no_url(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("must be a name or an address alone, no URL: port and tls are keys of their own")
        return value

    @field_validator("base_topic")
    @classmethod
    def _plain_topic(cls, value: str) -> str:
        if not value or value.startswith("/") or value.endswith("/") or re.search(r"[+#$\x00]", value):
            raise ValueError("must not be empty, start or end with '/', or hold '+', '#', '$'")
        return value


# --- further sinks ----------------------------------------------------------------------------------------------------


class SinkBackoffConfig(BackoffConfig):
    """After a delivery that failed for the moment, as for cameras."""

    max_s: Positive = 300.0


class SinkBase(Section):
    """What all sinks have in common (docs/sinks.md)."""

    lanes: tuple[Literal["alarm", "event"], ...] = Field(default=("alarm", "event"), min_length=1)
    """Only these are delivered. Announcements of losses pass every filter."""
    kinds: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Only events of these kinds are delivered, such as `fight`; absent = all."""
    backoff: SinkBackoffConfig = SinkBackoffConfig()
    give_up_after: int = Field(default=500, ge=0)
    """An event that the other side answers with an error of its own this often is given up, and announced as a gap; 0 = never.
    Failures of the network do not count. With the waits of `backoff` the default takes most of a day."""


class WebhookSinkConfig(SinkBase):
    """One HTTP POST for each event, signed as Standard Webhooks says."""

    type: Literal["webhook"]
    url: str = Field(repr=False)
    """http:// or https://"""
    secret_files: tuple[ConfigPath, ...] = Field(min_length=1, max_length=8)
    """Each holds one secret, `whsec_` and 24 to 64 bytes in base64, and is readable by its owner alone or is a systemd credential.
    Each makes a signature: name the new and the old one while they change."""
    timeout_s: Positive = 15.0
    """From the first attempt to connect to the answer."""
    tls: TlsConfig | None = None
    """Absent = the system's authorities and no certificate of our own."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not re.fullmatch(r"(?i)https?://[^\s/?#@]+(/[^\s#]*)?(\?[^\s#]*)?", value):
            raise ValueError("must be an http:// or https:// URL without user, password and fragment")
        return value


class FileSinkConfig(SinkBase):
    """JSON lines in a file, on disk before an event counts as delivered."""

    type: Literal["file"]
    path: str = Field(default="events.jsonl", pattern=r"^.*[^/]\.jsonl$")
    """Relative to `state_dir`; ends in `.jsonl`."""
    max_bytes: int = Field(default=50_000_000, ge=10_000)
    """A file that would grow above this is renamed to `<path>.1`, that one to `<path>.2`, and so on."""
    keep_files: int = Field(default=5, ge=1, le=1000)
    """How many renamed files stay."""


class PluginSinkConfig(SinkBase):
    """A sink that another package brings."""

    type: Literal["plugin"]
    plugin: Name
    """Name of an entry point in the group `recognizer_agent.sinks`."""
    timeout_s: Positive = 30.0
    """For one delivery."""
    options: dict[str, Any] = {}
    """Handed to the plug-in as they are."""


SinkConfig = Annotated[WebhookSinkConfig | FileSinkConfig | PluginSinkConfig, Field(discriminator="type")]

# --- commands ---------------------------------------------------------------------------------------------------------


Role = Literal["viewer", "operator", "admin"]


class CommandClient(Section):
    """Somebody who may give commands, known by the key that signs them."""

    role: Role
    key_file: ConfigPath
    """At least 32 bytes, readable by the agent alone."""


class CommandsConfig(Section):
    """Commands over MQTT (docs/commands.md)."""

    enabled: bool = False
    unsigned_role: Literal["none", "viewer", "operator", "admin"] = "none"
    """Of a command without a signature: whoever the broker lets publish to `cmd/+` has this role."""
    clients: dict[Name, CommandClient] = {}
    roles: dict[Role, tuple[str, ...]] = {
        "viewer": ("snapshot",),
        "operator": ("snapshot", "set-level", "replay-events", "self-test", "accept-view", "ota-check"),
        "admin": ("snapshot", "set-level", "replay-events", "self-test", "accept-view", "ota-check", "reload"),
    }
    """What each may command."""
    max_per_minute: int = Field(default=30, ge=1)
    max_validity_s: Positive = 86_400.0
    """A command must expire within this time."""
