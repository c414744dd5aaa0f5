"""The instruments of the crash, power loss and partition tests: that they see what they are there to see."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_ledger import Ledger, Verdict
from fakes.powerloss_disk import PAGE, Disk, Fate, Mode
from fakes.powerloss_fs import REASON, PowerLossMount
from fakes.slow_proxy import SlowProxy

EVENTS, STATE = "recognizer/box/events/door/fight", "recognizer/box/cameras/cam0/state"


def payload(event_id: str, sequence: int | None, number: int, lane: int = 1) -> bytes:
    return json.dumps({"id": event_id, "lane": lane, "number": number, "sequence": sequence}).encode()


def books(*, told: int = 3) -> Ledger:
    """So many events were put and have arrived."""
    ledger = Ledger()
    for n in range(1, told + 1):
        ledger.committed(1, n, n, f"e{n}", EVENTS)
        ledger.arrived(EVENTS, payload(f"e{n}", n, n))
    return ledger


def lose_one(ledger: Ledger) -> None:
    ledger.committed(1, 4, 4, "e4", EVENTS)


def skip_one(ledger: Ledger) -> None:
    ledger.arrived(EVENTS, payload("e5", 5, 5))


def swap_two(ledger: Ledger) -> None:
    ledger.arrived(EVENTS, payload("e5", 5, 5))
    ledger.arrived(EVENTS, payload("e4", 4, 4))


def change_one(ledger: Ledger) -> None:
    ledger.arrived(EVENTS, payload("e3", 3, 4))


def repeat_a_number(ledger: Ledger) -> None:
    ledger.committed(1, 3, 4, "another", EVENTS)
    ledger.arrived(EVENTS, payload("another", 3, 4))


def forget_a_state(ledger: Ledger) -> None:
    ledger.arrived(STATE, payload("s1", None, 1, lane=2))
    ledger.committed(2, None, 2, "s2", STATE)


def announce_a_gap(ledger: Ledger) -> None:
    ledger.arrived("recognizer/box/events/gap", b"{}")


@pytest.mark.parametrize(
    ("fault", "shows_in"),
    [
        (lose_one, "lost"),
        (skip_one, "missing"),
        (swap_two, "disordered"),
        (change_one, "conflicts"),
        (repeat_a_number, "repeated"),
        (forget_a_state, "stale_states"),
        (announce_a_gap, "gaps"),
    ],
)
def test_the_books_show_a_fault(fault: Callable[[Ledger], None], shows_in: str) -> None:
    ledger = books()
    fault(ledger)
    verdict = ledger.verdict()
    assert getattr(verdict, shows_in) > 0
    assert verdict.examples


def test_equal_duplicates_and_alarms_that_overtake_are_no_fault() -> None:
    ledger = books()
    ledger.arrived(EVENTS, payload("e2", 2, 2))
    ledger.committed(1, 4, 4, "e4", EVENTS)
    ledger.committed(0, 5, 5, "a5", EVENTS)
    ledger.arrived(EVENTS, payload("a5", 5, 5, lane=0))
    assert ledger.outstanding() == 1
    ledger.arrived(EVENTS, payload("e4", 4, 4))
    assert ledger.verdict() == Verdict(committed=5, delivered=5, duplicates=1)


FATES: tuple[Fate, ...] = ("drop", "some", "torn")
BOTH = pytest.mark.parametrize("mode", ["journalled", "strict"])
ALL = pytest.mark.parametrize("fate", FATES)


def outcomes(disk: Disk, fate: Fate, name: str) -> set[bytes | None]:
    """What may be in `name` after a power loss."""
    return {disk.survivors(fate, random.Random(seed)).get(name) for seed in range(200)}


@BOTH
@ALL
def test_what_was_synced_survives(mode: Mode, fate: Fate) -> None:
    disk = Disk(mode)
    file = disk.create("a")
    disk.write(file, 0, b"x" * 3 * PAGE)
    disk.sync(file)
    disk.sync_folder()
    assert outcomes(disk, fate, "a") == {b"x" * 3 * PAGE}
    assert disk.unsynced() == 0


@BOTH
def test_what_was_not_synced_is_lost_or_comes_in_parts(mode: Mode) -> None:
    old, new = b"o" * 3 * PAGE, b"n" * 3 * PAGE
    disk = Disk(mode, {"a": old})
    disk.write(disk.file("a"), 0, new)
    assert bytes(disk.file("a").cache) == new
    assert outcomes(disk, "drop", "a") == {old}
    pages = {tuple(data[n * PAGE] for n in range(3)) for data in outcomes(disk, "some", "a") if data is not None}
    assert len(pages) == 8  # each page for itself
    torn = outcomes(disk, "torn", "a")
    assert any(data is not None and len(set(data[:PAGE])) == 2 for data in torn)


def test_what_was_added_survives_from_its_beginning_on_a_journalled_disk() -> None:
    disk = Disk("journalled", {"a": b""})
    for n in range(4):
        disk.write(disk.file("a"), n * PAGE, bytes([n + 1]) * PAGE)
    found = {data[::PAGE] for data in outcomes(disk, "some", "a") if data is not None}
    assert found == {bytes(range(1, n + 1)) for n in range(5)}


def test_names_need_a_sync_of_the_folder_on_a_strict_disk() -> None:
    strict, journalled = Disk("strict", {"old": b"1"}), Disk("journalled", {"old": b"1"})
    for disk in (strict, journalled):
        file = disk.create("new")
        disk.write(file, 0, b"2")
        disk.sync(file)
        disk.rename("new", "old")
    assert outcomes(strict, "drop", "old") == {b"1"}
    assert outcomes(strict, "some", "old") == {b"1", b"2"}
    assert outcomes(journalled, "drop", "new") == {b"2"}  # the sync of the file took its name along
    strict.sync_folder()
    assert outcomes(strict, "drop", "old") == {b"2"}


def test_a_lying_disk_keeps_nothing() -> None:
    disk = Disk("strict", {"a": b"1"}, ignore_sync=True)
    disk.write(disk.file("a"), 0, b"2")
    disk.sync(disk.file("a"))
    assert outcomes(disk, "drop", "a") == {b"1"}


@pytest.mark.skipif(bool(REASON), reason=REASON or "-")
def test_the_mount_forgets_what_was_not_synced(tmp_path: Path) -> None:
    with PowerLossMount(tmp_path / "safe", tmp_path / "mount") as disk:
        for name, synced in (("synced", True), ("forgotten", False)):
            with (tmp_path / "mount" / name).open("wb") as file:
                file.write(b"x" * 100_000)
                file.flush()
                if synced:
                    os.fsync(file.fileno())
        assert disk.lose_power("drop", 1)["unsynced"] > 0
        with pytest.raises(OSError, match="Input/output"):
            (tmp_path / "mount" / "more").write_bytes(b"x")
    assert {path.name: path.stat().st_size for path in (tmp_path / "safe").iterdir()} == {"synced": 100_000}


async def test_the_slow_proxy_is_slow() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(500))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, SlowProxy(server.sockets[0].getsockname()[1], delay_s=0.3, bytes_per_s=1000) as proxy:
        begin_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x" * 500)
        assert await reader.readexactly(500) == b"x" * 500
        assert 1.5 < time.monotonic() - begin_s < 4  # there and back: twice 0.3 s of way and 0.5 s of line
        writer.close()
        await writer.wait_closed()
