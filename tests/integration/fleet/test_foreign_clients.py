"""Clients that other people wrote, against our server: Debian's SWUpdate and the Python client of RAUC."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes.fleet_server import FleetServer, release
from fakes.swu import HARDWARE, OPENSSL, make_swu

from ota.store import releases
from ota.store.rows import ReleaseRow

SWUPDATE = shutil.which("swupdate") or shutil.which("swupdate", path="/usr/sbin:/sbin")
RAUC = os.environ.get("RAUC_HAWKBIT", "")
"""Folder that holds the package `rauc_hawkbit`."""

needs_swupdate = pytest.mark.skipif(
    SWUPDATE is None or OPENSSL is None, reason="needs swupdate and openssl (Debian: swupdate)"
)
needs_rauc = pytest.mark.skipif(
    not RAUC and importlib.util.find_spec("rauc_hawkbit") is None,
    reason="needs rauc-hawkbit: pip install --no-deps --target DIR rauc-hawkbit, RAUC_HAWKBIT=DIR",
)


async def image_as_release(fleet: FleetServer, image: bytes) -> ReleaseRow:
    """SWUpdate looks at names: it takes only `.swu`, which no release of ours is called."""
    assert fleet.repository is not None
    target = "pose/firmware-1.0.0.swu"
    fleet.repository.add(release(1), image, path=target)
    sums = {name: hashlib.new(name, image, usedforsecurity=False).hexdigest() for name in ("sha256", "sha1", "md5")}
    return await fleet.services.store.write(
        lambda c: releases.add(c, release(1), target=target, length=len(image), now_ms=1, **sums)
    )


async def run_swupdate(
    fleet: FleetServer, folder: Path, token: str, certificate: Path, more: str = ""
) -> asyncio.subprocess.Process:
    options = f"-t default -u {fleet.url} -i box-1 -k {token} -p 1 {more}"
    return await asyncio.create_subprocess_exec(
        str(SWUPDATE), "-H", HARDWARE, "-l", "5", "-k", str(certificate), "-u", options,
        env={"TMPDIR": str(folder), "PATH": os.environ["PATH"]}, cwd=folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


@asynccontextmanager
async def swupdate(
    fleet: FleetServer, folder: Path, token: str, certificate: Path, more: str = ""
) -> AsyncIterator[None]:
    """The program at work; what it printed is shown when something fails."""
    process = await run_swupdate(fleet, folder, token, certificate, more)
    assert process.stdout is not None
    printed = asyncio.create_task(process.stdout.read())
    try:
        async with asyncio.timeout(30):
            yield
    except TimeoutError:
        process.kill()
        pytest.fail((await printed).decode()[-3000:])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await printed


@needs_swupdate
async def test_swupdate_installs_restarts_and_confirms(fleet: FleetServer, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    image, certificate = make_swu(tmp_path, b"the new firmware", installed)
    device = await fleet.device()
    action_id = await fleet.assign(device, (await image_as_release(fleet, image)).id)
    token = device.headers["Authorization"].split()[1]
    async with swupdate(fleet, tmp_path, token, certificate):
        while (await fleet.action(action_id)).detail != "All Chunks Installed.":
            await asyncio.sleep(0.1)
    assert installed.read_bytes() == b"the new firmware"
    assert (await fleet.action(action_id)).state == "running"  # it was not tried yet
    async with swupdate(fleet, tmp_path, token, certificate, "-c 2"):
        while (await fleet.action(action_id)).open:
            await asyncio.sleep(0.1)
    assert (await fleet.action(action_id)).state == "finished"
    reports = await fleet.reports(action_id)
    assert reports[-1] == ("deployment", "closed", "success")
    assert ("deployment", "proceeding", "none") in reports[:-1]


@needs_swupdate
async def test_swupdate_refuses_an_image_that_another_signed(fleet: FleetServer, tmp_path: Path) -> None:
    installed, other = tmp_path / "installed", tmp_path / "other"
    other.mkdir()
    image, _ = make_swu(tmp_path, b"the new firmware", installed)
    _, certificate = make_swu(other, b"", installed)
    device = await fleet.device()
    action_id = await fleet.assign(device, (await image_as_release(fleet, image)).id)
    async with swupdate(fleet, tmp_path, device.headers["Authorization"].split()[1], certificate):
        while (await fleet.action(action_id)).open:
            await asyncio.sleep(0.1)
    assert (await fleet.action(action_id)).state == "error"
    assert not installed.exists()
    assert (await fleet.reports(action_id))[-1] == ("deployment", "closed", "failure")


@needs_rauc
async def test_rauc_hawkbit(fleet: FleetServer, tmp_path: Path) -> None:
    device = await fleet.device()
    (row,) = await fleet.publish(1, content=b"a bundle of rauc " * 10_000)
    action_id = await fleet.assign(device, row.id)
    program = Path(__file__).parent.parent.parent / "fakes" / "rauc_client.py"
    token = device.headers["Authorization"].split()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), f"127.0.0.1:{fleet.port}", "DEFAULT", device.id, token, str(tmp_path / "bundle"),
        env={"PYTHONPATH": RAUC, "PATH": os.environ["PATH"]}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    answer = json.loads(output)
    assert answer["sleep"] == "00:00:30"
    assert answer["late"].startswith("410")
    assert answer["links"] == ["configData", "installedBase"]
    assert (tmp_path / "bundle").read_bytes() == b"a bundle of rauc " * 10_000 + b"\x01"
    assert (await fleet.action(action_id)).state == "finished"
    assert dict((await fleet.device_row(device.id)).attributes) == {"MAC": "aa:bb", "system": "rauc"}
    assert await fleet.reports(action_id) == [("deployment", "proceeding", "none"), ("deployment", "closed", "success")]
