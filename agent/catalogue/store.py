"""Where pulled models lie.

    <models>/
      sha256/<digest of manifest.json>/   a bundle; the manifest holds the checksums of its files, so the digest is theirs too
      pulled/<name> -> ../sha256/<digest> which of them the name stands for at the moment
      partial/                            downloads that are not finished
      staging/                            bundles in the making

A bundle appears by one rename, a name changes by one rename: whoever reads at any moment finds a whole model.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.config.paths import PULLED
from agent.durable import point, settle, sync
from agent.errors import ModelError, TrustError
from agent.runtime.bundle import MANIFEST, load_bundle, sha256_of

_FOLDER_MODE = 0o755


class ModelStore:
    """The folder of pulled models. Raises OSError where the disk does not let it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> dict[str, Path]:
        """Folder of each pulled bundle by its name; the folder may be gone or damaged."""
        folder = self.root / PULLED
        return {link.name: link for link in sorted(folder.iterdir()) if link.is_symlink()} if folder.is_dir() else {}

    def find(self, name: str) -> Path | None:
        """Folder of the pulled bundle `name`, if there is one."""
        link = self.names().get(name)  # not by its path: `.` and `..` are folders, and no names
        return link if link is not None and link.is_dir() else None

    def partial(self, key: str) -> Path:
        """Where the unfinished download `key` lies or will lie."""
        return self._folder("partial") / f"{key}.part"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Keep other processes from pulling `name`. Raises ModelError when one is at it."""
        with (self._folder("") / f".{name}.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ModelError(f"{name} is being pulled by another process") from None
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the store's file system, gone afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self._folder("staging")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, name: str, folder: Path) -> Path:
        """Make the sealed bundle in `folder` (of `staging`) what `name` stands for; its final path.

        What the name stood for before goes, unless another name needs it.
        """
        digest = sha256_of(folder / MANIFEST)
        target = self._folder("sha256") / digest
        if not _sound(target):
            settle(folder)
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
            sync(target.parent)
        before = self.root / PULLED / name
        old = before.resolve() if before.is_symlink() else None
        self._link(name, digest)
        if old and old != target.resolve():
            self._forget(old)
        return target

    def _folder(self, name: str) -> Path:
        """A sub-folder (or the root), made if need be, for all to read whatever the umask."""
        for folder in (self.root, self.root / name):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                folder.chmod(_FOLDER_MODE)
        return self.root / name

    def _link(self, name: str, digest: str) -> None:
        point(self._folder(PULLED) / name, Path("..") / "sha256" / digest)

    def _forget(self, folder: Path) -> None:
        if folder.parent != (self.root / "sha256").resolve():
            return
        if any(link.resolve() == folder for link in self.root.glob("*/*") if link.is_symlink()):
            return
        with suppress(OSError):
            shutil.rmtree(folder)


def told_gone(link: Path) -> str:
    """What to say of a pulled name (of `ModelStore.names`) whose folder is gone; empty for every other path."""
    if link.parent.name != PULLED or not link.is_symlink() or link.exists():
        return ""
    folder = os.path.normpath(link.parent / link.readlink())
    return (
        f"{link}: the folder that it stands for is gone: {folder} "
        f"(hint: recognizer-agent models pull {link.name} fetches it again; else delete the link)"
    )


def _sound(folder: Path) -> bool:
    try:
        load_bundle(folder)
    except (ModelError, TrustError):
        return False
    return True
