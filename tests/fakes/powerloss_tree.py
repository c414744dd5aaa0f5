"""As `powerloss_disk`, with folders and symbolic links: a whole state folder on a disk that forgets what was not synced.

Contents of files are lost and torn as there. Names belong to the folder they stand in. journalled: a sync of anything commits all
names before it, and a power loss leaves a first part of the later changes. strict: a folder's names are safe once that folder was
synced, and a new folder once its parent was; a rename into a synced folder takes along what happened before in the folder it left;
one out of a synced folder into one that was not synced may leave nothing. A rename is never seen half otherwise.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fakes.powerloss_disk import Disk, Fate, File, Mode


@dataclass(eq=False, slots=True)
class TreeFile(File):
    mtime_ns: int = field(default_factory=time.time_ns)


@dataclass(eq=False, slots=True)
class Folder:
    """cache: names as programs see them; safe: as they are on the platter."""

    cache: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)
    mtime_ns: int = field(default_factory=time.time_ns)


@dataclass(frozen=True, eq=False, slots=True)
class Symlink:
    """Comes and goes with its name: nobody can sync it."""

    target: str
    mtime_ns: int = field(default_factory=time.time_ns)


Node = TreeFile | Folder | Symlink


@dataclass(frozen=True, slots=True)
class Change:
    """In one folder: a name less, a name more, or both. A rename between two folders is two of the same number."""

    number: int
    folder: Folder
    removed: str = ""
    added: tuple[str, Node] | None = None

    def apply(self, names: dict[str, Node]) -> None:
        if self.removed:
            names.pop(self.removed, None)
        if self.added is not None:
            names[self.added[0]] = self.added[1]


@dataclass(frozen=True, slots=True)
class Remains:
    """What is there after the power came back. content: None = a folder."""

    path: str
    content: bytes | Symlink | None
    mtime_ns: int


class Tree(Disk):
    """One folder and all below it; paths are relative to it, empty = itself. Not safe for threads. Methods raise OSError."""

    def __init__(self, mode: Mode, root: Folder | None = None, *, ignore_sync: bool = False) -> None:
        super().__init__(mode, ignore_sync=ignore_sync)
        self.root = root or Folder()
        self._changes: list[Change] = []
        self._number = 0

    # --- what programs do ---------------------------------------------------------------------------------------------

    def node(self, path: str) -> Node:
        found: Node = self.root
        for part in filter(None, path.split("/")):
            if not isinstance(found, Folder):
                raise NotADirectoryError(errno.ENOTDIR, path)
            if part not in found.cache:
                raise FileNotFoundError(errno.ENOENT, path)
            found = found.cache[part]
        return found

    def file(self, path: str) -> TreeFile:
        found = self.node(path)
        if not isinstance(found, TreeFile):
            raise IsADirectoryError(errno.EISDIR, path)
        return found

    def folder(self, path: str) -> Folder:
        found = self.node(path)
        if not isinstance(found, Folder):
            raise NotADirectoryError(errno.ENOTDIR, path)
        return found

    def create(self, path: str) -> TreeFile:
        file = TreeFile()
        self._add(path, file)
        return file

    def make_folder(self, path: str) -> None:
        self._add(path, Folder())

    def make_symlink(self, path: str, target: str) -> None:
        self._add(path, Symlink(target))

    def unlink(self, path: str) -> None:
        parent, name = self._place(path)
        if isinstance(self.node(path), Folder):
            raise IsADirectoryError(errno.EISDIR, path)
        self._change(Change(self._next(), parent, removed=name))

    def remove_folder(self, path: str) -> None:
        parent, name = self._place(path)
        if self.folder(path).cache:
            raise OSError(errno.ENOTEMPTY, path)
        self._change(Change(self._next(), parent, removed=name))

    def rename(self, old: str, new: str) -> None:
        moved = self.node(old)
        (source, old_name), (target, new_name) = self._place(old), self._place(new)
        there = target.cache.get(new_name)
        if isinstance(there, Folder) and there.cache:
            raise OSError(errno.ENOTEMPTY, new)
        number = self._next()
        if source is target:
            self._change(Change(number, source, old_name, (new_name, moved)))
        else:
            self._change(Change(number, target, added=(new_name, moved)))
            self._change(Change(number, source, removed=old_name))

    def write(self, file: File, offset: int, data: bytes) -> None:
        super().write(file, offset, data)
        assert isinstance(file, TreeFile)
        file.mtime_ns = time.time_ns()

    def _commit_names(self) -> None:
        self._commit(self._changes)

    def sync_names(self, folder: Folder) -> None:
        """fsync of a folder."""
        self.syncs += 1
        if self.ignore_sync:
            return
        if self.mode == "journalled":
            self._commit_names()
        else:
            upto = self._taken_along(folder)
            self._commit([one for one in self._changes if one.number <= upto.get(id(one.folder), 0)])

    # --- power loss ---------------------------------------------------------------------------------------------------

    def unsynced(self) -> int:
        """Writes and changes of names that are not safe."""
        files = {id(one): one for one in (*_files(self.root, safe=False), *_files(self.root, safe=True))}
        return len(self._changes) + sum(len(one.pending) for one in files.values())

    def survivors(self, fate: Fate, dice: random.Random) -> list[Remains]:  # type: ignore[override]
        """What is there after the power came back, folders before what is in them."""
        numbers = self._surviving_numbers(fate, dice)
        changed: dict[int, dict[str, Node]] = {}
        for change in self._changes:
            if change.number in numbers:
                change.apply(changed.setdefault(id(change.folder), dict(change.folder.safe)))
        return list(self._remains("", self.root, changed, fate, dice))

    def _surviving_numbers(self, fate: Fate, dice: random.Random) -> set[int]:
        numbers = sorted({change.number for change in self._changes})
        if fate == "drop":
            return set()
        if self.mode == "journalled":
            return set(numbers[: dice.randint(0, len(numbers))])
        return {number for number in numbers if dice.random() < 0.5}

    def _remains(
        self, path: str, folder: Folder, changed: dict[int, dict[str, Node]], fate: Fate, dice: random.Random
    ) -> Iterator[Remains]:
        for name, node in changed.get(id(folder), folder.safe).items():
            inner = f"{path}/{name}" if path else name
            if isinstance(node, Folder):
                yield Remains(inner, None, node.mtime_ns)
                yield from self._remains(inner, node, changed, fate, dice)
            elif isinstance(node, Symlink):
                yield Remains(inner, node, node.mtime_ns)
            else:
                yield Remains(inner, self._surviving(node, fate, dice), node.mtime_ns)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        return self.folder(parent), name

    def _add(self, path: str, node: Node) -> None:
        parent, name = self._place(path)
        if name in parent.cache:
            raise FileExistsError(errno.EEXIST, path)
        self._change(Change(self._next(), parent, added=(name, node)))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _change(self, change: Change) -> None:  # type: ignore[override]
        change.apply(change.folder.cache)
        change.folder.mtime_ns = time.time_ns()
        self._changes.append(change)

    def _taken_along(self, folder: Folder) -> dict[int, int]:
        """Up to which change each folder becomes safe when `folder` is synced."""
        upto = {id(folder): self._number}
        while True:
            arrived = {one.number for one in self._changes if one.added and one.number <= upto.get(id(one.folder), 0)}
            later = {
                id(one.folder): one.number
                for one in self._changes
                if one.number in arrived and one.number > upto.get(id(one.folder), 0)
            }
            if not later:
                return upto
            upto |= later

    def _commit(self, changes: list[Change]) -> None:
        done = set(map(id, changes))
        for change in changes:
            change.apply(change.folder.safe)
        self._changes = [one for one in self._changes if id(one) not in done]


def _files(folder: Folder, *, safe: bool) -> Iterator[TreeFile]:
    for node in (folder.safe if safe else folder.cache).values():
        if isinstance(node, Folder):
            yield from _files(node, safe=safe)
        elif isinstance(node, TreeFile):
            yield node


def load(path: Path) -> Folder:
    """What lies in a real folder, safe all of it."""
    names: dict[str, Node] = {}
    for entry in sorted(path.iterdir()):
        mtime_ns = entry.lstat().st_mtime_ns
        if entry.is_symlink():
            names[entry.name] = Symlink(str(entry.readlink()), mtime_ns)
        elif entry.is_dir():
            names[entry.name] = load(entry)
        else:
            data = entry.read_bytes()
            names[entry.name] = TreeFile(bytearray(data), bytearray(data), mtime_ns=mtime_ns)
    return Folder(dict(names), dict(names), path.stat().st_mtime_ns)


def save(path: Path, remains: list[Remains]) -> None:
    """Lay down what survived in an empty real folder."""
    for one in remains:
        place = path / one.path
        if one.content is None:
            place.mkdir()
        elif isinstance(one.content, Symlink):
            place.symlink_to(one.content.target)
        else:
            place.write_bytes(one.content)
    for one in reversed(remains):
        os.utime(path / one.path, ns=(one.mtime_ns, one.mtime_ns), follow_symlinks=False)
