"""What the device holds for true about the repository, in one file that a power loss cannot tear.

python-tuf keeps its metadata in a folder and writes it without fsync: after a power loss a file there may be empty, and an empty
`timestamp.json` is no protection against an old one. So that folder is only a workplace, laid out anew from the record before
each use. The record holds the files byte for byte under a checksum; it is replaced in one step, flushed before and after, and the
generation before it stays beside it. Only when both are damaged does the device start again from its root of trust alone. That is
said aloud (`Held.notes`), since an old but still valid state of the repository could then be shown to it once; what it has
committed it still does not go below, for those numbers are kept elsewhere (`updates.db`).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.durable import make_folder, write_durably
from agent.errors import TransientError

_NAME = re.compile(r"root_history/\d+\.root\.json|[A-Za-z0-9_.%~-]+\.json")
_MODE = 0o600
_SEEN_STEP = timedelta(hours=1)
"""The time of the last success is written no more often than this, to spare the flash."""


@dataclass(frozen=True, slots=True)
class Held:
    """files: metadata by name in python-tuf's folder; seen: when it was last found fresh; notes: what was repaired."""

    files: dict[str, bytes] = field(default_factory=dict)
    seen: datetime | None = None
    notes: tuple[str, ...] = ()


class TrustRecord:
    """The record in `folder` (made if need be, 0700) and the workplace `folder/metadata` that is laid out from it."""

    def __init__(self, folder: Path) -> None:
        self.workplace = folder / "metadata"
        self._folder = folder
        self._file = folder / "trusted.record"
        self._before = folder / "trusted.record.before"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the folder. Raises TransientError when another process is at it, OSError."""
        make_folder(self._folder, 0o700)
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TransientError(f"{self._folder}: another process asks the repository at the moment") from error
            yield
        finally:
            os.close(descriptor)

    def load(self) -> Held:
        """What is on record, the newest generation that is whole. Raises OSError."""
        damaged = []
        for file in (self._file, self._before):
            try:
                held = _parsed(file.read_bytes())
            except FileNotFoundError:
                continue
            except ValueError as error:
                damaged.append(f"{file}: damaged ({error})")
                continue
            if file == self._file:
                return held
            lost = damaged[0] if damaged else f"{self._file}: missing"
            return Held(held.files, held.seen, (f"{lost}: the one before it is used",))
        if not damaged:
            return Held()
        start = "starting from the root of trust alone: the protection against rollback starts anew"
        return Held(notes=(f"{'; '.join(damaged)}: {start}",))

    def unfold(self, held: Held) -> None:
        """Lay out the workplace, and nothing else in it. Raises OSError."""
        shutil.rmtree(self.workplace, ignore_errors=True)
        for folder in (self.workplace, self.workplace / "root_history"):
            folder.mkdir(mode=0o700)
        for name, content in held.files.items():
            with open(self.workplace / name, "xb", opener=_private) as file:
                file.write(content)

    def keep(self, held: Held, seen: datetime | None) -> None:
        """Record what python-tuf has left in the workplace. seen: now, after a success; else None. Raises OSError."""
        files = {
            name: file.read_bytes()
            for file in sorted(self.workplace.rglob("*.json"))
            if not file.is_symlink() and _NAME.fullmatch(name := file.relative_to(self.workplace).as_posix())
        }
        if files == held.files and not held.notes and (seen is None or (held.seen and seen - held.seen < _SEEN_STEP)):
            return
        if self._file.exists() and not held.notes:  # a damaged one is worth nothing as the one before
            write_durably(self._before, self._file.read_bytes(), _MODE)
        write_durably(self._file, _written(Held(files, seen or held.seen)), _MODE)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)


def _written(held: Held) -> bytes:
    files = {name: base64.b64encode(content).decode() for name, content in held.files.items()}
    body = {"format": 1, "seen": held.seen.isoformat() if held.seen else None, "files": files}
    text = json.dumps(body, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text + b"\n"


def _parsed(content: bytes) -> Held:
    """Raises ValueError."""
    digest, _, text = content.partition(b"\n")
    if hashlib.sha256(text.removesuffix(b"\n")).hexdigest().encode() != digest:
        raise ValueError("its checksum is wrong")
    body = json.loads(text)
    if body["format"] != 1:
        raise ValueError(f"its format is {body['format']}, not 1")
    names = [name for name in body["files"] if not _NAME.fullmatch(name)]
    if names:
        raise ValueError(f"it names {names[0]!r}")
    files = {name: base64.b64decode(content) for name, content in body["files"].items()}
    seen = datetime.fromisoformat(body["seen"]).astimezone(UTC) if body["seen"] else None
    return Held(files, seen)
