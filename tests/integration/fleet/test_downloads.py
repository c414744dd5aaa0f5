"""Artifacts and the TUF repository over HTTP, and which releases the server takes for real."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.fleet_server import FleetServer, Repository, fleet_server, release
from securesystemslib.signer import CryptoSigner
from tuf.ngclient import Updater, UpdaterConfig

from agent.errors import ConfigError, TransientError, TrustError
from ota.server import catalogue
from ota.server.catalogue import pinned_root, read_offers
from ota.server.files import range_in

CONTENT = b"0123456789" * 5000


async def arrange(fleet: FleetServer) -> tuple[str, dict[str, str], bytes]:
    """Address, credentials and bytes of an artifact."""
    device = await fleet.device()
    (found,) = await fleet.publish(1, content=CONTENT)
    await fleet.assign(device, found.id)
    path = f"{device.base}/softwaremodules/{found.id}/artifacts/{found.file_name}"
    return path, device.headers, CONTENT + b"\x01"


async def test_range_and_resume(fleet: FleetServer) -> None:
    path, headers, content = await arrange(fleet)
    whole = await fleet.ask("GET", path, headers=headers)
    etag = whole.headers["ETag"]
    assert (whole.status, whole.raw, whole.headers["Accept-Ranges"]) == (200, content, "bytes")
    assert etag == f'"{hashlib.sha256(content).hexdigest()}"'
    part = await fleet.ask("GET", path, headers=headers | {"Range": "bytes=1000-1999", "If-Range": etag})
    assert (part.status, part.raw) == (206, content[1000:2000])
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(content)}"
    rest = await fleet.ask("GET", path, headers=headers | {"Range": "bytes=50000-"})
    assert (rest.status, rest.raw) == (206, content[50000:])
    tail = await fleet.ask("GET", path, headers=headers | {"Range": "bytes=-3"})
    assert (tail.status, tail.raw) == (206, content[-3:])


async def test_another_version_is_sent_whole(fleet: FleetServer) -> None:
    path, headers, content = await arrange(fleet)
    for other in ('"other"', "Wed, 21 Oct 2015 07:28:00 GMT", 'W/"x"'):
        answer = await fleet.ask("GET", path, headers=headers | {"Range": "bytes=5-", "If-Range": other})
        assert (answer.status, answer.raw) == (200, content)


async def test_conditions(fleet: FleetServer) -> None:
    path, headers, content = await arrange(fleet)
    etag = (await fleet.ask("HEAD", path, headers=headers)).headers["ETag"]
    assert (await fleet.ask("GET", path, headers=headers | {"If-None-Match": etag})).status == 304
    assert (await fleet.ask("GET", path, headers=headers | {"If-Match": '"x"'})).status == 412
    assert (await fleet.ask("GET", path, headers=headers | {"If-Match": etag})).status == 200
    past = await fleet.ask("GET", path, headers=headers | {"Range": f"bytes={len(content)}-"})
    assert (past.status, past.headers["Content-Range"]) == (416, f"bytes */{len(content)}")


async def test_head_has_the_length_and_no_body(fleet: FleetServer) -> None:
    path, headers, content = await arrange(fleet)
    head = await fleet.ask("HEAD", path, headers=headers)
    assert (head.status, head.raw, head.headers["Content-Length"]) == (200, b"", str(len(content)))


async def test_md5sum_as_the_program_takes_it(fleet: FleetServer) -> None:
    path, headers, content = await arrange(fleet)
    answer = await fleet.ask("GET", f"{path}.MD5SUM", headers=headers)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert answer.raw.decode() == f"{digest}  pose-nano-0.1.0.tar.zst"


async def test_only_who_was_told_to_may_have_it(fleet: FleetServer) -> None:
    path, _, _ = await arrange(fleet)
    other = await fleet.device("box-2")
    stolen = path.replace("box-1", "box-2")
    assert (await fleet.ask("GET", stolen, headers=other.headers)).status == 404
    assert (await fleet.ask("GET", path, headers=other.headers)).status == 401
    assert (await fleet.ask("GET", path)).status == 401
    waiting = await fleet.device("box-3")
    await fleet.assign(waiting, 1, confirm=True)
    assert (await waiting.ask("GET", "/softwaremodules/1/artifacts")).status == 404  # nobody has said yes yet


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fdata%2fadmin-token", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "....//x", "pose-nano-0.1.0.tar.zst%00.txt", "%00", "..",
        "..%5c..%5cx", "/etc/passwd", "%2fetc%2fpasswd", "a" * 3000,
    ],
)  # fmt: skip
async def test_no_way_out_of_the_folder(fleet: FleetServer, name: str) -> None:
    path, headers, _ = await arrange(fleet)
    folder = path.rpartition("/")[0]
    for hostile in (
        f"{folder}/{name}",
        f"/repository/targets/{name}",
        f"/repository/metadata/{name}",
        f"/repository/{name}",
    ):
        answer = await raw(fleet, hostile, headers)
        assert answer.split(b" ")[1] in (b"400", b"403", b"404"), answer
        assert b"root:" not in answer
        assert fleet.admin.encode() not in answer


async def raw(fleet: FleetServer, path: str, headers: dict[str, str]) -> bytes:
    """A request whose path no client library has tidied up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: x",
        "Connection: close",
        *(f"{key}: {value}" for key, value in headers.items()),
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_links_out_of_the_repository_are_not_followed(fleet: FleetServer, tmp_path: Path) -> None:
    assert fleet.repository is not None
    outside = tmp_path / "secret.json"
    outside.write_text("secret")
    (fleet.repository.folder / "metadata" / "9.targets.json").symlink_to(outside)
    (fleet.repository.folder / "staged").mkdir()
    (fleet.repository.folder / "staged" / "x.json").write_text("not yet public")
    os.mkfifo(fleet.repository.folder / "targets-pipe")
    for path in ("metadata/9.targets.json", "staged/x.json", "targets-pipe", "metadata", "metadata/", ".lock"):
        assert (await fleet.ask("GET", f"/repository/{path}")).status == 404, path


async def test_repository_is_one_that_tufs_client_accepts(fleet: FleetServer, tmp_path: Path) -> None:
    assert fleet.repository is not None
    await fleet.publish(1, 2, content=CONTENT)
    (tmp_path / "client").mkdir()

    def use() -> bytes:
        assert fleet.repository is not None
        updater = Updater(
            str(tmp_path / "client"), f"{fleet.url}/repository/metadata/", str(tmp_path / "client"),
            f"{fleet.url}/repository/targets/", bootstrap=fleet.repository.root, config=UpdaterConfig(),
        )  # fmt: skip
        info = updater.get_targetinfo("pose/pose-nano-0.2.0.tar.zst")
        assert info is not None
        return Path(updater.download_target(info)).read_bytes()

    assert await asyncio.to_thread(use) == CONTENT + b"\x02"


async def test_what_changes_is_not_cached_what_does_not_is(fleet: FleetServer) -> None:
    (found,) = await fleet.publish(1)
    assert fleet.repository is not None
    name = f"targets/pose/{found.sha256}.{found.file_name}"
    caching = {
        path: (await fleet.ask("GET", f"/repository/{path}")).headers["Cache-Control"]
        for path in ("metadata/timestamp.json", "metadata/1.root.json", "metadata/2.targets.json", name)
    }
    immutable = "public, max-age=31536000, immutable"
    assert list(caching.values()) == ["no-cache", immutable, immutable, immutable]
    etag = (await fleet.ask("GET", "/repository/metadata/timestamp.json")).headers["ETag"]
    again = await fleet.ask("GET", "/repository/metadata/timestamp.json", headers={"If-None-Match": etag})
    assert (again.status, again.raw) == (304, b"")
    fleet.repository.publish()
    changed = await fleet.ask("GET", "/repository/metadata/timestamp.json", headers={"If-None-Match": etag})
    assert changed.status == 200


async def test_server_without_a_repository(tmp_path: Path) -> None:
    async with fleet_server(tmp_path) as fleet:
        assert (await fleet.ask("GET", "/repository/metadata/timestamp.json")).status == 404
        assert (await fleet.api("GET", "/releases")).json == {"releases": [], "total": 0, "next": None}
        assert (await fleet.api("POST", "/releases/sync")).status == 404


# --- which releases there are -----------------------------------------------------------------------------------------


async def test_release_is_known_soon_after_it_was_published(fleet: FleetServer) -> None:
    assert fleet.repository is not None
    fleet.repository.add(release(5), b"five")
    fleet.repository.publish()
    async with asyncio.timeout(10):
        while not (shown := (await fleet.api("GET", "/releases")).json["releases"]):
            await asyncio.sleep(0.05)
    assert [(one["slot"], one["name"], one["number"]) for one in shown] == [("pose", "pose-nano", 5)]
    assert shown[0]["sha256"] == hashlib.sha256(b"five").hexdigest()
    assert shown[0]["custom"]["contract"]["task"] == "pose"


async def test_withdrawn_release_cannot_be_assigned_and_comes_back(fleet: FleetServer) -> None:
    assert fleet.repository is not None
    device = await fleet.device()
    (found,) = await fleet.publish(1)
    kept = fleet.repository.targets.pop(found.target)
    fleet.repository.publish()
    await fleet.sync()
    assert (await fleet.api("GET", "/releases")).json["total"] == 0
    assert (await fleet.api("GET", "/releases?all=true")).json["total"] == 1
    refused = await fleet.api("POST", f"/devices/{device.id}/actions", {"release": found.id})
    assert (refused.status, refused.json) == (409, {"error": "pose-nano 0.1.0 is no longer among the signed targets"})
    fleet.repository.targets[found.target] = kept
    fleet.repository.publish()
    await fleet.sync()
    assert await fleet.assign(device, found.id)


async def test_release_that_was_signed_anew_has_its_new_number_and_conditions_and_brings_a_fleet_back(
    fleet: FleetServer,
) -> None:
    """`sign --again`: the same bytes under the same path. Without the number every device counts as newer."""
    assert fleet.repository is not None
    device = await fleet.device()
    for found in await fleet.publish(1, 2):
        await device.report(await fleet.assign(device, found.id), "closed", "success")
    old, _ = await fleet.releases()
    content = b"a bundle " * 500 + bytes([1])
    again = release(1).model_copy(update={"number": 3, "min_agent": "0.9.0"})
    fleet.repository.add(again, content)
    fleet.repository.publish()
    await fleet.sync()
    now, untouched = await fleet.releases()
    assert (now.id, now.number, now.custom["number"], now.custom["min_agent"]) == (old.id, 3, 3, "0.9.0")
    assert (now.sha1, now.created_ms, untouched.number) == (old.sha1, old.created_ms, 2)
    rollout = (await fleet.api("POST", "/rollouts", {"name": "back", "release": now.id})).json
    started = await fleet.api("POST", f"/rollouts/{rollout['id']}/start")
    assert (started.status, started.json["devices"]) == (200, 1)
    assert (await fleet.api("POST", "/releases/sync")).json == {"releases": []}


async def test_release_that_was_withdrawn_comes_back_under_a_new_number(fleet: FleetServer) -> None:
    assert fleet.repository is not None
    (found,) = await fleet.publish(1)
    del fleet.repository.targets[found.target]
    fleet.repository.publish()
    await fleet.sync()
    fleet.repository.add(release(1).model_copy(update={"number": 5}), b"a bundle " * 500 + bytes([1]))
    fleet.repository.publish()
    answer = await fleet.api("POST", "/releases/sync")
    assert [(one["id"], one["number"]) for one in answer.json["releases"]] == [(found.id, 5)]
    (row,) = await fleet.releases()
    assert (row.number, row.available) == (5, True)


async def test_file_that_is_not_the_signed_one_is_no_release(fleet: FleetServer) -> None:
    assert fleet.repository is not None
    fleet.repository.add(release(1), b"genuine")
    fleet.repository.add(release(2), b"genuine too")
    digest = hashlib.sha256(b"genuine").hexdigest()
    (fleet.repository.folder / "targets" / "pose" / f"{digest}.pose-nano-0.1.0.tar.zst").write_bytes(b"swapped")
    fleet.repository.publish()
    await fleet.sync()
    assert [row.number for row in await fleet.releases()] == [2]


async def test_a_file_that_comes_after_the_metadata_makes_a_release(
    fleet: FleetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a repository is copied in the order of its names."""
    monkeypatch.setattr(catalogue, "AGAIN_S", 0.05)
    monkeypatch.setattr(catalogue, "LOOK_EVERY_S", 0.05)
    assert fleet.repository is not None
    fleet.repository.add(release(4), b"late")
    digest = hashlib.sha256(b"late").hexdigest()
    (file,) = (fleet.repository.folder / "targets" / "pose").glob(f"{digest}.*")
    aside = file.rename(fleet.repository.folder / "aside")
    fleet.repository.publish()
    await fleet.sync()
    assert await fleet.releases() == []
    await asyncio.sleep(0.2)
    aside.rename(file)
    async with asyncio.timeout(10):
        while not await fleet.releases():
            await asyncio.sleep(0.05)


async def test_targets_that_are_no_releases_are_passed_over(fleet: FleetServer) -> None:
    assert fleet.repository is not None
    fleet.repository.add(release(1), b"one", path="pose/another-name.tar.zst")
    fleet.repository.add(release(2), b"two")
    del fleet.repository.targets[fleet.repository.add(release(3), b"three")].unrecognized_fields["custom"]
    fleet.repository.publish()
    await fleet.sync()
    assert [row.number for row in await fleet.releases()] == [2]


async def test_repository_signed_by_somebody_else_changes_nothing(fleet: FleetServer) -> None:
    assert fleet.repository is not None
    await fleet.publish(1)
    fleet.repository.signers["targets"] = CryptoSigner.generate_ed25519()
    fleet.repository.add(release(9), b"evil")
    fleet.repository.publish()
    answer = await fleet.api("POST", "/releases/sync")
    assert answer.status == 409
    assert "not to be trusted" in answer.json["error"]
    assert [row.number for row in await fleet.releases()] == [1]


async def test_new_root_in_the_folder_is_not_taken_for_the_old(tmp_path: Path) -> None:
    async with fleet_server(tmp_path, repository=Repository(tmp_path / "repository")) as fleet:
        await fleet.publish(1)
    replaced = Repository(tmp_path / "repository")  # everything in the folder replaced, other keys
    async with fleet_server(tmp_path, repository=replaced) as fleet:
        replaced.add(release(9), b"evil")
        replaced.publish()
        with pytest.raises(TrustError):
            await fleet.sync()
        assert [row.number for row in await fleet.releases()] == [1]


def test_rolled_back_expired_and_half_published(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "r")
    old = (repository.folder / "metadata" / "timestamp.json").read_bytes()
    repository.publish()
    root = pinned_root(tmp_path, repository.folder, None)
    read_offers(repository.folder, tmp_path / "trust", root)
    (repository.folder / "metadata" / "timestamp.json").write_bytes(old)
    with pytest.raises(TrustError):
        read_offers(repository.folder, tmp_path / "trust", root)
    repository.publish()
    (repository.folder / "metadata" / f"{repository.version}.snapshot.json").unlink()
    with pytest.raises(TransientError, match="incomplete"):
        read_offers(repository.folder, tmp_path / "trust", root)
    repository.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    repository.publish()
    with pytest.raises(TrustError, match="expired"):
        read_offers(repository.folder, tmp_path / "trust", root)


def test_a_root_that_the_disk_does_not_take_is_not_pinned_in_part(tmp_path: Path) -> None:
    repository, data = Repository(tmp_path / "repository"), tmp_path / "data"
    data.mkdir()
    script = (
        "import resource, sys; from pathlib import Path; from ota.server.catalogue import pinned_root;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); pinned_root(Path(sys.argv[1]), Path(sys.argv[2]), None)"
    )
    command = [sys.executable, "-c", script, str(data), str(repository.folder)]
    assert "File too large" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert pinned_root(data, repository.folder, None) == repository.root


def test_root_is_pinned_at_the_first_start(tmp_path: Path) -> None:
    first, second = Repository(tmp_path / "a"), Repository(tmp_path / "b")
    (tmp_path / "data").mkdir()
    assert pinned_root(tmp_path / "data", first.folder, None) == first.root
    assert pinned_root(tmp_path / "data", second.folder, None) == first.root
    (tmp_path / "given.json").write_bytes(second.root)
    assert pinned_root(tmp_path / "data", second.folder, tmp_path / "given.json") == second.root
    with pytest.raises(ConfigError, match="make the repository first"):
        pinned_root(tmp_path, tmp_path / "empty", None)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)), ("bytes=0-", (0, 100)), ("bytes=99-200", (99, 100)), ("bytes=-100", (0, 100)), ("bytes=-200", (0, 100)),
        ("bytes=-0", (100, 100)), ("bytes=100-", (100, 100)), ("Bytes = 1-2", (1, 3)), ("bytes=", None), ("bytes=-", None),
        ("items=0-1", None), ("bytes=2-1", None), ("bytes=0-1,5-6", None), ("bytes=a-b", None), ("bytes=٣-٤", None),
        ("bytes=1e3-", None), ("bytes=" + "9" * 30 + "-", None),
    ],
)  # fmt: skip
def test_range_header(header: str, expected: tuple[int, int] | None) -> None:
    assert range_in(header, 100) == expected
