"""What a command says, who says it, and what it is answered. Pure; see docs/commands.md.

A command is JSON, or the same signed: a JSON Web Token (RFC 7519, HS256) whose issuer is a client of the configuration. The
claims of a token stand for the members of the plain form: `jti` for `id`, `exp` for `expires`, `arguments` for itself;
`aud` must be the device and `cmd` the name in the topic, so that a token works in one place only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt

from agent.config.delivery import CommandsConfig
from agent.errors import ConfigError, ConfigProblem, DataError
from agent.mqtt.keys import read_key

_ALGORITHM = "HS256"
_MAX_ID = 128
_MAX_DETAIL = 500
"""Characters of a refusal: it may quote what was sent, and is recorded."""
_LEEWAY_S = 5.0
_MEMBERS = frozenset({"id", "expires", "arguments"})
NOBODY = "none"


@dataclass(frozen=True, slots=True)
class Command:
    """A command that is understood. client: who signed it, empty = nobody; role: `none` = may do nothing."""

    command_id: str
    name: str
    arguments: dict[str, Any]
    client: str
    role: str
    expires_utc: datetime


class RefusedError(DataError):
    """A command that is not carried out. state: of its answer; command_id: empty when it could not be read, then nobody is answered.

    client, role, arguments: as in Command, for the record; role is empty when nobody knows who sent it.
    """

    def __init__(self, detail: str, command_id: str = "", state: str = "refused") -> None:
        super().__init__(detail[:_MAX_DETAIL])
        self.command_id = command_id
        self.state = state
        self.client = self.role = ""
        self.arguments: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who signs commands."""

    role: str
    key: bytes = field(repr=False)


def load_clients(config: CommandsConfig) -> dict[str, Client]:
    """The clients with their keys. Raises ConfigError with every key that cannot be used."""
    clients = {}
    problems: list[ConfigProblem] = []
    for name, client in config.clients.items():
        try:
            clients[name] = Client(client.role, read_key(client.key_file, f"commands.clients.{name}.key_file"))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return clients


def read_command(
    payload: bytes, name: str, *, device: str, clients: Mapping[str, Client], config: CommandsConfig, now_utc: datetime
) -> Command:
    """The command in `payload`, sent for `name` to `device`. Raises RefusedError."""
    text = payload.strip()
    if text[:1] == b"{":
        members, client = _plain(text), ""
    else:
        members, client = _signed(text, name, device, clients)
    role = clients[client].role if client else config.unsigned_role
    with _sent_by(client, role, members.get("arguments")):
        command_id, arguments, expires_utc = _understand(members, config, now_utc)
    return Command(command_id, name, arguments, client, role, expires_utc)


def _understand(
    members: Mapping[str, Any], config: CommandsConfig, now_utc: datetime
) -> tuple[str, dict[str, Any], datetime]:
    """Id, arguments, expiry."""
    command_id = members.get("id")
    if not isinstance(command_id, str) or not 1 <= len(command_id) <= _MAX_ID or not command_id.isprintable():
        raise RefusedError(f"id: expected 1 to {_MAX_ID} printable characters")
    if unknown := sorted(members.keys() - _MEMBERS):
        raise RefusedError(f"unknown members: {', '.join(unknown)}", command_id)
    arguments = members.get("arguments", {})
    if not isinstance(arguments, dict):
        raise RefusedError("arguments: expected an object", command_id)
    expires_utc = _expiry(members.get("expires"), command_id)
    if expires_utc < now_utc - timedelta(seconds=_LEEWAY_S):
        raise RefusedError(
            f"expired at {expires_utc.isoformat()}, it is {now_utc.isoformat(timespec='seconds')} here",
            command_id,
            "expired",
        )
    if expires_utc > now_utc + timedelta(seconds=config.max_validity_s + _LEEWAY_S):
        raise RefusedError(f"expires: more than {config.max_validity_s:g} s ahead of the device's clock", command_id)
    return command_id, arguments, expires_utc


def authorise(command: Command, config: CommandsConfig, known: Collection[str]) -> None:
    """Raises RefusedError when there is no such command, or its role may not give it."""
    with _sent_by(command.client, command.role, command.arguments):
        if command.name not in known:
            raise RefusedError(f"unknown command (known: {', '.join(sorted(known))})", command.command_id)
        allowed = {str(role): names for role, names in config.roles.items()}
        if command.name not in allowed.get(command.role, ()):
            who = command.client or "an unsigned command"
            raise RefusedError(f"{who} (role {command.role}) may not {command.name}", command.command_id)


def render_answer(command_id: str, state: str, detail: str = "", result: Mapping[str, Any] | None = None) -> bytes:
    """The answer's JSON. state: done, refused, expired or failed."""
    answer: dict[str, Any] = {"id": command_id, "state": state, "detail": detail}
    if result is not None:
        answer["result"] = dict(result)
    return json.dumps(answer, separators=(",", ":")).encode()


def sign_command(
    name: str,
    command_id: str,
    arguments: Mapping[str, Any],
    *,
    device: str,
    client: str,
    key: bytes,
    expires_utc: datetime,
) -> bytes:
    """The token that `read_command` takes: for clients written in Python."""
    claims = {
        "iss": client, "aud": device, "cmd": name, "jti": command_id, "exp": expires_utc, "arguments": dict(arguments),
    }  # fmt: skip
    return jwt.encode(claims, key, algorithm=_ALGORITHM).encode()


@contextmanager
def _sent_by(client: str, role: str, arguments: object) -> Iterator[None]:
    """A refusal inside says whose command it was. Of somebody who may do nothing no arguments are kept: they take room."""
    try:
        yield
    except RefusedError as refusal:
        refusal.client, refusal.role = client, role
        if isinstance(arguments, dict) and role != NOBODY:
            refusal.arguments = arguments
        raise


def _plain(text: bytes) -> dict[str, Any]:
    try:
        members: dict[str, Any] = json.loads(text)  # it begins with a brace
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"not JSON: {error}") from error
    return members


def _signed(text: bytes, name: str, device: str, clients: Mapping[str, Client]) -> tuple[dict[str, Any], str]:
    """The members and who signed them. The expiry is looked at later, like that of plain commands."""
    try:
        issuer = str(jwt.decode(text, options={"verify_signature": False}).get("iss"))
        client = clients.get(issuer)
        if client is None:
            raise RefusedError(f"no client {issuer!r} is configured here")
        claims = jwt.decode(
            text, client.key, algorithms=[_ALGORITHM], audience=device,
            options={"require": ["jti", "exp", "aud", "cmd"], "verify_exp": False, "verify_iat": False},
        )  # fmt: skip
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise RefusedError(f"neither a JSON object nor a token that holds: {error}") from error
    if claims["cmd"] != name:
        with _sent_by(issuer, client.role, claims.get("arguments")):
            raise RefusedError(f"the token is for the command {str(claims['cmd'])[:_MAX_ID]!r}")
    return {"id": claims["jti"], "expires": claims["exp"], "arguments": claims.get("arguments", {})}, issuer


def _expiry(value: object, command_id: str) -> datetime:
    """Text with an offset, or seconds since 1970 in a token."""
    moment = None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            moment = datetime.fromtimestamp(value, UTC)
        in_utc = moment.astimezone(UTC) if moment is not None and moment.tzinfo is not None else None
    except (ValueError, OverflowError, OSError):
        in_utc = None
    if in_utc is None:
        raise RefusedError(
            f"expires: expected a time such as 2026-11-23T02:45:00Z, got {str(value)[:40]!r}", command_id
        )
    return in_utc
