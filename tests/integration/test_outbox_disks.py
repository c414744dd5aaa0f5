"""Disks that turn read-only or fill up under a running store, and what the relay does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.powerloss_fs import REASON, PowerLossMount

from agent.config.delivery import OutboxConfig
from agent.config.sections import BackoffConfig
from agent.errors import StorageError, StorageFullError
from agent.outbox.history import EventQuery
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

CONFIG = OutboxConfig(reserve_bytes=0)
needs_fuse = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


def event(event_id: str, lane: Lane = Lane.EVENT) -> Message:
    return Message(lane, event_id, "recognizer/box/events/door/fight", lambda _: event_id.encode())


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[OutboxStore]:
    store = await OutboxStore.open(path, CONFIG)
    try:
        yield store
    finally:
        await store.close()


async def kept(store: OutboxStore) -> list[str]:
    """Ids in order of sequence, which has no holes."""
    rows = await store.events(EventQuery(limit=None))
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    return [row.event_id for row in rows]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PowerLossMount]:
    with PowerLossMount(tmp_path / "safe", tmp_path / "mount") as mounted:
        yield mounted


@needs_fuse
@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC], ids=["read-only", "input-output", "full"])
async def test_a_disk_that_refuses_changes_costs_only_what_is_put_meanwhile(
    disk: PowerLossMount, tmp_path: Path, number: int
) -> None:
    """The producer is told, no number is used, and the store goes on by itself when the disk works again."""
    async with opened(tmp_path / "mount" / "events.db") as store:
        for n in range(20):
            await store.put(event(f"before {n}"))
        disk.refuse(number)
        for n in range(5):
            with pytest.raises(StorageFullError if number == errno.ENOSPC else StorageError):
                await store.put(event(f"refused {n}"))
        disk.refuse(0)
        assert await store.put(event("after")) == 21
        assert await kept(store) == [*(f"before {n}" for n in range(20)), "after"]
        records = await store.fetch(Lane.EVENT, 100)
        assert len(records) == 21


class Recorder:
    """A link that takes everything."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.connected = True
        self.receive_maximum = 20

    async def wait_connected(self) -> None:
        return

    async def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        self.sent.append(payload)
        await asyncio.sleep(0)


@needs_fuse
async def test_deliveries_go_on_while_the_disk_is_read_only_and_are_not_repeated(
    disk: PowerLossMount, tmp_path: Path
) -> None:
    """What was delivered is remembered in memory until it can be written down."""
    async with opened(tmp_path / "mount" / "events.db") as store:
        for n in range(50):
            await store.put(event(f"e{n}"))
        disk.refuse(errno.EROFS)
        link = Recorder()
        relay = asyncio.create_task(Relay(store, link, backoff=BackoffConfig(initial_s=0.05, max_s=0.1)).run())
        async with asyncio.timeout(20):
            while len(link.sent) < 50:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        disk.refuse(0)
        async with asyncio.timeout(20):
            while any(depth.rows for depth in (await store.depth()).values()):
                await asyncio.sleep(0.05)
                await store.put(event("nudge", Lane.STATE))
        relay.cancel()
        await asyncio.wait([relay])
        events = [payload for payload in link.sent if payload != b"nudge"]
        assert events == [f"e{n}".encode() for n in range(50)]


class Ext4:
    """A real ext4 on a loop device that turns read-only at its first error."""

    tools = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

    def __init__(self, image: Path, folder: Path) -> None:
        self.folder = folder
        self._image = image
        image.touch()
        os.truncate(image, 32_000_000)
        folder.mkdir()
        self._run("mkfs.ext4", "-q", str(image))

    def mount(self) -> None:
        self._run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.folder))

    def umount(self) -> None:
        self._run("umount", str(self.folder))

    def fail(self) -> None:
        """The kernel finds an error; skips where it cannot be told to."""
        source = self._run("findmnt", "-no", "SOURCE", str(self.folder)).strip()
        trigger = Path("/sys/fs/ext4", Path(source).name, "trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel cannot provoke an error of ext4")
        trigger.write_text("test")

    def repair(self) -> None:
        """1: errors were corrected."""
        self._run("fsck.ext4", "-fy", str(self._image), good=(0, 1))

    def _run(self, tool: str, *arguments: str, good: tuple[int, ...] = (0,)) -> str:
        command = [str(shutil.which(tool, path=self.tools)), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode not in good:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ext4]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4", path=Ext4.tools) is None:
        pytest.skip("needs root and e2fsprogs")
    made = Ext4(tmp_path / "image", tmp_path / "ext4")
    try:
        made.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop devices here: {error.stderr}")
    yield made
    if os.path.ismount(made.folder):
        made.umount()


async def test_a_file_system_that_the_kernel_turned_read_only(ext4: Ext4) -> None:
    """Puts fail with a hint, nothing is lost, and after the repair all is there."""
    path = ext4.folder / "events.db"
    async with opened(path) as store:
        for n in range(20):
            await store.put(event(f"before {n}"))
        ext4.fail()
        with pytest.raises(StorageError, match=r"events\.db"):  # an I/O error, as the kernel says it
            await store.put(event("refused"))
        for _ in range(3):
            with pytest.raises(StorageError, match=r"events\.db.*[Rr]ead-?only"):
                await store.put(event("refused"))
    ext4.umount()
    ext4.repair()
    ext4.mount()
    async with opened(path) as store:
        assert not store.report.damage
        assert await kept(store) == [f"before {n}" for n in range(20)]
        assert await store.put(event("after")) == 21
