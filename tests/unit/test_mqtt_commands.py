"""Commands as bytes from outside: what is understood, who may what, and that nothing else gets through."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.config.delivery import CommandsConfig
from agent.errors import ConfigError
from agent.events.cloudevents import load_schema
from agent.mqtt.commands import (
    Client,
    Command,
    RefusedError,
    authorise,
    load_clients,
    read_command,
    render_answer,
    sign_command,
)

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
SOON = NOW + timedelta(minutes=5)
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
CLIENTS = {"desk": Client("operator", KEY), "boss": Client("admin", OTHER_KEY)}
CONFIG = CommandsConfig(enabled=True)
KNOWN = {"snapshot", "reload", "replay-events"}


def read(payload: bytes, name: str = "reload", **changes: Any) -> Command:
    options: dict[str, Any] = {"device": "box", "clients": CLIENTS, "config": CONFIG, "now_utc": NOW} | changes
    return read_command(payload, name, **options)


def plain(**changes: object) -> bytes:
    return json.dumps({"id": "c1", "expires": SOON.isoformat(), "arguments": {"a": 1}} | changes).encode()


def signed(**changes: Any) -> bytes:
    options: dict[str, Any] = {"device": "box", "client": "desk", "key": KEY, "expires_utc": SOON} | changes
    return sign_command(options.pop("name", "reload"), options.pop("command_id", "c1"), {"a": 1}, **options)


def test_a_plain_command_has_the_role_of_the_configuration() -> None:
    command = read(plain())
    assert command == Command("c1", "reload", {"a": 1}, "", "none", SOON)
    trusting = CommandsConfig(enabled=True, unsigned_role="operator")
    assert read(plain(), config=trusting).role == "operator"


def test_a_signed_command_has_the_role_of_its_client() -> None:
    assert read(signed()) == Command("c1", "reload", {"a": 1}, "desk", "operator", SOON)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (signed(key=OTHER_KEY), "Signature"),
        (signed(client="boss"), "Signature"),
        (signed(client="stranger"), "no client 'stranger'"),
        (signed(device="other-box"), "udience"),
        (signed(name="snapshot"), "for the command 'snapshot'"),
        (signed(expires_utc=NOW - timedelta(minutes=1)), "expired"),
        (signed(expires_utc=NOW + timedelta(days=2)), "ahead of the device's clock"),
        (jwt.encode({"iss": "desk", "aud": "box", "cmd": "reload", "jti": "c", "exp": SOON}, "", "none").encode(), "alg value"),
        (jwt.encode({"iss": "desk", "aud": "box", "cmd": "reload", "exp": SOON}, KEY, "HS256").encode(), "jti"),
        (jwt.encode({"iss": "desk", "cmd": "reload", "jti": "c", "exp": SOON}, KEY, "HS256").encode(), "aud"),
        (signed()[:-2], "neither"),
        (b"", "neither"),
        (b"reload", "neither"),
        (b"[]", "neither"),
        (b"{", "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"\xff\xfe", "neither"),
        (plain(id=""), "id: expected"),
        (plain(id="x" * 129), "id: expected"),
        (plain(id=7), "id: expected"),
        (plain(id="\ud800"), "id: expected"),
        (plain(id="a\n"), "id: expected"),
        (plain(expires=None), "expires: expected"),
        (plain(expires="2026-11-26T12:05:00"), "expires: expected"),
        (plain(expires=True), "expires: expected"),
        (plain(expires=1e400), "expires: expected"),
        (plain(expires=(NOW - timedelta(seconds=10)).isoformat()), "expired"),
        (plain(arguments=[]), "arguments: expected an object"),
        (plain(role="admin"), "unknown members: role"),
    ],
)  # fmt: skip
def test_what_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        read(payload)


@pytest.mark.parametrize(
    ("payload", "sender"),
    [
        (signed(key=OTHER_KEY), ("", "", {})),
        (signed(client="stranger"), ("", "", {})),
        (signed(device="other-box"), ("", "", {})),
        (b"{", ("", "", {})),
        (signed(name="snapshot"), ("desk", "operator", {"a": 1})),
        (signed(command_id=""), ("desk", "operator", {"a": 1})),
        (signed(expires_utc=NOW - timedelta(minutes=1)), ("desk", "operator", {"a": 1})),
        (plain(expires=None), ("", "none", {})),
        (plain(expires=None, arguments=[]), ("", "none", {})),
    ],
)  # fmt: skip
def test_a_refusal_says_who_is_refused_once_that_is_known(
    payload: bytes, sender: tuple[str, str, dict[str, Any]]
) -> None:
    with pytest.raises(RefusedError) as refusal:
        read(payload)
    assert (refusal.value.client, refusal.value.role, refusal.value.arguments) == sender


def test_arguments_of_unsigned_commands_are_kept_where_they_have_a_role() -> None:
    with pytest.raises(RefusedError) as refusal:
        read(plain(expires=None), config=CommandsConfig(enabled=True, unsigned_role="viewer"))
    assert (refusal.value.client, refusal.value.role, refusal.value.arguments) == ("", "viewer", {"a": 1})


def test_the_bytes_of_a_token_cannot_be_changed() -> None:
    head, body, signature = signed().split(b".")
    claims = json.loads(base64.urlsafe_b64decode(body + b"=="))
    claims["arguments"] = {"a": 2}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    with pytest.raises(RefusedError, match="Signature"):
        read(b".".join((head, forged, signature)))


@given(
    st.binary(max_size=300)
    | st.binary(max_size=100).map(lambda tail: b"{" + tail)
    | st.binary(max_size=90).map(lambda tail: signed() + tail)
)
@example(b"{}")
@example(b'{"id": "\\ud800", "expires": 0}')
@example(b"eyJhbGciOiJIUzI1NiJ9.e30.")
def test_any_bytes_are_a_command_or_refused(payload: bytes) -> None:
    try:
        command = read(payload)
    except RefusedError:
        return
    assert command.client == "" or command == Command("c1", "reload", {"a": 1}, "desk", "operator", SOON)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional={"id": json_values, "expires": json_values, "arguments": json_values}))
def test_any_json_is_a_command_or_refused(members: dict[str, object]) -> None:
    try:
        command = read(json.dumps(members).encode())
    except RefusedError:
        return
    assert command.role == "none"
    assert isinstance(command.arguments, dict)


@pytest.mark.parametrize(
    ("role", "name", "allowed"),
    [
        ("none", "snapshot", False),
        ("viewer", "snapshot", True),
        ("viewer", "reload", False),
        ("operator", "replay-events", True),
        ("operator", "reload", False),
        ("admin", "reload", True),
        ("admin", "format-disk", False),
    ],
)
def test_roles(role: str, name: str, allowed: bool) -> None:
    command = Command("c1", name, {}, "desk", role, SOON)
    if allowed:
        authorise(command, CONFIG, KNOWN)
        return
    with pytest.raises(RefusedError) as refusal:
        authorise(command, CONFIG, KNOWN)
    assert refusal.value.command_id == "c1"
    assert (refusal.value.client, refusal.value.role) == ("desk", role)


def test_answers_are_what_their_schema_says() -> None:
    schema = jsonschema.Draft202012Validator(load_schema("answer"))
    for state in ("done", "refused", "expired", "failed"):
        schema.validate(json.loads(render_answer("c1", state, "why", {"sent": 1} if state == "done" else None)))


def test_commands_that_the_schema_allows_are_understood() -> None:
    jsonschema.Draft202012Validator(load_schema("command")).validate(json.loads(plain()))
    assert read(plain()).arguments == {"a": 1}


# --- keys -------------------------------------------------------------------------------------------------------------


def with_key(path: Path) -> CommandsConfig:
    return CommandsConfig.model_validate({"clients": {"desk": {"role": "operator", "key_file": str(path)}}})


def test_a_key_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "desk.key"
    file.write_bytes(KEY + b"\n")
    file.chmod(0o600)
    clients = load_clients(with_key(file))
    assert clients == {"desk": Client("operator", KEY)}
    assert "kkkk" not in repr(clients)


@pytest.mark.parametrize(("mode", "key", "why"), [(0o644, KEY, "others may read"), (0o600, b"short", "5 bytes")])
def test_a_key_that_others_can_read_or_guess_is_refused(tmp_path: Path, mode: int, key: bytes, why: str) -> None:
    file = tmp_path / "desk.key"
    file.write_bytes(key)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=why):
        load_clients(with_key(file))


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"commands\.clients\.desk\.key_file"):
        load_clients(with_key(tmp_path / "no.key"))
