"""The file sink: whole lines or none, torn ends, rotation, disks that are full or fail."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.sinks import deliver_all, ids, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import TransientError
from agent.sinks.file import FileSink
from agent.sinks.lines import LineFile

WRITER = Path(__file__).parent.parent / "fakes" / "line_writer.py"


def lines(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().split("\n")[:-1]]


def payloads(first: int, last: int, text: str = "") -> list[bytes]:
    return [record(sequence, text=text).payload for sequence in range(first, last + 1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def line_file(path: Path, max_bytes: int = 1_000_000, keep_files: int = 3) -> LineFile:
    return LineFile(path, max_bytes=max_bytes, keep_files=keep_files)


def test_lines_are_appended_and_the_file_is_the_agents_and_its_groups(path: Path) -> None:
    mask = os.umask(0o077)
    try:
        file = line_file(path)
        file.append(payloads(1, 2), 1)
        file.close()
    finally:
        os.umask(mask)
    file = line_file(path)
    file.append(payloads(3, 3), 3)
    file.close()
    assert lines(path) == ids([record(n) for n in (1, 2, 3)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_rights_that_somebody_gave_it_stay(path: Path) -> None:
    path.touch()
    path.chmod(0o600)
    file = line_file(path)
    file.append(payloads(1, 1), 1)
    file.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "torn", [b'{"id": "x', b"\0" * 100, b'{"id": 1}', b"\0\0\n\0\0", b"\0" * 5000 + b"\n", b'"text"\n', b"\0\0}\n"]
)
def test_a_torn_end_is_cut_off_when_the_file_is_opened(path: Path, torn: bytes) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in payloads(1, 3)) + torn)
    file = line_file(path)
    file.append(payloads(4, 4), 4)
    file.close()
    assert lines(path) == ids([record(n) for n in range(1, 5)])


@given(size=st.integers(0, 2000), end=st.binary(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_cut_anywhere_whole_lines_stay_and_nothing_else(path: Path, size: int, end: bytes) -> None:
    whole = b"".join(line + b"\n" for line in payloads(1, 3))
    path.write_bytes(whole[:size] + (end if size else b""))
    before = whole[:size].count(b"\n")
    file = line_file(path)
    file.append(payloads(9, 9), 9)
    file.close()
    found = path.read_bytes().split(b"\n")
    assert found[:before] == whole.split(b"\n")[:before]
    assert found[-2:] == [payloads(9, 9)[0], b""]
    assert all(isinstance(json.loads(line), dict) for line in found[:-1])


@pytest.mark.parametrize("note", [b"# moved here by hand\n", b'{"note": "by hand"}\n', b"\n"])
def test_what_somebody_wrote_into_it_costs_no_event(path: Path, note: bytes) -> None:
    before = [line + b"\n" for line in payloads(1, 3)]
    path.write_bytes(before[0] + note + before[1] + before[2])
    file = line_file(path)
    file.append(payloads(4, 4), 4)
    file.close()
    assert path.read_bytes() == before[0] + note + before[1] + before[2] + payloads(4, 4)[0] + b"\n"


@pytest.mark.parametrize(
    "hole", [b"\0" * 300, b"old contents of the block\n", b"\xff\xfe" * 99, b'{"sequence": "x"}\n{']
)
def test_whole_lines_behind_a_hole_are_cut_off_because_they_come_again(path: Path, hole: bytes) -> None:
    """A power loss that kept a later page of a write and not an earlier one."""
    first, second, third, fourth = (line + b"\n" for line in payloads(1, 4))
    path.write_bytes(first + second + hole + third + fourth)
    file = line_file(path)
    file.append(payloads(3, 5), 3)
    file.close()
    assert lines(path) == ids([record(n) for n in range(1, 6)])


@pytest.mark.parametrize("content", [b"notes of mine\n", b"\0" * 100, b'{"specversion": "1.'])
def test_a_file_without_any_event_is_set_aside(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    file = line_file(path)
    file.append(payloads(1, 1), 1)
    file.close()
    assert path.with_name("events.jsonl.damaged").read_bytes() == content
    assert lines(path) == ids([record(1)])


def test_a_torn_end_longer_than_what_is_looked_at_first(path: Path) -> None:
    path.write_bytes(payloads(1, 1)[0] + b"\n" + b"x" * 5_000_000)
    file = line_file(path, max_bytes=10_000_000)
    file.append(payloads(2, 2), 2)
    file.close()
    assert lines(path) == ids([record(1), record(2)])


def test_full_files_move_up_and_the_oldest_goes(path: Path) -> None:
    size = len(payloads(1, 1)[0]) + 1
    file = line_file(path, max_bytes=3 * size, keep_files=2)
    for sequence in range(1, 12):
        file.append(payloads(sequence, sequence), sequence)
    file.close()
    names = sorted(one.name for one in path.parent.iterdir())
    assert names == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"]
    kept = [one for name in reversed(names) for one in lines(path.with_name(name))]
    assert kept == ids([record(n) for n in range(4, 12)])
    assert all(path.with_name(name).stat().st_size <= 3 * size for name in names)


def test_a_restart_goes_on_in_the_same_file_and_counts_what_is_in_it(path: Path) -> None:
    size = len(payloads(1, 1)[0]) + 1
    for sequence in range(1, 5):
        file = line_file(path, max_bytes=3 * size)
        file.append(payloads(sequence, sequence), sequence)
        file.close()
    assert lines(path.with_name("events.jsonl.1")) == ids([record(n) for n in (1, 2, 3)])
    assert lines(path) == ids([record(4)])


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_file_that_others_move_or_remove_is_begun_anew(path: Path, how: str) -> None:
    file = line_file(path)
    file.append(payloads(1, 1), 1)
    if how == "moved":
        path.rename(path.with_name("elsewhere"))
    else:
        path.unlink()
    file.append(payloads(2, 2), 2)
    file.close()
    assert lines(path) == ids([record(2)])


async def test_large_batches_are_taken_in_parts(path: Path) -> None:
    sink = FileSink(path, max_bytes=50_000_000, keep_files=1)
    records = [record(n, text="x" * 300_000) for n in range(1, 9)]
    assert await sink.deliver(records) == 3
    await deliver_all(sink, records[3:])
    await sink.close()
    assert lines(path) == ids(records)


async def test_line_ends_inside_a_payload_do_not_end_the_line(path: Path) -> None:
    pretty = json.dumps(json.loads(record(1).payload), indent=2).encode().replace(b"\n", b"\r\n")
    sink = FileSink(path, max_bytes=10_000, keep_files=1)
    await sink.deliver([dataclasses.replace(record(1), payload=pretty), record(2)])
    await sink.close()
    assert lines(path) == ids([record(1), record(2)])


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """Writes beyond 30 000 bytes fail with EFBIG, after part of them was written: as on a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("file_size_limit")
async def test_a_write_that_ends_half_way_leaves_no_trace_and_is_tried_again(path: Path) -> None:
    sink = FileSink(path, max_bytes=100_000, keep_files=1)
    records = [record(n, text="x" * 1000) for n in range(1, 40)]
    await sink.deliver(records[:20])
    size = path.stat().st_size
    for _ in range(3):
        with pytest.raises(TransientError, match=os.strerror(errno.EFBIG)):
            await sink.deliver(records[20:])
        assert path.stat().st_size == size
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await deliver_all(sink, records[20:])
    await sink.close()
    assert lines(path) == ids(records)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_is_transient_and_mends_itself(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        asyncio.run(_fill(disk))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


async def _fill(disk: Path) -> None:
    sink = FileSink(disk / "events.jsonl", max_bytes=1_000_000, keep_files=1)
    (disk / "ballast").write_bytes(b"x" * 40_000)
    records = [record(n, text="x" * 1000) for n in range(1, 30)]
    await sink.deliver(records[:5])
    with pytest.raises(TransientError, match="No space left"):
        await sink.deliver(records[5:])
    assert lines(disk / "events.jsonl") == ids(records[:5])
    (disk / "ballast").unlink()
    await deliver_all(sink, records[5:])
    assert lines(disk / "events.jsonl") == ids(records)
    await sink.close()
    while any(thread.name.startswith("sink-file") for thread in threading.enumerate()):
        await asyncio.sleep(0.01)


def test_a_writer_that_is_killed_leaves_whole_lines_for_the_next_one(path: Path) -> None:
    """With -9 in the middle of writing, thirty times; each begins again with what it had not heard to be safe."""
    number = 1
    for round_ in range(30):
        command = [sys.executable, str(WRITER), str(path), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(3 + round_ % 5):
                number = int(process.stdout.readline())
            process.kill()
            rest = process.stdout.read().split()
            number = int(rest[-1]) if rest else number
    file = line_file(path)
    file.append([b'{"sequence": -1}'], number)
    file.close()
    files = sorted(path.parent.glob("events.jsonl.*[0-9]"), key=lambda one: -int(one.suffix[1:]))
    found = [int(json.loads(line)["sequence"]) for one in [*files, path] for line in one.read_bytes().split(b"\n")[:-1]]
    assert found.pop() == -1
    assert list(dict.fromkeys(found))[: number - 1] == list(range(1, number)), "all, in order, doubles left out"
