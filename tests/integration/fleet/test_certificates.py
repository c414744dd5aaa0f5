"""The server's TLS: whose certificates it takes, what it says when it does not, and certificates that are renewed while it runs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes.authority import SERVER, Authority, Pair
from fakes.fleet_server import FleetServer, fleet_server
from pydantic import ValidationError
from structlog.testing import capture_logs

from agent.errors import ConfigError
from ota.server import tls as server_tls
from ota.server.settings import ServerSettings, TlsSettings
from ota.server.tls import ServerTls
from ota.store import devices

HERE = ("localhost", "127.0.0.1")
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
PATH = "/default/controller/v1/box-1"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_tls, "_LOOK_S", 0.02)


@pytest.fixture
def own(tmp_path: Path) -> Authority:
    """Signs servers."""
    return Authority(tmp_path / "own", "own")


@pytest.fixture
def known(tmp_path: Path) -> Authority:
    """Signs devices."""
    return Authority(tmp_path / "known", "known")


@pytest.fixture
def server_pair(own: Authority) -> Pair:
    return own.issue("server", names=HERE, usage=SERVER)


@pytest.fixture
async def fleet(tmp_path: Path, server_pair: Pair, known: Authority) -> AsyncIterator[FleetServer]:
    async with fleet_server(tmp_path, tls=settings_of(server_pair, known)) as server:
        await enter(server, "box-1")
        yield server


def settings_of(pair: Pair, known: Authority) -> dict[str, Path]:
    return {"cert": pair.cert, "key": pair.key, "client_ca": known.ca}


async def enter(fleet: FleetServer, name: str) -> str:
    """A device, with the token that it might use."""
    from ota.server.tokens import hash_of

    token = f"token-of-{name}-long-enough"
    await fleet.services.store.write(lambda c: devices.create(c, name, token_hash=hash_of(token), now_ms=1))
    return token


def client(own: Authority, mine: Pair | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=own.ca)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if mine is not None:
        context.load_cert_chain(mine.cert, mine.key)
    return context


async def ask(
    fleet: FleetServer, context: ssl.SSLContext, path: str = PATH, headers: Mapping[str, str] | None = None, host: str = "localhost"
) -> tuple[int, str]:  # fmt: skip
    """Status, and what is wrong; over a connection of its own."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(f"https://{host}:{fleet.port}{path}", headers=headers) as answer,
    ):
        body: dict[str, Any] = await answer.json()
        return answer.status, str(body.get("error", ""))


async def serial(fleet: FleetServer, own: Authority, host: str = "localhost") -> str:
    """Of the certificate that a new connection is shown."""
    context = client(own, None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _, writer = await asyncio.open_connection(host, fleet.port, ssl=context, server_hostname=host)
    try:
        return str(writer.get_extra_info("peercert")["serialNumber"])
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: str(version.name))
async def test_a_certificate_that_is_refused_is_told_why(
    fleet: FleetServer, own: Authority, known: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """The alert reaches the client; without it a device would see a connection that breaks off, and try for ever."""
    stranger = Authority(tmp_path / "stranger", "stranger")
    refused = {
        "unknown ca": stranger.issue("box-1"),
        "certificate expired": known.issue("old", "box-1", days=(-3, -1)),
        "unsupported certificate": known.issue("kind", "box-1", usage=SERVER),
    }
    for said, pair in refused.items():
        with capture_logs() as logs, pytest.raises((aiohttp.ClientError, ssl.SSLError), match=said):
            await ask(fleet, client(own, pair, version))
        assert {line["event"] for line in logs} == {"fleet_client_certificate_refused"}
    assert await ask(fleet, client(own, known.issue("box-1"), version)) == (200, "")


async def test_old_versions_of_tls_are_not_spoken(fleet: FleetServer, own: Authority) -> None:
    context = client(own, None)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await ask(fleet, context)


async def test_a_client_that_never_reacts_to_its_refusal_disturbs_nobody(
    fleet: FleetServer, own: Authority, known: Authority, tmp_path: Path
) -> None:
    context = client(own, Authority(tmp_path / "stranger", "stranger").issue("box-1"))
    _, writer = await asyncio.open_connection("localhost", fleet.port, ssl=context)
    assert await ask(fleet, client(own, known.issue("box-1"))) == (200, "")
    writer.transport.abort()


async def test_whoever_is_not_let_in_is_told_what_is_missing(
    fleet: FleetServer, own: Authority, known: Authority
) -> None:
    mine = client(own, known.issue("box-1"))
    other = client(own, known.issue("box-2"))
    new = client(own, known.issue("box-3"))
    wrong = {"Authorization": "TargetToken wrong"}
    assert await ask(fleet, mine) == (200, "")
    assert await ask(fleet, client(own, None)) == (
        401, "a valid token of this device, or a certificate in its name, is needed",
    )  # fmt: skip
    assert await ask(fleet, other) == (401, "the certificate is for 'box-2', not for this device")
    assert await ask(fleet, mine, headers=wrong) == (401, "a valid token of this device is needed")
    newcomer = PATH.replace("box-1", "box-3")
    assert await ask(fleet, new, newcomer) == (
        401, "the certificate is good, but there is no such device: enter it first",
    )  # fmt: skip
    assert (await ask(fleet, other, newcomer))[1] == "the certificate is for 'box-2', not for this device"
    odd = client(own, known.issue("odd", "x\r\nSet-Cookie: a\u00e9"))
    assert await ask(fleet, odd) == (401, r"the certificate is for 'x\r\nSet-Cookie: a\xe9', not for this device")


async def test_a_device_that_was_deleted_stays_out(fleet: FleetServer, own: Authority, known: Authority) -> None:
    mine = client(own, known.issue("box-1"))
    assert await ask(fleet, mine) == (200, "")
    device = await fleet.device_row("box-1")
    await fleet.services.store.write(devices.remove, device.id)
    assert (await ask(fleet, mine))[0] == 401


async def test_where_certificates_are_required_tokens_are_not_enough(
    tmp_path: Path, own: Authority, known: Authority, server_pair: Pair
) -> None:
    given = {"tls": settings_of(server_pair, known), "require_certificates": True}
    gateway = tmp_path / "gateway"
    gateway.touch(mode=0o600)
    gateway.write_text("a-token-that-is-long-enough")
    async with fleet_server(tmp_path, gateway_token_file=gateway, **given) as fleet:
        own_token = {"Authorization": f"TargetToken {await enter(fleet, 'box-1')}"}
        shared = {"Authorization": "GatewayToken a-token-that-is-long-enough"}
        none, mine, other = client(own, None), client(own, known.issue("box-1")), client(own, known.issue("box-2"))
        needed = "a certificate in the name of this device is needed"
        assert await ask(fleet, none, headers=own_token) == (401, needed)
        assert await ask(fleet, none, headers=shared) == (401, needed)
        assert await ask(fleet, other, headers=own_token) == (
            401,
            "the certificate is for 'box-2', not for this device",
        )
        assert await ask(fleet, other, headers=shared) == (401, "the certificate is for 'box-2', not for this device")
        assert (await ask(fleet, mine))[0] == (await ask(fleet, mine, headers=own_token))[0] == 200
        assert (await ask(fleet, mine, headers={"Authorization": "TargetToken wrong"}))[0] == 401
        registered = PATH.replace("box-1", "box-2")
        assert await ask(fleet, other, registered, headers=shared) == (200, "")  # a newcomer in its own name
        bearer = {"Authorization": f"Bearer {fleet.admin}"}
        assert (await ask(fleet, none, "/api/v1/me", bearer))[0] == 200  # people have tokens


async def test_required_certificates_that_a_proxy_has_checked(tmp_path: Path) -> None:
    proxy = {"trusted": ("127.0.0.0/8",), "client_header": "X-Client-CN"}
    async with fleet_server(tmp_path, proxy=proxy, require_certificates=True) as fleet:
        token = {"Authorization": f"TargetToken {await enter(fleet, 'box-1')}"}
        assert (await fleet.ask("GET", PATH, headers=token)).status == 401
        assert (await fleet.ask("GET", PATH, headers=token | {"X-Client-CN": "box-2"})).status == 401
        assert (await fleet.ask("GET", PATH, headers=token | {"X-Client-CN": "box-1"})).status == 200


async def test_a_renewed_certificate_is_shown_without_a_restart(
    fleet: FleetServer, own: Authority, server_pair: Pair
) -> None:
    """To clients that name the host and to those that do not. One that cannot be used changes nothing."""
    (keeping,) = [task for task in fleet.services.tasks if task.get_name() == "fleet-certificates"]
    assert not keeping.done()
    before = await serial(fleet, own)
    newer = own.issue("newer", names=HERE)
    with capture_logs() as logs:
        server_pair.cert.write_bytes(newer.cert.read_bytes())  # its key comes later
        await until(lambda: "fleet_certificate_not_taken" in [line["event"] for line in logs])
        assert await serial(fleet, own) == before
        server_pair.put(newer)
        await until(lambda: "fleet_certificate_renewed" in [line["event"] for line in logs])
    after = [await serial(fleet, own, host) for host in HERE]
    assert after[0] == after[1] != before


async def test_another_authority_of_devices_takes_over_without_a_restart(
    fleet: FleetServer, own: Authority, known: Authority, tmp_path: Path
) -> None:
    next_one = Authority(tmp_path / "next", "next")
    old, new = client(own, known.issue("box-1")), client(own, next_one.issue("box-1"))
    assert await ask(fleet, old) == (200, "")
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await ask(fleet, new)
    with capture_logs() as logs:
        known.ca.write_bytes(next_one.ca.read_bytes())
        await until(lambda: "fleet_certificate_renewed" in [line["event"] for line in logs])
    for host in HERE:
        assert await ask(fleet, new, host=host) == (200, "")
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await ask(fleet, old, host=host)


async def test_no_ticket_stands_in_for_a_certificate(fleet: FleetServer, own: Authority, known: Authority) -> None:
    """Else who has one would be let in after the authority has gone, as long as he keeps on using it."""
    context = client(own, known.issue("box-1"), ssl.TLSVersion.TLSv1_3)

    def talk(before: ssl.SSLSession | None) -> tuple[bytes, bool, ssl.SSLSession | None]:
        with (
            socket.create_connection(("localhost", fleet.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=before) as line,
        ):
            line.sendall(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            return line.recv(12), bool(line.session_reused), line.session

    first, _, session = await asyncio.to_thread(talk, None)
    again, reused, _ = await asyncio.to_thread(talk, session)
    assert (first, again, reused) == (b"HTTP/1.1 200", b"HTTP/1.1 200", False)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def test_files_that_cannot_be_used_are_named(own: Authority, server_pair: Pair, tmp_path: Path) -> None:
    def problem(given: TlsSettings, credentials: Path | None = None) -> str:
        with pytest.raises(ConfigError) as caught:
            ServerTls(given, credentials)
        return str(caught.value)

    good = {"cert": server_pair.cert, "key": server_pair.key}
    locked = own.issue("locked", names=HERE, passphrase="secret words")
    absent = tmp_path / "absent"
    for given in ({"cert": server_pair.cert, "key": absent}, {"cert": absent, "key": server_pair.key}):
        said = problem(TlsSettings(**given))
        assert said.startswith("tls.cert: ")
        assert str(absent) in said
    assert f"tls.cert: {absent}" in problem(TlsSettings(cert=absent, key=server_pair.key))
    assert f"tls.client_ca: {absent}" in problem(TlsSettings(client_ca=absent, **good))
    assert "the key is encrypted" in problem(TlsSettings(cert=locked.cert, key=locked.key))
    assert "KEY_VALUES_MISMATCH" in problem(TlsSettings(cert=server_pair.cert, key=own.issue("other").key))
    server_pair.key.chmod(0o644)
    said = problem(TlsSettings(**good))
    assert f"tls.key: {server_pair.key}: others can read or write it (mode 0644) (hint: chmod 600" in said
    assert ServerTls(TlsSettings(**good), server_pair.key.parent).context  # one of systemd's credentials


def test_required_certificates_need_somebody_who_checks_them(tmp_path: Path) -> None:
    for given in ({}, {"proxy": {"client_header": "X-Client-CN"}}, {"tls": {"cert": "c", "key": "k"}}):
        with pytest.raises(ValidationError, match="require_certificates needs"):
            ServerSettings.model_validate({"data": tmp_path, "require_certificates": True} | given)
    given = {"tls": {"cert": "c", "key": "k", "client_ca": "a"}}
    assert ServerSettings.model_validate({"data": tmp_path, "require_certificates": True} | given).takes_certificates


@pytest.mark.parametrize(
    ("given", "unprotected"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "fleet.example"}, True),
        ({"host": "0.0.0.0", "tls": {"cert": "c", "key": "k"}}, False),
        ({"host": "0.0.0.0", "proxy": {"trusted": ["10.0.0.2/32"]}}, False),
    ],
)
def test_when_tokens_would_go_unencrypted(tmp_path: Path, given: dict[str, Any], unprotected: bool) -> None:
    assert ServerSettings.model_validate({"data": tmp_path} | given).unprotected is unprotected
