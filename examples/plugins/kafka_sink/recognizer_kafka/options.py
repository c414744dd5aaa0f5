"""The keys that `sinks.NAME.options` takes for this plug-in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from agent.errors import ConfigError, ConfigProblem
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

_Server = Annotated[str, Field(pattern=r"^[^\s:/]+(:\d{1,5})?$|^\[[0-9A-Fa-f:.]+\](:\d{1,5})?$")]


class KafkaOptions(BaseModel):
    """Where the brokers are, and as whom the agent comes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    bootstrap_servers: Annotated[tuple[_Server, ...], Field(min_length=1)]
    """`host:port` of some of the brokers; the others are found through them."""
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    client_id: str = "recognizer-agent"
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: Path | None = None
    """Absent = the system's authorities."""
    cert_file: Path | None = None
    key_file: Path | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str = ""
    password_file: Path | None = None
    compression: Literal["none", "gzip"] = "none"
    max_request_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    """Larger events are refused; not above `max.message.bytes` of the topic."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.security.startswith("SASL") and not (self.username and self.password_file):
            raise ValueError(f"security {self.security} needs username and password_file")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self

    def read_password(self, where: str) -> str:
        """Empty without a file. Raises ConfigError when it cannot be read."""
        if self.password_file is None:
            return ""
        try:
            return self.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            problem = f"cannot read the password: {type(error).__name__}"
            raise ConfigError([ConfigProblem(problem, path=f"{where}.password_file")]) from None


def parse_options(raw: Mapping[str, object], where: str) -> KafkaOptions:
    """Raises ConfigError with every problem, each with its dotted key."""
    try:
        return KafkaOptions.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError(
            [_problem(detail["loc"], detail["type"], detail["msg"], where) for detail in error.errors()]
        ) from None


def _problem(place: tuple[str | int, ...], kind: str, message: str, where: str) -> ConfigProblem:
    path = ".".join([where, *map(str, place)])
    if kind == "extra_forbidden":
        known = ", ".join(sorted(KafkaOptions.model_fields))
        return ConfigProblem(f"kafka knows no option {place[0]!r}", path=path, hint=f"known are {known}")
    return ConfigProblem(message.removeprefix("Value error, "), path=path)
