"""A file of lines that is only ever appended to, whole lines on disk before `append` returns. Blocking."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.durable import sync

_MODE = 0o640
_TAIL_BYTES = 4_194_304
"""What is looked at after a crash; several times what one batch holds."""


class LineFile:
    """JSON objects, one a line; used from one thread.

    After a crash or power loss the end of the file may be torn; it is cut off when it is opened, see `append`. A write that
    fails leaves the file as it was. max_bytes: a file that would grow above this is renamed to `<path>.1`, that one to `<path>.2`
    and so on; keep_files: how many renamed ones stay. Methods raise OSError.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep_files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep_files = keep_files
        self._descriptor: int | None = None
        self._size = 0

    def append(self, lines: Sequence[bytes], first: int) -> None:
        """Write `lines` (without their ends) behind each other and wait until they are on disk: all of them or none.

        first: the `sequence` of the first line. What a file that is opened holds below it is safe and stays; after that
        everything from the first line on that is none is cut off, for it was never known to be safe and comes again.
        """
        data = b"".join(line + b"\n" for line in lines)
        descriptor = self._open(first)
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
            descriptor = self._open(first)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            self._take_back(descriptor)
            raise
        self._size += len(data)

    def close(self) -> None:
        """May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _take_back(self, descriptor: int) -> None:
        """The file as before the write. After a failed fsync nobody knows what is on disk: it is opened and looked at anew."""
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, self._size)
        with contextlib.suppress(OSError):
            self.close()

    def _open(self, first: int) -> int:
        """The descriptor; a new one when somebody else has moved the file away or removed it."""
        if self._descriptor is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
                    return self._descriptor
            self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = not self._path.exists()
        descriptor = self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            if new:
                os.fchmod(descriptor, _MODE)  # whatever the umask says
            sync(self._path.parent)
            size = os.fstat(descriptor).st_size
            self._size = _whole(descriptor, size, first)
            if self._size < size:
                if not self._size:  # nothing in it is ours: who wants it finds it
                    self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
                    return self._open(first)
                os.ftruncate(descriptor, self._size)
                os.fsync(descriptor)
        except OSError:
            self.close()
            raise
        return descriptor

    def _rotate(self) -> None:
        """`<path>` becomes `<path>.1`; older ones move up, the oldest goes. Step by step: no name may be on disk before the last one."""
        self.close()
        names = [self._path.with_name(f"{self._path.name}.{number}") for number in range(1, self._keep_files + 1)]
        for source, target in zip([*reversed(names[:-1]), self._path], reversed(names), strict=True):
            if source.exists():
                source.replace(target)
                sync(self._path.parent)


def _whole(descriptor: int, size: int, first: int) -> int:
    """How many bytes of the file are to stay, see `LineFile.append`."""
    for start in sorted({max(0, size - _TAIL_BYTES), 0}, reverse=True):
        found = list(_numbered(os.pread(descriptor, size - start, start), whole=start == 0))
        safe = [n for n, (_, number) in enumerate(found) if number is not None and number < first]
        if safe or not start:
            after = found[safe[-1] + 1 :] if safe else found
            return next((start + begin for begin, number in after if number is None), size)
    return size


def _numbered(tail: bytes, *, whole: bool) -> Iterator[tuple[int, int | None]]:
    """Where each line begins, and its number: -1 for an object without one, None for what is no object.

    whole: the first line is all there; else it is left out.
    """
    begin = 0 if whole else tail.find(b"\n") + 1
    while (end := tail.find(b"\n", begin)) >= 0:
        yield begin, _number(tail[begin:end])
        begin = end + 1
    if begin < len(tail):
        yield begin, None


def _number(line: bytes) -> int | None:
    try:
        found = json.loads(line)
        return int(found.get("sequence", -1)) if isinstance(found, dict) else None
    except (ValueError, TypeError, RecursionError):
        return None
