"""A TUF repository as plain files, and what is known to hold of it: everything read is verified from the roots down.

metadata/  N.root.json, N.targets.json, N.snapshot.json, timestamp.json    } what clients see: any web server will do
targets/   <slot>/<sha256>.<name>-<version>.tar.zst                        }
staged/    the same two folders: signed offline, waiting for `publish`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.durable import write_durably
from agent.errors import DataError, TrustError
from agent.update.release import Release
from ota.release.keys import KeyRing, Role
from ota.release.pin import Pin

Kind = TypeVar("Kind", Root, Targets, Snapshot, Timestamp)
NUMBERS = "x-recognizer-numbers"
"""Field of the targets metadata: the highest release number ever given out, by slot; withdrawing does not lower it."""
_VERSIONED = re.compile(r"(\d+)\.(root|targets|snapshot)\.json")


@dataclass(frozen=True, slots=True)
class Periods:
    """How long signatures hold, in days."""

    root: float = 365.0
    targets: float = 180.0
    snapshot: float = 14.0
    timestamp: float = 3.0

    def until(self, role: Role, now: datetime) -> datetime:
        """Expiry of what is signed at `now`, whole seconds."""
        return (now + timedelta(days=float(getattr(self, role)))).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Signing:
    """With which keys, from when on, for how long."""

    ring: KeyRing
    now: datetime
    periods: Periods = Periods()

    def until(self, role: Role) -> datetime:
        """Expiry of what is signed now."""
        return self.periods.until(role, self.now)

    def sign(self, metadata: Metadata[Any], role: Role, *roots: Metadata[Root] | None) -> int:
        """Add the signatures of all keys here that one of `roots` names for `role`; how many."""
        keyids = [keyid for root in roots if root for keyid in root.signed.roles[role].keyids]
        signers = self.ring.signers(keyids)
        for signer in signers:
            metadata.sign(signer, append=True)
        return len(signers)


@dataclass(frozen=True, slots=True)
class Signed:
    """A target of the targets metadata. file: where its bytes lie."""

    path: str
    release: Release
    length: int
    sha256: str
    file: Path


@dataclass(frozen=True, slots=True)
class State:
    """What clients see now; None = not there yet."""

    root: Metadata[Root]
    targets: Metadata[Targets] | None = None
    snapshot: Metadata[Snapshot] | None = None
    timestamp: Metadata[Timestamp] | None = None


class Layout:
    """The two folders with their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = folder / "metadata"
        self.targets = folder / "targets"

    def versions(self, role: Role) -> list[int]:
        """Of `role`, rising."""
        found = (_VERSIONED.fullmatch(file.name) for file in self.metadata.glob(f"*.{role}.json"))
        return sorted(int(match[1]) for match in found if match and match[2] == role)

    def read(self, role: Role, kind: type[Kind], version: int) -> Metadata[Kind]:
        """One file, as it stands. Raises DataError."""
        return read_metadata(self.metadata / f"{version}.{role}.json", kind)

    def target_file(self, info: TargetFile) -> Path:
        """Where the bytes of a target lie."""
        folder, _, name = info.path.rpartition("/")
        return self.targets / folder / f"{info.hashes['sha256']}.{name}"

    def write(self, metadata: Metadata[Any]) -> Path:
        """Under its version's name, in one step. Raises OSError."""
        signed = metadata.signed
        name = f"{signed.type}.json" if isinstance(signed, Timestamp) else f"{signed.version}.{signed.type}.json"
        write_durably(self.metadata / name, metadata.to_bytes())
        return self.metadata / name


class Repository(Layout):
    """The repository in `folder`. pin: where the root is remembered that its roots have to follow."""

    def __init__(self, folder: Path, pin: Pin | None = None) -> None:
        super().__init__(folder)
        self.staged = Layout(folder / "staged")
        self.pin = pin or Pin(None)

    def staged_version(self, role: Literal["root", "targets"], published: int) -> int:
        """Newest one that waits; 0 = none. What is not above `published` was let out already."""
        return max((version for version in self.staged.versions(role) if version > published), default=0)

    def published(self) -> State | None:
        """What clients see; None = nothing was published yet. Raises TrustError (it does not hold), DataError."""
        versions = self.versions("root")
        if not versions:
            return None
        root = self._first_root(versions)
        for version in versions:
            if version > root.signed.version:
                root = newer_root(root, self.read("root", Root, version))
        if not (self.metadata / "timestamp.json").exists():
            return State(root)
        timestamp = read_metadata(self.metadata / "timestamp.json", Timestamp)
        snapshot = self.read("snapshot", Snapshot, timestamp.signed.snapshot_meta.version)
        targets = self.read("targets", Targets, snapshot.signed.meta["targets.json"].version)
        return State(root, targets, snapshot, timestamp)

    def _first_root(self, versions: list[int]) -> Metadata[Root]:
        """The one that is remembered beside the keys, else the oldest."""
        known = self.pin.read()
        if known is None:
            root = self.read("root", Root, versions[0])
        else:
            version = known.signed.version
            root = self.pin.require(known, self.read("root", Root, version) if version in versions else None)
        return newer_root(root, root)

    def releases(self) -> list[Signed]:
        """What the published targets metadata names, by path. Raises TrustError, DataError."""
        state = self.published()
        if state is None or state.targets is None:
            return []
        require_signed(state.root, "targets", state.targets)
        return [self._signed(info) for _, info in sorted(state.targets.signed.targets.items())]

    def _signed(self, info: TargetFile) -> Signed:
        return Signed(info.path, release_of(info), info.length, info.hashes["sha256"], self.target_file(info))


def read_metadata(file: Path, kind: type[Kind]) -> Metadata[Kind]:
    """Raises DataError: missing, unreadable, or of another role."""
    try:
        metadata: Metadata[Kind] = Metadata.from_bytes(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except RepositoryError as error:
        raise DataError(f"{file}: no TUF metadata: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise DataError(f"{file}: is {metadata.signed.type} metadata, not {kind.type}")
    return metadata


def newer_root(trusted: Metadata[Root], root: Metadata[Root]) -> Metadata[Root]:
    """`root`, which follows `trusted` (or is it). Raises TrustError."""
    first = root.signed.version == trusted.signed.version
    if not first and root.signed.version != trusted.signed.version + 1:
        raise TrustError(f"root {root.signed.version} does not follow root {trusted.signed.version}")
    result = root.signed.get_root_verification_result(
        None if first else trusted.signed, root.signed_bytes, root.signatures
    )
    if not result.verified:
        raise TrustError(f"root {root.signed.version}: too few signatures: {missing(root, None if first else trusted)}")
    return root


def require_signed(root: Metadata[Root], role: Role, metadata: Metadata[Any]) -> None:
    """Raises TrustError: too few of the keys that `root` names have signed."""
    if not is_signed(root, role, metadata):
        raise TrustError(f"{role} {metadata.signed.version}: too few signatures: {count(root, role, metadata)}")


def is_signed(root: Metadata[Root], role: Role, metadata: Metadata[Any]) -> bool:
    """Does `metadata` reach the threshold of `role` in `root`?"""
    return root.signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures).verified


def count(root: Metadata[Root], role: Role, metadata: Metadata[Any]) -> str:
    """`1, needs 2 (not yet: aaaaaaaa, bbbbbbbb)`"""
    result = root.signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    unsigned = ", ".join(sorted(keyid[:8] for keyid in result.unsigned))
    return f"{len(result.signed)}, needs {result.threshold}" + (f" (not yet: {unsigned})" if unsigned else "")


def missing(root: Metadata[Root], trusted: Metadata[Root] | None) -> str:
    """What a root has of the signatures that it needs; trusted: the root before it, whose keys must agree as well."""
    by_itself = f"of its own keys {count(root, 'root', root)}"
    return by_itself if trusted is None else f"{by_itself}; of the root before it {count(trusted, 'root', root)}"


def release_of(info: TargetFile) -> Release:
    """Raises DataError: no release, or under another path than its own."""
    try:
        release = Release.model_validate(info.custom)
    except ValueError as error:
        raise DataError(f"target {info.path!r} is no release: {error}") from error
    if release.path != info.path:
        raise DataError(f"target {info.path!r} is {release.title} for {release.slot}: it should be {release.path!r}")
    return release


def custom_of(release: Release) -> dict[str, Any]:
    """The `custom` part of a target. Fractions become text, since signed JSON (canonical JSON) has none; reading takes both."""
    plain: dict[str, Any] = _without_fractions(release.model_dump(mode="json"))
    return plain


def numbers(targets: Targets) -> dict[str, int]:
    """Highest release number given out so far, by slot."""
    found: Mapping[str, int] = targets.unrecognized_fields.get(NUMBERS, {})
    return dict(found)


def _without_fractions(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_fractions(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_fractions(part) for part in value]
    return repr(value) if isinstance(value, float) else value
