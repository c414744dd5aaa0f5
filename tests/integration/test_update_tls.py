"""Updates over TLS: the device's own client against the real fleet server, with real certificates."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from fakes.authority import SERVER, Pair
from fakes.bundles import make_bundle
from fakes.downloads import FileServer, Handler, Watcher, proxying, redirect, serving
from fakes.fleet_server import Repository, fleet_server
from fakes.secure_fleet import HERE, Papers, box, make_papers, secure_fleet, shown
from pydantic import ValidationError

from agent.config.delivery import TlsConfig
from agent.config.load import load_config
from agent.config.update import UpdateConfig
from agent.errors import AccessError, ConfigError
from agent.net import free_port
from agent.transfer.download import Access, Limits, Wanted, download
from agent.transfer.tls import Tls
from agent.update import contact
from agent.update.ddi import connect
from agent.update.tokens import client_tls, mark
from agent.update.trust_fetch import MetadataFetcher
from ota.release.pack import Wishes, pack

REPO = Path(__file__).resolve().parent.parent.parent
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return make_papers(tmp_path)


@pytest.fixture(autouse=True)
def _quick_and_without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "_LOOK_S", 0.05)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def server_context(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    return context


def move(server: FileServer, path: str, address: str) -> None:
    """The server sends who asks for `path` elsewhere."""

    class Moved(Handler):
        def do_GET(self) -> None:  # noqa: N802  as the base class has it
            if self.path == path:
                redirect(address)(self)
            else:
                super().do_GET()

    server.RequestHandlerClass = Moved


# --- is it the right server? ------------------------------------------------------------------------------------------

Case = Callable[[Papers], tuple[Pair, dict[str, object]]]
SERVERS: dict[str, tuple[Case, str, str]] = {
    "private authority, named": (lambda p: (p.server, {"ca_file": p.fleet.ca}), "ok", ""),
    "private authority, not named": (lambda p: (p.server, {}), "denied", "update.tls.ca_file (or SSL_CERT_FILE)"),
    "another authority is named": (
        lambda p: (p.server, {"ca_file": p.stranger.ca}), "denied", "unable to get local issuer certificate",
    ),
    "for another name": (
        lambda p: (p.fleet.issue("away", names=("fleet.example",)), {"ca_file": p.fleet.ca}), "denied",
        "not valid for 'localhost'. (hint: give the address by a name that the server's certificate is for)",
    ),
    "for another name, which is not looked at": (
        lambda p: (
            p.fleet.issue("away", names=("fleet.example",)),
            {"ca_file": p.fleet.ca, "verify_hostname": False},
        ), "ok", "",
    ),
    "expired": (
        lambda p: (p.fleet.issue("old", names=HERE, days=(-3, -1)), {"ca_file": p.fleet.ca}), "denied",
        "certificate has expired (hint: renew the server's certificate; or is the clock of this device wrong?)",
    ),
    "not valid yet": (
        lambda p: (p.fleet.issue("early", names=HERE, days=(1, 2)), {"ca_file": p.fleet.ca}), "offline",
        "not yet valid (hint: the clock of this device? `timedatectl set-ntp true`)",
    ),
    "self-signed": (
        lambda p: (p.fleet.issue("own", names=HERE, self_signed=True), {"ca_file": p.fleet.ca}), "denied",
        "self-signed certificate (hint: the authority that signed",
    ),
    "of a device": (
        lambda p: (p.devices.issue("box-9", names=HERE), {"ca_file": p.fleet.ca}), "denied", "no trustworthy TLS connection",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SERVERS)
async def test_which_server_is_trusted(tmp_path: Path, papers: Papers, case: str) -> None:
    make, state, text = SERVERS[case]
    server, tls = make(papers)
    mine = papers.devices.issue("box-1")
    async with secure_fleet(tmp_path, papers, server) as fleet:
        assert fleet.repository is not None
        async with box(tmp_path / "box", fleet.url, fleet.repository, tls | shown(mine)) as device:
            detail = await device.is_told(state, text)
            if state == "denied":
                assert f"localhost:{fleet.port}: no trustworthy TLS connection" in detail
                assert detail in device.reason
            if "ca_file" in tls and "issuer" in detail:
                assert f"update.tls.ca_file ({tls['ca_file']})" in detail


# --- is it the right device? ------------------------------------------------------------------------------------------

CERTIFICATE = "update.tls.cert_file"
DEVICES: dict[str, tuple[Callable[[Papers], Pair | None], str, str]] = {
    "its own": (lambda p: p.devices.issue("box-1"), "ok", ""),
    "none": (lambda _: None, "denied", "401"),
    "a stranger's": (lambda p: p.stranger.issue("box-1"), "denied", "refuses this device's TLS: unknown ca"),
    "self-signed": (lambda p: p.devices.issue("box-1", self_signed=True), "denied", "unknown ca"),
    "expired": (lambda p: p.devices.issue("box-1", days=(-3, -1)), "denied", "certificate expired"),
    "of the server": (lambda p: p.devices.issue("box-1", usage=SERVER), "denied", "unsupported certificate"),
    "another device's": (lambda p: p.devices.issue("box-2"), "denied", "the certificate is for 'box-2', not for this device"),
    "of two names": (lambda p: p.devices.issue("both", "box-1", "box-2"), "denied", "a certificate in its name"),
    "with its own among the other names": (
        lambda p: p.devices.issue("box-2", names=("box-1",)), "denied", "the certificate is for 'box-2'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEVICES)
async def test_which_device_is_let_in(tmp_path: Path, papers: Papers, case: str) -> None:
    make, state, text = DEVICES[case]
    mine = make(papers)
    tls = {"ca_file": papers.fleet.ca} | (shown(mine) if mine is not None else {})
    async with secure_fleet(tmp_path, papers) as fleet:
        assert fleet.repository is not None
        async with box(tmp_path / "box", fleet.url, fleet.repository, tls) as device:
            detail = await device.is_told(state, text)
            seen = {name: (await fleet.device_row(name)).last_seen_ms for name in ("box-1", "box-2")}
            if state == "denied":
                assert CERTIFICATE in detail
                assert seen == {"box-1": None, "box-2": None}
            if "TLS" in detail:
                assert mine is not None
                assert f"{CERTIFICATE} ({mine.cert}): signed by whom the server trusts" in detail


@pytest.mark.parametrize("certificate", ["box-1", "box-2", ""])
async def test_where_certificates_are_required_a_token_alone_does_not_do(
    tmp_path: Path, papers: Papers, certificate: str
) -> None:
    async with secure_fleet(tmp_path, papers, require_certificates=True) as fleet:
        assert fleet.repository is not None
        token = tmp_path / "token"
        token.write_text((await fleet.api("POST", "/devices/box-1/token")).json["token"])
        token.chmod(0o600)
        tls = {"ca_file": papers.fleet.ca} | (shown(papers.devices.issue(certificate)) if certificate else {})
        async with box(tmp_path / "box", fleet.url, fleet.repository, tls, token_file=token) as device:
            if certificate == "box-1":
                await device.is_told("ok")
            else:
                wanted = "a certificate in the name of this device" if not certificate else "for 'box-2', not for this"
                await device.is_told("denied", wanted)


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_key_that_others_can_read_is_refused_until_it_is_mended(tmp_path: Path, papers: Papers) -> None:
    mine = papers.devices.issue("box-1")
    mine.key.chmod(0o644)
    async with secure_fleet(tmp_path, papers) as fleet:
        assert fleet.repository is not None
        tls = {"ca_file": papers.fleet.ca} | shown(mine)
        async with box(tmp_path / "box", fleet.url, fleet.repository, tls) as device:
            detail = await device.is_told("denied", "others can read or write it (mode 0644)")
            assert detail.startswith(f"update.tls.key_file: {mine.key}: ")
            assert f"(hint: chmod 600 {mine.key}" in detail
            mine.key.chmod(0o600)
            await device.is_told("ok")


def test_files_that_cannot_be_used_are_named(papers: Papers, tmp_path: Path) -> None:
    mine, other = papers.devices.issue("box-1"), papers.devices.issue("box-2")
    locked = papers.devices.issue("locked", passphrase="secret words")
    absent = tmp_path / "absent"
    for tls, complaint in (
        (TlsConfig(ca_file=absent), f"update.tls.ca_file: {absent}"),
        (TlsConfig(cert_file=mine.cert, key_file=absent), f"update.tls.key_file: {absent}: No such file"),
        (TlsConfig(cert_file=mine.cert, key_file=tmp_path), f"update.tls.key_file: {tmp_path}: not a file"),
        (TlsConfig(cert_file=mine.cert, key_file=other.key), "update.tls.cert_file: .*KEY_VALUES_MISMATCH"),
        (TlsConfig(cert_file=locked.cert, key_file=locked.key), "update.tls.cert_file: .*the key is encrypted"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            client_tls(UpdateConfig(tls=tls), None)


def test_a_group_may_read_what_root_owns(papers: Papers) -> None:
    if os.geteuid() != 0:
        pytest.skip("makes a file of root's")
    mine = papers.devices.issue("box-1")
    config = UpdateConfig(tls=TlsConfig(cert_file=mine.cert, key_file=mine.key))
    mine.key.chmod(0o640)
    assert client_tls(config, None).context is not None
    mine.key.chmod(0o660)
    with pytest.raises(ConfigError, match="mode 0660"):
        client_tls(config, None)
    mine.key.chmod(0o640)
    os.chown(mine.key, 4711, 4711)
    with pytest.raises(ConfigError, match="mode 0640"):
        client_tls(config, None)
    mine.key.chmod(0o600)
    with pytest.raises(ConfigError, match="belongs to another user"):
        client_tls(config, None)


def test_a_key_among_the_credentials_of_systemd(papers: Papers, tmp_path: Path) -> None:
    """Their folder guards them; access lists look like rights of others."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    mine = papers.devices.issue("box-1")
    (folder / "fleet-key").write_bytes(mine.key.read_bytes())
    (folder / "fleet-key").chmod(0o444)
    document = tmp_path / "agent.yaml"
    section = {"tls": {"cert_file": str(mine.cert), "key_file": "${CREDENTIALS_DIRECTORY}/fleet-key"}}
    document.write_text(yaml.safe_dump({"update": section}))
    config = load_config([document], env={"CREDENTIALS_DIRECTORY": str(folder)}).update
    assert client_tls(config, folder).context is not None
    with pytest.raises(ConfigError, match="others can read"):
        client_tls(config, None)


async def test_a_renewed_certificate_is_used_at_the_next_contact(tmp_path: Path, papers: Papers) -> None:
    """Also a wrong one, which shows that the next contact really has it."""
    mine = papers.devices.issue("mine", "box-1", days=(-3, -1))
    async with secure_fleet(tmp_path, papers, polling="00:00:01") as fleet:
        assert fleet.repository is not None
        tls = {"ca_file": papers.fleet.ca} | shown(mine)
        async with box(tmp_path / "box", fleet.url, fleet.repository, tls) as device:
            await device.is_told("denied", "certificate expired")
            mine.put(papers.devices.issue("second", "box-1"))
            await device.is_told("ok")
            mine.put(papers.devices.issue("box-2"))
            await device.is_told("denied", "for 'box-2'")
            third = papers.devices.issue("third", "box-1")
            mine.cert.write_bytes(third.cert.read_bytes())  # seen between the two steps of a renewal
            await device.is_told("denied", "KEY_VALUES_MISMATCH")
            mine.put(third)
            await device.is_told("ok")


async def test_a_renewed_token_is_used_at_the_next_contact(tmp_path: Path, papers: Papers) -> None:
    async with secure_fleet(tmp_path, papers) as fleet:
        assert fleet.repository is not None
        token = tmp_path / "token"
        token.touch(mode=0o600)
        token.write_text("the-one-before")
        tls = {"ca_file": papers.fleet.ca}
        async with box(tmp_path / "box", fleet.url, fleet.repository, tls, token_file=token) as device:
            await device.is_told("denied", "a valid token of this device is needed")
            token.write_text((await fleet.api("POST", "/devices/box-1/token")).json["token"])
            await device.is_told("ok")


def test_what_counts_as_renewed(papers: Papers, tmp_path: Path) -> None:
    mine = papers.devices.issue("box-1")
    token = tmp_path / "token"
    config = UpdateConfig(
        token_file=token, tls=TlsConfig(ca_file=papers.fleet.ca, cert_file=mine.cert, key_file=mine.key)
    )
    marks = [mark(config), mark(config)]
    assert marks[0] == marks[1]
    token.write_text("x")
    marks.append(mark(config))
    mine.put(papers.devices.issue("again", "box-1"))
    marks.append(mark(config))
    mine.key.chmod(0o640)
    marks.append(mark(config))
    assert len(set(marks)) == 4


# --- the repository ---------------------------------------------------------------------------------------------------


async def test_metadata_and_files_come_over_the_same_tls_and_wait_for_it(tmp_path: Path, papers: Papers) -> None:
    """A mirror with a certificate of an authority that is not named yet: no reason to refuse the release."""
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(papers.fleet.ca.read_bytes())
    mirror_pair = papers.stranger.issue("mirror", names=HERE)
    tls = {"ca_file": authorities} | shown(papers.devices.issue("box-1"))
    async with (
        secure_fleet(tmp_path, papers) as fleet,
        fleet_server(
            tmp_path / "mirror", repository=fleet.repository, tls={"cert": mirror_pair.cert, "key": mirror_pair.key}
        ) as mirror,
    ):
        assert fleet.repository is not None
        action = await fleet.offer(await asyncio.to_thread(fleet.release, tmp_path / "release"))
        place = f"https://127.0.0.1:{mirror.port}/repository"
        async with box(tmp_path / "box", fleet.url, fleet.repository, tls, repository=place) as device:
            state = await device.until(lambda now: "no trustworthy TLS" in now.get("detail", ""))
            assert (
                f"127.0.0.1:{mirror.port}: no trustworthy TLS connection: unable to get local issuer" in state["detail"]
            )
            assert f"update.tls.ca_file ({authorities})" in state["detail"]
            assert (state["phase"], state["waiting"]) == ("downloading", True)
            authorities.write_bytes(papers.fleet.ca.read_bytes() + papers.stranger.ca.read_bytes())
            await device.until(lambda now: now["phase"] == "committed")
            async with asyncio.timeout(30):
                while (await fleet.action(action)).open:
                    await asyncio.sleep(0.02)


async def test_tls_that_fails_in_the_download_is_not_the_releases_fault(tmp_path: Path, papers: Papers) -> None:
    """The metadata came; the files lie where it redirects to, at an authority that is not named yet."""
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(papers.fleet.ca.read_bytes())
    pair = papers.stranger.issue("store", names=HERE)
    tls = {"ca_file": authorities} | shown(papers.devices.issue("box-1"))
    async with secure_fleet(tmp_path, papers) as fleet:
        assert fleet.repository is not None
        await fleet.offer(await asyncio.to_thread(fleet.release, tmp_path / "release"))
        files = {f"/{path.name}": path.read_bytes() for path in fleet.repository.folder.glob("targets/*/*")}
        (name,) = files
        metadata = {
            f"/repository/metadata/{path.name}": path.read_bytes()
            for path in fleet.repository.folder.glob("metadata/*")
        }
        with (
            serving(files, server_context(pair)) as store,
            serving(metadata, server_context(papers.server)) as front,
        ):
            move(front, f"/repository/targets/pose{name}", store.url(name, "localhost"))
            place = front.url("/repository", "localhost")
            async with box(tmp_path / "box", fleet.url, fleet.repository, tls, repository=place) as device:
                state = await device.until(lambda now: "no trustworthy TLS" in now.get("detail", ""))
                assert f"localhost:{store.port}" in state["detail"]
                assert (state["phase"], state["waiting"]) == ("downloading", True)
                authorities.write_bytes(papers.fleet.ca.read_bytes() + papers.stranger.ca.read_bytes())
                await device.until(lambda now: now["phase"] == "committed")


# --- where tokens and requests go -------------------------------------------------------------------------------------

CONTENT = b'{"signed": {}}' * 50
SECRET = {"Authorization": "TargetToken secret"}
ONCE = Limits(connect_s=5, stall_s=5, attempts=1, initial_wait_s=0.01, max_wait_s=0.02, reserve_bytes=0)


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_the_fleet_server_leads_nowhere_else(papers: Papers, scheme: str) -> None:
    other_tls = server_context(papers.server) if scheme == "https" else None
    tls = Tls(ssl.create_default_context(cafile=papers.fleet.ca))
    with serving({}, other_tls) as other, serving({}, server_context(papers.server)) as server:
        server.plan = [redirect(other.url("/default/controller/v1/box-1", "localhost"), 307)]
        place = server.url("", "localhost")
        async with connect(place, "default", "box-1", authorization=SECRET["Authorization"], tls=tls) as client:
            with pytest.raises(AccessError, match=r"redirects are not followed.*update\.server"):
                await client.poll()
        assert server.requests[0][1]["authorization"] == SECRET["Authorization"]
        assert other.requests == []


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of this machine that does not look like it: from itself to itself a download may go as it likes."""
    resolve = socket.getaddrinfo

    def find(host: Any, *rest: Any, **more: Any) -> Any:
        return resolve("127.0.0.1" if host in {"fleet.test", b"fleet.test"} else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", find)
    return "fleet.test"


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_files_may_be_elsewhere_but_not_unencrypted_and_tokens_stay(
    papers: Papers, tmp_path: Path, scheme: str, far: str
) -> None:
    pair = papers.fleet.issue("far", names=(far,))
    other_tls = server_context(pair) if scheme == "https" else None
    tls = Tls(ssl.create_default_context(cafile=papers.fleet.ca))
    wanted = Wanted(len(CONTENT), len(CONTENT), checksum_known=True)
    part = tmp_path / "part"

    def fetch(url: str) -> bytes:
        with MetadataFetcher(tls, SECRET) as fetcher:
            return fetcher.download_bytes(url, len(CONTENT))

    with serving({"/a": CONTENT}, other_tls) as other, serving({"/a": CONTENT}, server_context(pair)) as server:
        url = server.url("/a", far)
        for get in (
            lambda: asyncio.to_thread(fetch, url),
            lambda: download(url, part, wanted, Watcher(), limits=ONCE, access=Access(SECRET, tls)),
        ):
            server.plan = [redirect(other.url("/a", far))]
            if scheme == "https":
                await get()
            else:
                with pytest.raises(Exception, match="redirects from https to http"):
                    await get()
        assert [headers["authorization"] for _, headers in server.requests] == [SECRET["Authorization"]] * 2
        assert len(other.requests) == (2 if scheme == "https" else 0)
        assert not [headers for _, headers in other.requests if "authorization" in headers]


async def test_an_address_with_the_wrong_scheme_is_said(tmp_path: Path, papers: Papers) -> None:
    async with (
        fleet_server(tmp_path) as fleet,
        connect(f"https://localhost:{fleet.port}", "default", "box-1") as client,
    ):
        with pytest.raises(AccessError, match=r"it speaks no TLS \(hint: http:// in place of https://"):
            await client.poll()


async def test_through_a_proxy_the_certificate_is_still_the_devices(
    tmp_path: Path, papers: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = papers.devices.issue("box-1")
    tls = client_tls(UpdateConfig(tls=TlsConfig(ca_file=papers.fleet.ca, cert_file=mine.cert, key_file=mine.key)), None)
    async with secure_fleet(tmp_path, papers) as fleet:
        with proxying() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            async with connect(fleet.url, "default", "box-1", tls=tls) as client:
                assert await client.poll() is not None
            assert proxy.seen == [f"CONNECT localhost:{fleet.port}"]
            async with connect(fleet.url, "default", "box-1", tls=dataclasses.replace(tls, context=None)) as client:
                with pytest.raises(AccessError, match="no trustworthy TLS"):
                    await client.poll()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"server": "http://fleet.example"}, "token and reports would go unencrypted"),
        ({"server": "http://10.0.0.5:8090"}, "https://, or allow_http: true"),
        ({"server": "http://10.0.0.5:8090", "allow_http": True}, ""),
        ({"server": "http://127.0.0.1:8090"}, ""),
        ({"server": "http://[::1]:8090"}, ""),
        ({"server": "http://localhost:8090"}, ""),
        ({"server": "http://localhost.example"}, "unencrypted"),
        ({"repository": "http://files.example"}, ""),  # everything in it is signed, and no token goes there
        ({"tls": {"verify_hostname": False}}, "needs a ca_file"),
        ({"tls": {"verify_hostname": False, "ca_file": "/ca.pem"}}, ""),
        ({"tls": {"cert_file": "/c.pem"}}, "go together"),
    ],
)
def test_what_a_configuration_may_ask_for(changes: dict[str, object], complaint: str) -> None:
    fields = {"enabled": True, "server": "https://fleet.example", "repository": "https://r.example", "root_file": "/r"}
    if complaint:
        with pytest.raises(ValidationError, match=complaint):
            UpdateConfig.model_validate(fields | changes)
    else:
        UpdateConfig.model_validate(fields | changes)


# --- end to end -------------------------------------------------------------------------------------------------------


async def test_a_whole_update_with_certificates_alone(tmp_path: Path, papers: Papers) -> None:
    """`recognizer-fleet serve` as a process, keys as systemd's credentials on both sides, certificates required, no token anywhere."""
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    mine = papers.devices.issue("box-1")
    for name, key in (("server-key", papers.server.key), ("device-key", mine.key)):
        (credentials / name).write_bytes(key.read_bytes())
        (credentials / name).chmod(0o444)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    repository, port = Repository(tmp_path / "repository"), free_port("127.0.0.1")
    settings = {
        "data": "data", "port": port, "repository": str(repository.folder), "require_certificates": True,
        "tls": {"cert": str(papers.server.cert), "key": "${CREDENTIALS_DIRECTORY}/server-key", "client_ca": str(papers.devices.ca)},
    }  # fmt: skip
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(settings))
    bundle = make_bundle(tmp_path / "bundle", golden=False)
    packed = pack(bundle, tmp_path, {"pose": 0}, Wishes())
    content = packed.file.read_bytes()
    repository.add(packed.release, content)
    repository.publish()
    async with served(tmp_path, port, papers.fleet.ca, environ) as api:
        await api("POST", "/devices", {"id": "box-1"})
        released = (await api("GET", "/releases"))["releases"][0]["id"]
        action = (await api("POST", "/devices/box-1/actions", {"release": released}))["id"]
        tls = {"ca_file": papers.fleet.ca, "cert_file": mine.cert, "key_file": credentials / "device-key"}
        url = f"https://localhost:{port}"
        async with box(tmp_path / "box", url, repository, tls, environ, shadow_s=0, probation_s=0) as device:
            state = await device.until(lambda now: now.get("result"))
            assert (state["phase"], state["result"]) == ("committed", "success")
            running = device.trials.running("pose")
            assert running is not None
            assert state["figures"]["download_bytes"] == len(content)
            assert (running / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
            async with asyncio.timeout(30):
                while (await api("GET", f"/actions/{action}"))["state"] != "finished":
                    await asyncio.sleep(0.05)
    log = (tmp_path / "fleet.log").read_text()
    assert "fleet_client_certificate_refused" not in log


@asynccontextmanager
async def served(
    folder: Path, port: int, ca: Path, environ: Mapping[str, str]
) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Any]]]:
    """The server as a process; what asks its management interface."""
    command = [sys.executable, "-m", "ota.cli", "serve", "--config", str(folder / "fleet.yaml")]
    with (folder / "fleet.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=REPO, stdout=log, stderr=log, env=os.environ | environ
        )
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca))
    try:
        async with aiohttp.ClientSession(connector=connector) as session:

            async def api(method: str, path: str, body: Any = None) -> Any:
                token = (folder / "data" / "admin-token").read_text().strip()
                url = f"https://localhost:{port}/api/v1{path}"
                async with session.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"}) as got:
                    assert got.status < 300, await got.text()
                    return await got.json()

            async with asyncio.timeout(60):
                while True:
                    assert process.returncode is None, (folder / "fleet.log").read_text()
                    try:
                        if (await api("GET", "/releases"))["releases"]:
                            break
                    except (OSError, aiohttp.ClientError):
                        pass
                    await asyncio.sleep(0.05)
            yield api
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
