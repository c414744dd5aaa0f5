"""A flat folder on a disk that forgets what was not synced: what programs see, what is safe, and what a power loss leaves.

The idea is LazyFS's. Nothing here knows of FUSE; `powerloss_fs` puts it behind a mount.

journalled (like ext4 with data=ordered): a sync of any file commits all creations, renames and removals before it; on power loss a
random first part of the later ones survives, and a file that grew keeps a first part of what was added.
strict (what POSIX promises, no more): a sync of a file covers its contents only, names need a sync of the folder, and after a
power loss each name and each page decides for itself; a page inside the file that was never written is zeros or rubbish.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["journalled", "strict"]
Fate = Literal["drop", "some", "torn"]
"""Unsynced writes at a power loss: all gone; some pages survive, in any order; likewise, and pages may be cut within."""

PAGE = 4096
SECTOR = 512


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for an offset."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A new length."""

    length: int


@dataclass(eq=False, slots=True)
class File:
    """cache: what programs see; safe: what is on the platter; pending: how to get from one to the other."""

    cache: bytearray = field(default_factory=bytearray)
    safe: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Link:
    """The name now means this file."""

    name: str
    file: File


@dataclass(frozen=True, slots=True)
class Unlink:
    """The name means nothing any more."""

    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """`old` becomes `new`, whatever that was."""

    old: str
    new: str
    file: File


NameChange = Link | Unlink | Rename


class Disk:
    """One flat folder. ignore_sync: a disk that lies. Not safe for threads."""

    def __init__(self, mode: Mode, contents: dict[str, bytes] | None = None, *, ignore_sync: bool = False) -> None:
        self.mode = mode
        self.ignore_sync = ignore_sync
        self.syncs = 0
        self.names = {name: File(bytearray(data), bytearray(data)) for name, data in (contents or {}).items()}
        self._safe_names = dict(self.names)
        self._pending: list[NameChange] = []

    # --- what programs do ---------------------------------------------------------------------------------------------

    def file(self, name: str) -> File:
        """Raises FileNotFoundError."""
        try:
            return self.names[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, name) from None

    def create(self, name: str) -> File:
        """A new empty file."""
        file = File()
        self._change(Link(name, file))
        return file

    def unlink(self, name: str) -> None:
        """Raises FileNotFoundError."""
        self.file(name)
        self._change(Unlink(name))

    def rename(self, old: str, new: str) -> None:
        """Raises FileNotFoundError."""
        self._change(Rename(old, new, self.file(old)))

    def write(self, file: File, offset: int, data: bytes) -> None:
        """Into the cache."""
        _put(file.cache, offset, data)
        file.pending.append(Write(offset, data))

    def truncate(self, file: File, length: int) -> None:
        """In the cache."""
        _resize(file.cache, length)
        file.pending.append(Truncate(length))

    def sync(self, file: File) -> None:
        """fsync, fdatasync: the contents are safe, and on a journalled disk all names."""
        self.syncs += 1
        if self.ignore_sync:
            return
        file.safe[:] = file.cache
        file.pending.clear()
        if self.mode == "journalled":
            self._commit_names()

    def sync_folder(self) -> None:
        """fsync of the folder: all names are safe."""
        self.syncs += 1
        if not self.ignore_sync:
            self._commit_names()

    # --- power loss ---------------------------------------------------------------------------------------------------

    def unsynced(self) -> int:
        """Writes and changes of names that are not safe."""
        files = {id(file): file for file in (*self.names.values(), *self._safe_names.values())}
        return len(self._pending) + sum(len(file.pending) for file in files.values())

    def survivors(self, fate: Fate, dice: random.Random) -> dict[str, bytes]:
        """Names and contents that are there after the power came back."""
        names = dict(self._safe_names)
        for change in self._surviving_names(fate, dice):
            _apply(names, change)
        return {name: self._surviving(file, fate, dice) for name, file in names.items()}

    def _surviving_names(self, fate: Fate, dice: random.Random) -> list[NameChange]:
        if fate == "drop":
            return []
        if self.mode == "journalled":
            return self._pending[: dice.randint(0, len(self._pending))]
        return [change for change in self._pending if dice.random() < 0.5]

    def _surviving(self, file: File, fate: Fate, dice: random.Random) -> bytes:
        if fate == "drop":
            return bytes(file.safe)
        result, synced = bytearray(file.safe), len(file.safe)
        pieces = [piece for change in file.pending for piece in _pieces(change)]
        if self.mode == "journalled":  # what was added comes back as a first part of it
            added = [piece for piece in pieces if isinstance(piece, Write) and piece.offset + len(piece.data) > synced]
            lost = set(map(id, added[dice.randint(0, len(added)) :]))
        else:
            added, lost = [], set()
        keep_always = set(map(id, added)) - lost
        for piece in pieces:
            if id(piece) in lost or (id(piece) not in keep_always and dice.random() < 0.5):
                continue
            if isinstance(piece, Truncate):
                _resize(result, piece.length)
                continue
            if piece.offset > len(result) and dice.random() < 0.5:
                result += dice.randbytes(piece.offset - len(result))  # what the blocks held before
            _put(result, piece.offset, _cut(piece.data, dice) if fate == "torn" else piece.data)
        return bytes(result)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _change(self, change: NameChange) -> None:
        _apply(self.names, change)
        self._pending.append(change)

    def _commit_names(self) -> None:
        self._safe_names = dict(self.names)
        self._pending.clear()


def _apply(names: dict[str, File], change: NameChange) -> None:
    if isinstance(change, Link):
        names[change.name] = change.file
    elif isinstance(change, Unlink):
        names.pop(change.name, None)
    else:
        names.pop(change.old, None)
        names[change.new] = change.file


def _pieces(change: Write | Truncate) -> Iterator[Write | Truncate]:
    """A write page by page: a disk promises no more."""
    if isinstance(change, Truncate):
        yield change
        return
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // PAGE + 1) * PAGE)
        yield Write(start, change.data[start - change.offset : stop - change.offset])
        start = stop


def _cut(data: bytes, dice: random.Random) -> bytes:
    """Some pages whole, some up to a sector, some up to any byte."""
    case = dice.random()
    if case < 0.4:
        return data
    length = dice.randint(0, len(data))
    return data[: length // SECTOR * SECTOR] if case < 0.7 else data[:length]


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if offset > len(target):
        _resize(target, offset)
    target[offset : offset + len(data)] = data


def _resize(target: bytearray, length: int) -> None:
    if length < len(target):
        del target[length:]
    else:
        target += bytes(length - len(target))
