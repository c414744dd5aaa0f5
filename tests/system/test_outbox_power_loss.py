"""Power loss under the real store on a disk that forgets what was not synced, tears pages and swaps writes."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes.powerloss_disk import Fate, Mode
from fakes.powerloss_fs import REASON, Moment, PowerLossMount

from agent.config.delivery import OutboxConfig
from agent.outbox.history import EventQuery
from agent.outbox.sequence import SequenceReserve
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane


def event(event_id: str, size: int = 10) -> Message:
    """An event of its own kind of payload."""
    return Message(Lane.EVENT, event_id, "recognizer/box/events/door/fight", lambda _: b"x" * size)


AGENT = Path(__file__).parent.parent / "fakes" / "powerloss_agent.py"
needs_fuse = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


@dataclass
class Box:
    """A device that loses power again and again. told: sequence to id of every put that returned."""

    folder: Path
    mount: Path
    told: dict[int, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    at_stake: int = 0

    def live(self, mode: Mode, fate: Fate, seed: int, *options: str, ignore_sync: bool = False) -> None:
        """Run the store until the power goes at a random moment."""
        dice = random.Random(seed)
        with (
            PowerLossMount(self.folder, self.mount, mode, ignore_sync=ignore_sync) as disk,
            self._agent(seed, *options) as agent,
        ):
            assert agent.stdout is not None
            self._note([agent.stdout.readline()])  # it runs
            time.sleep(dice.choice((0.0, dice.uniform(0, 0.1), dice.uniform(0, 1.2))))
            moment: Moment = dice.choice(("now", "write", "sync"))
            count = dice.choice((1, 1, 2, dice.randint(3, 200)))
            self.at_stake += disk.lose_power(fate, seed, moment, count)["unsynced"]
            agent.kill()
            self._note(agent.stdout.readlines())

    def start(self, mode: Mode, fate: Fate, seed: int, moment: Moment, count: int) -> None:
        """Lose power at the `count`-th write or sync from the start of the process on."""
        with PowerLossMount(self.folder, self.mount, mode) as disk, self._agent(seed) as agent:
            assert agent.stdout is not None
            self.at_stake += disk.lose_power(fate, seed, moment, count)["unsynced"]
            agent.kill()
            self._note(agent.stdout.readlines())

    def _agent(self, seed: int, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(AGENT), str(self.mount / "events.db"), str(seed), *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def _note(self, lines: list[str]) -> None:
        for line in lines:
            _, sequence, event_id = line.split()
            if self.told.setdefault(int(sequence), event_id) != event_id:
                self.repeated.append(int(sequence))

    async def look(self) -> int:
        """Open what survived and compare it with what was told; returns the number that the next event got."""
        path = self.folder / "events.db"
        bound = SequenceReserve(self.folder / "events.db.sequence").bound
        assert bound is None or bound > max(self.told, default=0)
        store = await OutboxStore.open(path, OutboxConfig())
        try:
            if store.report.damage:
                self.damage.append(store.report.damage)
            rows = {row.sequence: row.event_id for row in await store.events(EventQuery(limit=None))}
            self.lost = sorted(n for n, event_id in self.told.items() if rows.get(n) != event_id)
            following = await store.put(event("after"))
            assert following is not None
            if following <= max(self.told, default=0):
                self.repeated.append(following)
            self.told[following] = "after"
        finally:
            await store.close()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        return following


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "safe", tmp_path / "mount")


async def live_through(box: Box, mode: Mode, lives: int, seed: int) -> None:
    """Lives of all fates on the same disk; after each, all that was ever told is there."""
    fates: list[Fate] = ["drop", "some", "torn"]
    for life in range(lives):
        box.live(mode, fates[life % len(fates)], seed * 1000 + life)
        await box.look()
        assert not box.lost, f"life {life}"
        assert not box.repeated, f"life {life}"
    assert len(box.told) > 20 * lives
    assert box.at_stake > 0


@needs_fuse
@pytest.mark.parametrize("mode", ["journalled", "strict"])
async def test_nothing_that_was_put_is_lost_when_the_power_goes(box: Box, mode: Mode) -> None:
    await live_through(box, mode, lives=4, seed=1)


@needs_fuse
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["journalled", "strict"])
@pytest.mark.parametrize("seed", range(2, 7))
async def test_nothing_that_was_put_is_lost_over_many_losses_of_power(box: Box, mode: Mode, seed: int) -> None:
    await live_through(box, mode, lives=30, seed=seed)


@needs_fuse
@pytest.mark.parametrize(
    ("options", "ignore_sync"), [(("--synchronous", "NORMAL"), False), ((), True)], ids=["normal", "lying-disk"]
)
async def test_the_check_notices_what_was_not_synced(box: Box, options: tuple[str, ...], ignore_sync: bool) -> None:
    for seed in range(5):
        box.live("journalled", "drop", seed, *options, ignore_sync=ignore_sync)
        await box.look()
        if box.lost:
            return
    pytest.fail("nothing was lost")


@needs_fuse
@pytest.mark.parametrize("moment", ["sync", pytest.param("write", marks=pytest.mark.slow)])
async def test_the_power_may_go_at_any_step_of_a_start(tmp_path: Path, moment: Moment) -> None:
    """Of the very first one, and of the one that finds what that left."""
    for count in (1, 2, 3, 5, 8):
        box = Box(tmp_path / f"safe{count}", tmp_path / f"mount{count}")
        for start in ("first", "second"):
            box.start("strict", "torn", count, moment, count)
            await box.look()
            assert not box.lost, f"{moment} {count}, {start} start"
            assert not box.repeated, f"{moment} {count}, {start} start"


async def damaged_box(folder: Path) -> dict[int, str]:
    """A database with rubbish in the middle; what a start without interruption saves of it."""
    path = folder / "events.db"
    store = await OutboxStore.open(path, OutboxConfig(reserve_bytes=0))
    await asyncio.gather(*(store.put(event(f"e{n}", size=500)) for n in range(400)))
    await store.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 3 * 4096] = random.Random(1).randbytes(3 * 4096)
    path.write_bytes(data)
    copy = shutil.copytree(folder, folder.with_name("reference"))
    store = await OutboxStore.open(copy / "events.db", OutboxConfig(reserve_bytes=0))
    assert store.report.set_aside is not None
    rows = {row.sequence: row.event_id for row in await store.events(EventQuery(limit=None))}
    await store.close()
    assert 100 < len(rows) < 400
    return rows


@needs_fuse
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("moment", "counts"),
    [
        ("sync", (3, 7)),
        pytest.param("sync", range(1, 16), marks=pytest.mark.slow),
        pytest.param("write", range(1, 120, 5), marks=pytest.mark.slow),
    ],
)
async def test_the_power_may_go_while_a_damaged_database_is_replaced(
    tmp_path: Path, moment: Moment, counts: Sequence[int]
) -> None:
    """What can be saved without a power loss is saved with one as well."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    saved = await damaged_box(damaged)
    for count in counts:
        box = Box(tmp_path / f"safe{count}", tmp_path / f"mount{count}", told=dict(saved))
        shutil.copytree(damaged, box.folder)
        box.start("strict", "torn", count, moment, count)
        assert await box.look() > 400, f"{moment} {count}"
        assert not box.lost, f"{moment} {count}"
        assert not box.repeated, f"{moment} {count}"


async def test_an_unfinished_commit_whose_pages_came_out_of_order_is_no_damage(tmp_path: Path) -> None:
    """The put did not return: nothing is lost, and nothing has to be announced."""
    source, image = tmp_path / "source.db", tmp_path / "image" / "events.db"
    log = source.with_name("source.db-wal")
    image.parent.mkdir()
    store = await OutboxStore.open(source, OutboxConfig())
    for _ in range(3):
        last = await store.put(event("told", size=5000))
    start = log.stat().st_size
    await store.put(event("cut off", size=5000))
    shutil.copy(source, image)
    torn = bytearray(log.read_bytes())
    torn[start : start + 4096] = bytes(4096)  # the commit's first page did not make it, its last did
    image.with_name("events.db-wal").write_bytes(torn)
    await store.close()
    again = await OutboxStore.open(image, OutboxConfig())
    try:
        assert [row.event_id for row in await again.events(EventQuery(limit=None))] == ["told"] * 3
        assert again.report.next_sequence > (last or 0)
        assert not again.report.damage
    finally:
        await again.close()
