"""The versions on this device, below `<state_dir>/updates`.

    sha256/<digest of the archive>/release.json   what was signed
                                   bundle/        the archive's files
    current/<slot> -> ../sha256/<digest>          which of them serves; none = what the configuration names
    partial/                                      downloads that are not finished
    staging/                                      what is being unpacked or removed
    numbers.json                                  highest number ever committed, by slot

A version appears by one rename and is complete then; a slot changes by one rename. The journal decides, the links follow it and
stand in for it when it is lost.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import ValidationError

from agent.durable import make_folder, point, settle, sync
from agent.errors import DataError, ModelError, StorageFullError, TrustError
from agent.runtime.bundle import MANIFEST, load_bundle, sha256_of
from agent.update.records import Version
from agent.update.release import Release

_log = structlog.get_logger(__name__)

RELEASE, BUNDLE, NUMBERS = "release.json", "bundle", "numbers.json"
CONFIGURATION, CONFIGURATION_FILE = "configuration", "configuration.yaml"
_HEX = frozenset("0123456789abcdef")
_DIGEST_CHARS = 64


def folder_of(slot: str) -> str:
    """`action/fight` is `action-fight` in file names. The only slot with a stroke begins with `action`, so the way back is clear."""
    return slot.replace("/", "-", 1)


def slot_of(name: str) -> str:
    """The way back from `folder_of`."""
    return name.replace("-", "/", 1) if name.startswith("action-") else name


class VersionStore:
    """root: `<state_dir>/updates`. Raises OSError where the disk does not let it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- look ---------------------------------------------------------------------------------------------------------

    def path(self, version: Version) -> Path:
        """What a model is loaded from: its bundle folder, or the file of a configuration."""
        bundle = self._folder(version.sha256) / BUNDLE
        return bundle / CONFIGURATION_FILE if version.release.slot == CONFIGURATION else bundle

    def has(self, sha256: str) -> bool:
        """Whether the version of this archive is here."""
        return (self._folder(sha256) / RELEASE).is_file()

    def problem(self, version: Version) -> str:
        """What keeps `version` from being used: missing, damaged; empty = nothing. Reads all of it."""
        path, expected = self.path(version), version.release.manifest_sha256
        try:
            if version.release.slot != CONFIGURATION:
                load_bundle(path)
            found = sha256_of(path if version.release.slot == CONFIGURATION else path / MANIFEST)
        except (ModelError, TrustError, OSError) as error:
            return str(error)
        return "" if found == expected else f"{path}: the manifest is not the one that was signed"

    def is_in_use(self, version: Version, running: Path | None) -> bool:
        """Whether `version`, which should serve its slot, does where `Trials.running` says `running`: one that cannot be loaded at a
        start is left aside. No model at all (no camera) is nothing against it; of a configuration None says that it is not sure."""
        return running == self.path(version) or (running is None and version.release.slot != CONFIGURATION)

    def version(self, sha256: str) -> Version | None:
        """The version of this archive as the store has it; None when it is not here or says nothing about itself."""
        try:
            text = (self._folder(sha256) / RELEASE).read_bytes()
            return Version(sha256, Release.model_validate_json(text))
        except (OSError, ValidationError, DataError):  # nobody knows what people or a damaged disk leave there
            return None

    def linked(self) -> dict[str, Version]:
        """What the links say serves, by slot."""
        found = {}
        for link in self._entries("current"):
            if link.is_symlink() and (version := self.version(link.readlink().name)) is not None:
                found[slot_of(link.name)] = version
        return found

    def linked_models(self) -> dict[str, Path]:
        """Bundles of the links, by slot."""
        return {slot: self.path(version) for slot, version in self.linked().items() if slot != CONFIGURATION}

    def versions(self) -> list[Version]:
        """All that are here, those that came last first."""
        entries = sorted(self._entries("sha256"), key=lambda entry: entry.lstat().st_mtime, reverse=True)
        return [version for entry in entries if (version := self.version(entry.name)) is not None]

    def has_numbers(self) -> bool:
        """Whether anything stands here about numbers."""
        return (self.root / NUMBERS).is_file()

    def numbers(self) -> dict[str, int]:
        """Highest number ever committed by slot, as far as it stands here."""
        try:
            known = json.loads((self.root / NUMBERS).read_bytes())
            return {str(slot): int(number) for slot, number in known.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    # --- change -------------------------------------------------------------------------------------------------------

    def partial(self, sha256: str) -> Path:
        """Where the unfinished download of this archive lies or will lie."""
        return self._made("partial") / f"{sha256}.part"

    def require_room(self, need: int, reserve: int) -> None:
        """Raises StorageFullError unless `need` bytes fit and `reserve` are left."""
        free = shutil.disk_usage(self._made("")).free
        if free < need + reserve:
            raise StorageFullError(
                f"{free / 1e6:,.0f} MB free, {need / 1e6:,.0f} MB needed and {reserve / 1e6:,.0f} MB to be left free"
            )

    def add(self, version: Version, unpack: Callable[[Path], None]) -> Path:
        """Have `unpack` fill a new folder and make it `version`; its path. What is here already stays."""
        if self.has(version.sha256) and not self.problem(version):
            return self.path(version)
        folder = Path(tempfile.mkdtemp(dir=self._made("staging")))
        try:
            bundle = folder / BUNDLE
            bundle.mkdir()
            unpack(bundle)
            (folder / RELEASE).write_text(version.release.model_dump_json(indent=2), encoding="utf-8")
            settle(folder)
            target = self._made("sha256") / version.sha256
            self._discard(target)
            folder.rename(target)
            sync(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if problem := self.problem(version):
            self._discard(target)
            raise DataError(problem)
        return self.path(version)

    def switch(self, slot: str, version: Version | None) -> None:
        """Let the link of `slot` name `version`; None: no link, the configuration's model serves."""
        link = self._made("current") / folder_of(slot)
        if version is None:
            link.unlink(missing_ok=True)
            sync(link.parent)
        else:
            point(link, Path("..") / "sha256" / version.sha256)

    def write_numbers(self, numbers: Mapping[str, int]) -> None:
        """Remember the highest numbers beside the journal."""
        fresh = self._made("") / f".{NUMBERS}.new"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(dict(numbers), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.root / NUMBERS)
        sync(self.root)

    def prune(self, needed: Iterable[str], extra: int = 0) -> list[str]:
        """Remove every version but those of `needed` (digests) and, of each slot, the `extra` that came last; returns what went."""
        keep, gone = set(needed), []
        left: dict[str, int] = {}
        for version in self.versions():
            slot = version.release.slot
            if version.sha256 not in keep and left.setdefault(slot, extra) > 0:
                left[slot] -= 1
                keep.add(version.sha256)
        for entry in self._entries("sha256"):
            if entry.name not in keep:
                try:
                    self._discard(entry)
                except OSError as error:  # somebody else's, or the disk's fault: no reason to take no more updates
                    _log.warning("update_version_stays", entry=entry.name, error=str(error))
                    continue
                gone.append(entry.name)
        return gone

    def tidy(self, wanted: Iterable[str] = ()) -> None:
        """Remove what a death left in staging, and downloads of other archives than `wanted`."""
        keep = set(wanted)
        shutil.rmtree(self.root / "staging", ignore_errors=True)
        for file in self._entries("partial"):
            if file.name.partition(".")[0] not in keep:
                with suppress(OSError):
                    file.unlink(missing_ok=True)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _folder(self, sha256: str) -> Path:
        if len(sha256) != _DIGEST_CHARS or not set(sha256) <= _HEX:
            raise DataError(f"{sha256!r} is no SHA-256 digest")
        return self.root / "sha256" / sha256

    def _entries(self, name: str) -> list[Path]:
        folder = self.root / name
        return (
            [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")] if folder.is_dir() else []
        )

    def _made(self, name: str) -> Path:
        folder = self.root / name
        if not folder.is_dir():
            make_folder(folder)
        return folder

    def _discard(self, folder: Path) -> None:
        """Out of sight by one rename, then removed: half a version is never in sight."""
        if not os.path.lexists(folder):
            return
        doomed = Path(tempfile.mkdtemp(dir=self._made("staging")))
        folder.rename(doomed / folder.name)
        sync(folder.parent)
        with suppress(OSError):
            shutil.rmtree(doomed)
