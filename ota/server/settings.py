"""What the server is told at its start: a YAML file, and options on top of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from agent.config.documents import Layer, Place, problem_of
from agent.config.paths import LocatedStr
from agent.errors import ConfigError
from agent.hosts import is_loopback

POLLING = r"^[0-9]{2}:[0-5][0-9]:[0-5][0-9]$"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _beside_its_file(value: object) -> object:
    return value.folder / value if isinstance(value, LocatedStr) else value


FilePath = Annotated[Path, BeforeValidator(_beside_its_file)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsSettings(_Section):
    """Files are looked at now and then, renewed ones serve new connections. key: readable by its owner alone (root's may be 0640), or
    one of systemd's credentials; client_ca: who signs the certificates of devices; one whose common name is the controller id needs
    no token."""

    cert: FilePath
    key: FilePath
    client_ca: FilePath | None = None


class ProxySettings(_Section):
    """A reverse proxy in front. trusted: addresses whose headers are believed; client_header: the verified common name of the client's
    certificate; the proxy must remove it from what clients send."""

    trusted: tuple[Network, ...] = ()
    client_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]*$")


class ServerSettings(_Section):
    """data: folder of the database, the trusted root and the first administrator's token; database: empty = SQLite in there.

    require_certificates: a device has to show a certificate in its name, a token alone does not do.
    repository: published TUF repository; root: its trusted root.json (default: the one pinned in `data`, at the first start the
    repository's own first); polling: how often devices ask, HH:MM:SS; public_url: what links begin with (default: as the device asked).
    """

    data: FilePath
    database: str = ""
    host: str = "127.0.0.1"
    port: int = Field(default=8090, ge=0, le=65535)
    tenant: str = Field(default="default", pattern=r"^[A-Za-z0-9_-]{1,40}$")
    polling: str = Field(default="00:00:30", pattern=POLLING)
    public_url: str = Field(default="", pattern=r"^(https?://[^\s/?#]+(/[^\s?#]*)?)?$")
    repository: FilePath | None = None
    root: FilePath | None = None
    tls: TlsSettings | None = None
    proxy: ProxySettings = ProxySettings()
    require_certificates: bool = False
    gateway_token_file: FilePath | None = None
    open_metrics: bool = False
    log_level: str = Field(default="info", pattern=r"^(debug|info|warning|error)$")

    @model_validator(mode="after")
    def _devices_may_ask(self) -> ServerSettings:
        if self.polling == "00:00:00":
            raise ValueError("polling must be at least 00:00:01")
        return self

    @model_validator(mode="after")
    def _certificates_can_be_shown(self) -> ServerSettings:
        if self.require_certificates and not self.takes_certificates:
            raise ValueError("require_certificates needs tls.client_ca, or proxy.trusted and proxy.client_header")
        return self

    @property
    def takes_certificates(self) -> bool:
        """From us or from a proxy, the names of devices' certificates are learned."""
        return bool((self.tls and self.tls.client_ca) or (self.proxy.trusted and self.proxy.client_header))

    @property
    def unprotected(self) -> bool:
        """Others reach it, and nothing that we know of encrypts."""
        return self.tls is None and not self.proxy.trusted and not is_loopback(self.host)

    @property
    def polling_s(self) -> int:
        hours, minutes, seconds = (int(part) for part in self.polling.split(":"))
        return hours * 3600 + minutes * 60 + seconds

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data.absolute() / 'fleet.db'}"


def load_settings(path: Path | None, options: Mapping[str, Any], *, env: Mapping[str, str]) -> ServerSettings:
    """The file's settings with `options` (of the command line) laid over. Raises ConfigError with file, line and key."""
    tree: dict[str, Any] = {}
    layer = Layer(path, env) if path is not None else None
    if layer is not None:
        tree = layer.read()
        if layer.problems:
            raise ConfigError(layer.problems)
    places = dict(layer.places) if layer is not None else {}
    for key, value in options.items():
        tree[key] = value
        places = {where: place for where, place in places.items() if where[:1] != (key,)}
        places[key,] = Place("command line", 0)
    try:
        return ServerSettings.model_validate(tree)
    except ValidationError as error:
        problems = [problem_of(item, places, ServerSettings) for item in error.errors(include_url=False)]
        raise ConfigError(problems) from error
