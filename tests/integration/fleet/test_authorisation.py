"""Who may do what: every management route by role, devices by token, certificate and gateway, and what a guesser meets."""

from __future__ import annotations

import asyncio
import re
import ssl
import stat
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes.brokers import OPENSSL, TlsFiles
from fakes.fleet_server import FleetDevice, FleetServer, fleet_server

from ota.server import management_devices, management_releases, management_users
from ota.server.app import PARTS, create_app
from ota.server.auth import role_of
from ota.store.rows import Role

ROLES = ("viewer", "operator", "admin")
# What each route needs. Routes of other parts are checked against their own mark below.
TABLE: tuple[tuple[str, str, Any, str, int], ...] = (
    ("GET", "/me", None, "viewer", 200),
    ("GET", "/devices", None, "viewer", 200),
    ("GET", "/devices/box-1", None, "viewer", 200),
    ("GET", "/device-counts", None, "viewer", 200),
    ("GET", "/actions", None, "viewer", 200),
    ("GET", "/actions/1", None, "viewer", 200),
    ("GET", "/releases", None, "viewer", 200),
    ("GET", "/releases/1", None, "viewer", 200),
    ("GET", "/audit", None, "operator", 200),
    ("POST", "/devices", {"id": "new"}, "operator", 201),
    ("PATCH", "/devices/box-1", {"name": "hall"}, "operator", 200),
    ("POST", "/devices/box-1/token", None, "operator", 200),
    ("POST", "/devices/box-1/ask-attributes", None, "operator", 200),
    ("POST", "/devices/box-1/actions", {"release": 1}, "operator", 201),
    ("POST", "/actions/1/cancel", None, "operator", 200),
    ("POST", "/releases/sync", None, "operator", 200),
    ("DELETE", "/devices/box-1", None, "admin", 204),
    ("GET", "/users", None, "admin", 200),
    ("POST", "/users", {"name": "new", "role": "viewer"}, "admin", 201),
    ("PATCH", "/users/a-viewer", {"active": True}, "admin", 200),
    ("POST", "/users/a-viewer/token", None, "admin", 200),
    ("GET", "/gateway-token", None, "admin", 200),
    ("POST", "/gateway-token", None, "admin", 201),
    ("DELETE", "/gateway-token", None, "admin", 204),
)


@pytest.mark.parametrize(("method", "path", "body", "role", "status"), TABLE, ids=lambda value: str(value)[:40])
async def test_role_is_needed_and_enough(
    fleet: FleetServer, method: str, path: str, body: Any, role: str, status: int
) -> None:
    tokens = {name: await fleet.user(name) for name in ROLES}
    box = await fleet.device()
    (release,) = await fleet.publish(1)
    path = path.replace("/actions/1", f"/actions/{await fleet.assign(box, release.id)}")
    for name in ROLES[: ROLES.index(role)]:
        answer = await fleet.api(method, path, body, token=tokens[name])
        assert (answer.status, answer.json) == (403, {"error": f"this needs the role {role}"})
    for token in ("", "wrong", box.headers["Authorization"].split()[1]):
        assert (await fleet.api(method, path, body, token=token)).status == 401
    assert (await fleet.api(method, path, body, token=tokens[role])).status == status


async def test_every_management_route_names_its_role(fleet: FleetServer) -> None:
    """A handler that forgot it would be refused to everybody, which this says earlier."""
    app = create_app(fleet.services, PARTS)
    for route in app.router.routes():
        path = route.resource.canonical if route.resource is not None else ""
        if path.startswith("/api/"):
            assert role_of(route.handler) is not None, f"{route.method} {path}"


def test_table_has_every_route_of_devices_releases_and_users() -> None:
    for part in (management_devices, management_releases, management_users):
        for route in part.routes:
            assert isinstance(route, web.RouteDef)
            pattern = re.compile(
                "/api/v1" + "".join(r"/[^/]+" if "{" in piece else f"/{piece}" for piece in route.path.split("/")[3:])
            )
            rows = [row for row in TABLE if row[0] == route.method and pattern.fullmatch(f"/api/v1{row[1]}")]
            assert rows, f"{route.method} {route.path}"


async def test_route_without_a_role_answers_nobody(fleet: FleetServer) -> None:
    async def forgotten(_: web.Request) -> web.Response:
        return web.Response(text="secret")

    app = create_app(fleet.services, ())
    app.router.add_get("/api/v1/forgotten", forgotten)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}/api/v1/forgotten"
        async with fleet.session.get(url, headers={"Authorization": f"Bearer {fleet.admin}"}) as answer:
            assert answer.status == 403
            assert "secret" not in await answer.text()


async def test_dismissed_user_and_renewed_token(fleet: FleetServer) -> None:
    token = await fleet.user("operator")
    renewed = (await fleet.api("POST", "/users/a-operator/token")).json["token"]
    assert (await fleet.api("GET", "/me", token=token)).status == 401
    assert (await fleet.api("GET", "/me", token=renewed)).json == {"name": "a-operator", "role": "operator"}
    assert (await fleet.api("PATCH", "/users/a-operator", {"active": False})).status == 200
    assert (await fleet.api("GET", "/me", token=renewed)).status == 401


async def test_a_first_start_that_was_broken_off_leaves_no_administrator_without_a_token(tmp_path: Path) -> None:
    file = tmp_path / "data" / "admin-token"
    file.parent.mkdir()
    file.touch(mode=0o600)
    async with fleet_server(tmp_path) as fleet:
        assert (await fleet.api("GET", "/me")).status == 200
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_last_administrator_stays(fleet: FleetServer) -> None:
    for change in ({"role": "viewer"}, {"active": False}):
        answer = await fleet.api("PATCH", "/users/admin", change)
        assert (answer.status, answer.json) == (409, {"error": "the last administrator must stay one"})
    assert (await fleet.api("GET", "/users")).status == 200


async def test_tokens_are_nowhere_in_the_database(fleet: FleetServer, tmp_path: Path) -> None:
    tokens = [fleet.admin, await fleet.user("viewer"), (await fleet.device()).headers["Authorization"].split()[1]]
    tokens.append((await fleet.set_gateway())["Authorization"].split()[1])
    stored = b"".join(file.read_bytes() for file in (tmp_path / "data").glob("fleet.db*"))
    assert not [token for token in tokens if token.encode() in stored]


async def test_every_change_is_in_the_audit_log_with_who_and_from_where(fleet: FleetServer) -> None:
    token = await fleet.user("operator")
    await fleet.api("POST", "/devices", {"id": "box-9"}, token=token)
    (release,) = await fleet.publish(1)
    assigned = await fleet.api("POST", "/devices/box-9/actions", {"release": release.id, "forced": True}, token=token)
    action = assigned.json["id"]
    await fleet.api("POST", f"/actions/{action}/cancel", token=token)
    await fleet.api("PATCH", "/devices/box-9", {"name": "hall"}, token=token)
    await fleet.api("POST", "/devices", {"id": "box-9"}, token=token)  # refused: no change, no line
    entries = (await fleet.api("GET", "/audit?who=a-operator")).json["audit"]
    assert [(entry["what"], entry["subject"]) for entry in entries] == [
        ("device.change", "box-9"), ("action.cancel", str(action)), ("action.assign", "box-9"), ("device.create", "box-9"),
    ]  # fmt: skip
    assert {(entry["role"], entry["address"]) for entry in entries} == {("operator", "127.0.0.1")}
    said = {"release": release.id, "title": "pose-nano 0.1.0"}
    assert entries[1]["detail"] == said | {"device": "box-9", "force": False}
    assert entries[2]["detail"] == said | {"action": action, "forced": True, "confirm": False}
    assert (await fleet.api("GET", "/audit?what=device")).json["total"] == 2
    first = (await fleet.api("GET", "/audit?who=first start")).json["audit"]
    assert [entry["what"] for entry in first] == ["user.create"]


async def test_what_a_device_decides_is_in_the_audit_log(fleet: FleetServer) -> None:
    (release,) = await fleet.publish(1)
    device = FleetDevice(fleet, "new-box", await fleet.set_gateway())
    await device.poll()
    await device.ask("POST", "/confirmationBase/deactivateAutoConfirm")  # was off: no change, no line
    action = await fleet.assign(device, release.id, confirm=True)
    for answer in ("denied", "confirmed"):
        body = {"confirmation": answer, "details": ["by ann"]}
        assert (await device.ask("POST", f"/confirmationBase/{action}/feedback", body)).status == 200
    owner = {"initiator": "ann", "remark": "always"}
    await device.ask("POST", "/confirmationBase/activateAutoConfirm", owner)
    await device.ask("POST", "/confirmationBase/deactivateAutoConfirm")
    for status in (201, 200):
        by_hand = {"name": "pose-nano", "version": "0.1.0"}
        assert (await device.ask("PUT", "/installedBase", by_hand)).status == status
    by_hand_action = (await fleet.api("GET", "/actions?device=new-box")).json["actions"][0]["id"]
    entries = (await fleet.api("GET", "/audit?who=new-box")).json["audit"]
    said = {"release": release.id, "title": "pose-nano 0.1.0"}
    assert [(entry["what"], entry["detail"]) for entry in reversed(entries)] == [
        ("device.register", {}),
        ("action.deny", said | {"action": action, "details": ["by ann"]}),
        ("action.confirm", said | {"action": action, "details": ["by ann"]}),
        ("device.auto_confirm", {"on": True} | owner),
        ("device.auto_confirm", {"on": False}),
        ("device.installed", said | {"action": by_hand_action}),
    ]
    assert {(one["role"], one["subject"], one["address"]) for one in entries} == {("device", "new-box", "127.0.0.1")}


async def test_what_the_signed_list_takes_back_or_says_anew_is_in_the_audit_log(fleet: FleetServer) -> None:
    (row,) = await fleet.publish(1)
    assert fleet.repository is not None
    (target,) = fleet.repository.targets
    kept = fleet.repository.targets.pop(target)
    fleet.repository.publish()
    await fleet.sync()
    fleet.repository.targets[target] = kept
    kept.unrecognized_fields["custom"] = kept.custom | {"number": 9}
    fleet.repository.publish()
    await fleet.sync()
    entries = (await fleet.api("GET", "/audit?what=release")).json["audit"]
    assert [(entry["what"], entry["detail"]) for entry in reversed(entries)] == [
        ("release.withdraw", {"release": row.id}),
        ("release.offer", {"release": row.id}),
        ("release.sign_anew", {"release": row.id, "number": 9}),
    ]
    assert {(one["who"], one["role"], one["subject"]) for one in entries} == {
        ("fleet-server", "server", "pose-nano 0.1.0")
    }


# --- devices ----------------------------------------------------------------------------------------------------------


async def test_device_by_its_own_token_only(fleet: FleetServer) -> None:
    mine, other = await fleet.device("mine"), await fleet.device("other")
    assert (await mine.ask("GET")).status == 200
    for headers in ({}, other.headers, {"Authorization": f"Bearer {fleet.admin}"}, {"Authorization": "TargetToken "}):
        answer = await fleet.ask("GET", mine.base, headers=headers)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "TargetToken")
    renewed = (await fleet.api("POST", "/devices/mine/token")).json["token"]
    assert (await mine.ask("GET")).status == 401
    assert (await fleet.ask("GET", mine.base, headers={"Authorization": f"TargetToken {renewed}"})).status == 200


async def test_only_the_gateway_registers_new_devices(fleet: FleetServer) -> None:
    path = "/default/controller/v1/new-box"
    gateway = await fleet.set_gateway()
    other = await fleet.device("other")
    for headers in ({}, other.headers, {"Authorization": "GatewayToken wrong"}):
        assert (await fleet.ask("GET", path, headers=headers)).status == 401
    assert (await fleet.api("GET", "/devices/new-box")).status == 404
    answers = await asyncio.gather(*(fleet.ask("GET", path, headers=gateway) for _ in range(8)))
    assert {answer.status for answer in answers} == {200}
    shown = (await fleet.api("GET", "/devices/new-box")).json
    assert (shown["update_status"], shown["has_token"], shown["address"]) == ("registered", False, "127.0.0.1")
    assert (await fleet.ask("GET", path, headers={"Authorization": "TargetToken "})).status == 401
    assert (await fleet.api("DELETE", "/gateway-token")).status == 204
    assert (await fleet.ask("GET", path, headers=gateway)).status == 401


async def test_gateway_token_survives_a_restart(tmp_path: Path) -> None:
    async with fleet_server(tmp_path) as fleet:
        gateway = await fleet.set_gateway()
    async with fleet_server(tmp_path) as fleet:
        assert (await fleet.ask("GET", "/default/controller/v1/x", headers=gateway)).status == 200


async def test_gateway_token_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway"
    file.write_text("a-token-that-is-long-enough\n")
    file.chmod(0o600)
    async with fleet_server(tmp_path, gateway_token_file=file) as fleet:
        headers = {"Authorization": "GatewayToken a-token-that-is-long-enough"}
        assert (await fleet.ask("GET", "/default/controller/v1/x", headers=headers)).status == 200
        for method in ("POST", "DELETE"):  # would last until the next start only
            refused = await fleet.api(method, "/gateway-token")
            assert (refused.status, str(file) in refused.json["error"]) == (409, True)
        assert (await fleet.ask("GET", "/default/controller/v1/x", headers=headers)).status == 200
        assert (await fleet.api("GET", "/audit?what=gateway")).json["total"] == 0


async def test_guesser_is_made_to_wait_and_disturbs_nobody(fleet: FleetServer) -> None:
    mine, other = await fleet.device("mine"), await fleet.device("other")
    wrong = {"Authorization": "TargetToken wrong"}
    statuses = [(await fleet.ask("GET", mine.base, headers=wrong)).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    answer = await mine.ask("GET")
    assert answer.status == 429  # also the right one: guessing gets no answers now
    assert 1 <= int(answer.headers["Retry-After"]) <= 10
    assert (await other.ask("GET")).status == 200  # behind the same address


async def test_management_guesser_is_made_to_wait(fleet: FleetServer) -> None:
    statuses = [(await fleet.api("GET", "/me", token=f"wrong-{n}")).status for n in range(12)]
    assert statuses == [401] * 10 + [429] * 2


# --- proxies and certificates -----------------------------------------------------------------------------------------


async def test_proxy_headers_count_only_from_a_trusted_address(tmp_path: Path) -> None:
    claims = {
        "X-Forwarded-For": "203.0.113.9, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "fleet.example",
        "X-Client-CN": "box-1",
    }  # fmt: skip
    for trusted in ((), ("10.0.0.0/8",)):
        proxy = {"trusted": trusted, "client_header": "X-Client-CN"}
        async with fleet_server(tmp_path / f"untrusted{len(trusted)}", proxy=proxy) as fleet:
            box = await fleet.device()
            assert (await fleet.ask("GET", box.base, headers=claims)).status == 401
    async with fleet_server(tmp_path, proxy={"trusted": ("127.0.0.0/8",), "client_header": "X-Client-CN"}) as fleet:
        box = await fleet.device()
        answer = await fleet.ask("GET", box.base, headers=claims)
        assert answer.status == 200
        assert answer.json["_links"]["configData"]["href"].startswith("https://fleet.example/default/")
        await fleet.services.heard.flush()
        assert (await fleet.api("GET", "/devices/box-1")).json["address"] == "203.0.113.9"
        assert (await fleet.ask("GET", box.base.replace("box-1", "box-2"), headers=claims)).status == 401


@pytest.fixture(scope="session")
def device_certificates(tls_files: TlsFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """box-1.pem and box-1.key of the throw-away authority, and stranger.pem of nobody."""
    folder = tmp_path_factory.mktemp("devices")

    def openssl(*arguments: str) -> None:
        subprocess.run([str(OPENSSL), *arguments], check=True, capture_output=True, cwd=folder)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=device ca",
            "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=box-1", "-keyout", "box-1.key", "-out", "box-1.csr")
    openssl("x509", "-req", "-in", "box-1.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-out", "box-1.pem")  # fmt: skip
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=box-1",
            "-keyout", "stranger.key", "-out", "stranger.pem")  # fmt: skip
    return folder


async def test_client_certificate_instead_of_a_token(
    tmp_path: Path, tls_files: TlsFiles, device_certificates: Path
) -> None:
    tls = {"cert": tls_files.server_cert, "key": tls_files.server_key, "client_ca": device_certificates / "ca.pem"}
    async with fleet_server(tmp_path, tls=tls) as fleet:
        await fleet.services.store.write(_new_device, "box-1")
        await fleet.services.store.write(_new_device, "box-2")
        url = f"https://localhost:{fleet.port}/default/controller/v1"

        async def ask(path: str, certificate: str) -> int:
            context = ssl.create_default_context(cafile=tls_files.ca)
            if certificate:
                files = device_certificates / f"{certificate}.pem", device_certificates / f"{certificate}.key"
                context.load_cert_chain(*files)
            async with fleet.session.get(url + path, ssl=context) as answer:
                return answer.status

        assert await ask("/box-1", "box-1") == 200
        assert await ask("/box-2", "box-1") == 401  # a certificate is for one device
        assert await ask("/box-1", "") == 401
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await ask("/box-1", "stranger")


def _new_device(connection: Any, name: str) -> None:
    from ota.store import devices

    devices.create(connection, name, now_ms=1)


def test_roles_cover_those_below() -> None:
    assert [[role.covers(other) for other in Role] for role in Role] == [
        [True, False, False], [True, True, False], [True, True, True],
    ]  # fmt: skip
