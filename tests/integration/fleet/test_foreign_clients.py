"""Clients that other people wrote, against our server: Debian's SWUpdate and the Python client of RAUC."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import sys
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
    file = fleet.repository.targets[target]
    return await fleet.services.store.write(
        lambda c: releases.add(
            c,
            release(1),
            target=target,
            length=len(image),
            sha256=file.hashes["sha256"],
            sha1="00" * 20,
            md5="00" * 16,
            now_ms=1,
        )
    )


async def run_swupdate(fleet: FleetServer, folder: Path, token: str, certificate: Path) -> asyncio.subprocess.Process:
    options = f"-t default -u {fleet.url} -i box-1 -k {token} -p 1"
    return await asyncio.create_subprocess_exec(
        str(SWUPDATE), "-H", HARDWARE, "-l", "5", "-k", str(certificate), "-u", options,
        env={"TMPDIR": str(folder), "PATH": os.environ["PATH"]}, cwd=folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def wait_for_end(fleet: FleetServer, action_id: int) -> None:
    async with asyncio.timeout(30):
        while (await fleet.action(action_id)).open:
            await asyncio.sleep(0.1)


@needs_swupdate
@pytest.mark.parametrize("signed_by_another", [False, True], ids=["genuine", "signed by another"])
async def test_swupdate(fleet: FleetServer, tmp_path: Path, signed_by_another: bool) -> None:
    folder, other, installed = tmp_path / "swu", tmp_path / "other", tmp_path / "installed"
    folder.mkdir()
    other.mkdir()
    image, certificate = make_swu(folder, b"the new firmware", installed)
    if signed_by_another:
        _, certificate = make_swu(other, b"", installed)
    device = await fleet.device()
    row = await image_as_release(fleet, image)
    action_id = await fleet.assign(device, row.id)
    process = await run_swupdate(fleet, folder, device.headers["Authorization"].split()[1], certificate)
    try:
        await wait_for_end(fleet, action_id)
    finally:
        process.terminate()
        output, _ = await process.communicate()
    action = await fleet.action(action_id)
    reports = await fleet.reports(action_id)
    assert action.state == ("error" if signed_by_another else "finished"), output.decode()[-3000:]
    assert installed.exists() != signed_by_another
    assert reports[-1] == ("deployment", "closed", "failure" if signed_by_another else "success")
    assert ("deployment", "proceeding", "none") in reports


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
