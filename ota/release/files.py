"""Files that are whole or not there: written beside, flushed, renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from agent.durable import sync
from agent.errors import TransientError


def copy_durably(source: Path, file: Path) -> None:
    """As `write_durably`, from another file of any size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    with source.open("rb") as content, temporary.open("wb") as out:
        os.fchmod(out.fileno(), 0o644)
        shutil.copyfileobj(content, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
    sync(file.parent)


@contextlib.contextmanager
def locked(folder: Path, taken: str = "another process is changing it (hint: try again in a moment)") -> Iterator[None]:
    """Alone with `folder`: a timer and a person may publish at once. taken: what is said when it is not. Raises TransientError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TransientError(f"{folder}: {taken}") from error
        yield
    finally:
        os.close(descriptor)
