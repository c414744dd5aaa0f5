"""The part of the configuration that says from where models may come, and when."""

from __future__ import annotations

from datetime import datetime, time
from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator, model_validator

from agent.config.delivery import TlsConfig
from agent.config.paths import ConfigPath
from agent.config.sections import LIVE, Name, NonNegative, Positive, Section
from agent.hosts import is_loopback

Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
ClockTime = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class MaintenanceWindow(Section):
    """When models may be swapped, in the local time of the device. One that ends before it begins goes on past midnight."""

    weekdays: tuple[Weekday, ...] = Field(default=WEEKDAYS, min_length=1)
    """On which it begins."""
    start: ClockTime
    """`22:30`; quote it, YAML takes some times for numbers."""
    end: ClockTime

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if self.start == self.end:
            raise ValueError("start and end must differ")
        return self

    def contains(self, local: datetime) -> bool:
        """Whether the window is open at `local`, a time of the device's zone."""
        start, end, now = time.fromisoformat(self.start), time.fromisoformat(self.end), local.time()
        today, yesterday = WEEKDAYS[local.weekday()], WEEKDAYS[local.weekday() - 1]
        if start < end:
            return today in self.weekdays and start <= now < end
        return (today in self.weekdays and now >= start) or (yesterday in self.weekdays and now < end)


class UpdateConfig(Section):
    """Models over the air (docs/ota.md)."""

    enabled: bool = False
    server: str = ""
    """URL of the fleet server, or of another server that speaks hawkBit's device protocol (DDI)."""
    tenant: Name = "default"
    controller_id: Name | None = None
    """Name of the device at the server; absent = `device_id`."""
    token_file: ConfigPath | None = None
    """File with the device's own token (target token), mode 0600; or one of systemd's credentials, `${CREDENTIALS_DIRECTORY}/token`."""
    gateway_token_file: ConfigPath | None = None
    """File with the token that several devices share, in place of `token_file`."""
    tls: TlsConfig | None = None
    """Towards the server, the repository and wherever it redirects to; a client certificate may stand in for tokens. Files are looked
    at for each connection; the key is readable by its owner alone (root's may be 0640), or is one of systemd's credentials."""
    allow_http: bool = False
    """Take an address of `server` without TLS, by which token and reports go unencrypted, also where it is not this device itself."""
    repository: str = ""
    """URL of the folder with `metadata/` and `targets/` (TUF)."""
    root_file: ConfigPath | None = None
    """The repository's first `root.json`, brought here by hand or with the image: everything else follows from it."""
    poll_min_s: Positive = Field(default=10.0, json_schema_extra=LIVE)
    """The server says how often it wants to be asked; not more often than this,"""
    poll_max_s: Positive = Field(default=3600.0, json_schema_extra=LIVE)
    """and not less often than this."""
    max_bytes_per_s: NonNegative = Field(default=0.0, json_schema_extra=LIVE)
    """Of downloads; 0 = as fast as they come."""
    max_download_bytes: int = Field(default=2_000_000_000, ge=1_000_000)
    """A larger release is refused."""
    reserve_bytes: int = Field(default=500_000_000, ge=0)
    """Space on the disk that an update leaves free."""
    retries: int = Field(default=10, ge=0, le=1000)
    """Failures of a download in a row, an hour apart in the end, before the update counts as failed; what is here already is kept."""
    maintenance: tuple[MaintenanceWindow, ...] = Field(default=(), json_schema_extra=LIVE)
    """Models are swapped only in one of these windows; empty = at any time."""
    shadow_s: NonNegative = Field(default=300.0, json_schema_extra=LIVE)
    """How long a candidate runs beside the model in use before it may take its place; 0 = not at all."""
    shadow_max_s: NonNegative = Field(default=259_200.0, json_schema_extra=LIVE)
    """How long it goes on where there is too little to compare, as with nobody in view; then the update is refused. Three days: a night,
    or a weekend."""
    probation_s: NonNegative = Field(default=900.0, json_schema_extra=LIVE)
    """How long it is watched afterwards, with the way back open; 0 = not at all."""
    probation_max_s: NonNegative = Field(default=259_200.0, json_schema_extra=LIVE)
    """How long that goes on where hardly any frames come, so that there is nothing to judge by; then the version before comes back."""
    keep: int = Field(default=2, ge=2, le=10)
    """Versions of a slot that stay on the disk."""
    allow_custom_ops: bool = False
    """Take models with operators of other domains than ONNX's own."""
    attributes: dict[Name, Annotated[str, Field(max_length=256)]] = {}
    """What the server learns about this device beside its versions: `site: berlin`. Rollouts choose devices by them."""

    @field_validator("server", "repository")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        odd = parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment
        if odd or not _port_is_one(parts):
            raise ValueError("expected http(s)://host[:port]/..., without query")
        if parts.username or parts.password:
            raise ValueError("put the token into token_file, not into the address")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.poll_min_s > self.poll_max_s:
            raise ValueError("poll_min_s must not exceed poll_max_s")
        if self.token_file is not None and self.gateway_token_file is not None:
            raise ValueError("token_file and gateway_token_file: keep one of them")
        if self.enabled:
            missing = [name for name in ("server", "repository", "root_file") if not getattr(self, name)]
            if missing:
                raise ValueError(f"updates are enabled without {', '.join(missing)}")
            self._require_secrecy()
        return self

    def _require_secrecy(self) -> None:
        address = urlsplit(self.server)
        if address.scheme == "http" and not self.allow_http and not is_loopback(address.hostname or ""):
            raise ValueError(f"{self.server}: token and reports would go unencrypted: https://, or allow_http: true")
        if self.tls is not None and not self.tls.verify_hostname and self.tls.ca_file is None:
            raise ValueError(
                "tls: verify_hostname: false needs a ca_file, else any certificate of any authority will do"
            )

    def open_at(self, local: datetime) -> bool:
        """Whether a swap may happen at `local`, a time of the device's zone."""
        return not self.maintenance or any(window.contains(local) for window in self.maintenance)


def _port_is_one(parts: SplitResult) -> bool:
    """What urlsplit takes for the port may be the begin of a password with a slash in it."""
    try:
        return parts.port != 0
    except ValueError:
        return False
