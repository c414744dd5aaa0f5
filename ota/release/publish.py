"""The online step: lets out what was signed offline, and keeps the repository fresh. Needs the snapshot and timestamp keys alone.

Everything is verified before a client can see it. The order of writing is such that a client, and a publish that is cut off at
any point, finds a whole repository: target files, targets, snapshot, then timestamp, which alone makes them visible; a root goes
last where the new timestamp is good under the old root too (signed with the old and the new keys), else right before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.errors import DataError, TrustError
from ota.release.files import copy_durably, locked
from ota.release.repository import Layout, Repository, Signing, State, is_signed, newer_root, release_of, require_signed

WARN = timedelta(days=30)
"""Before what is signed offline expires."""


@dataclass(slots=True)
class Published:
    """What was done. written: files in the order of their writing; warnings: what will stop updates soon; expired: or has;
    unable: the keys here are too few for the next renewal."""

    written: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    expired: bool = False
    unable: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """roots: that are new, in order; root: the newest; targets: new ones, else None; files: to copy, from where."""

    roots: list[Metadata[Root]]
    root: Metadata[Root]
    targets: Metadata[Targets] | None
    files: list[tuple[Path, Path]]


def publish(repository: Repository, signing: Signing, source: Layout | None = None) -> Published:
    """Let out what is staged. source: a folder brought from the release machine, in place of the repository's own `staged/`.

    Raises DataError (nothing is staged, or made from another state), TrustError (not signed well enough, other bytes),
    ConfigError, TransientError (another process publishes), OSError.
    """
    with locked(repository.folder):
        source = source or repository.staged
        state = repository.published()
        plan = _plan(repository, source, state, signing.now)
        targets = plan.targets or (state.targets if state else None)
        if targets is None:
            raise DataError(f"{source.folder}: a repository begins with root 1 and targets 1 (hint: `keys ceremony`)")
        done = _write(repository, signing, state, plan, targets)
        _clear(source, plan)
        _warn(done, plan.root, targets, signing.now)
        return done


def renew(repository: Repository, signing: Signing) -> Published:
    """Sign snapshot and timestamp anew where less than half of their time is left; for a timer. What is staged stays staged.

    Raises as `publish`."""
    with locked(repository.folder):
        state = repository.published()
        if state is None or state.targets is None or state.snapshot is None or state.timestamp is None:
            raise DataError(f"{repository.folder}: nothing is published there yet (hint: `recognizer-fleet publish`)")
        done = Published()
        snapshot = state.snapshot
        if _old(snapshot.signed.expires, signing.periods.snapshot, signing.now):
            snapshot = _snapshot(repository, signing, state, state.root, state.targets)
            _put(repository, snapshot, done)
        stale = _old(state.timestamp.signed.expires, signing.periods.timestamp, signing.now)
        if snapshot is not state.snapshot or stale:
            _put(repository, _timestamp(repository, signing, state, state.root, snapshot), done)
        _warn(done, state.root, state.targets, signing.now)
        _warn_of_keys(done, state.root, signing)
        return done


def _plan(repository: Repository, source: Layout, state: State | None, now: datetime) -> _Plan:
    roots = _new_roots(source, state)
    if not roots and state is None:
        raise DataError(f"{source.folder}: holds no root to begin with (hint: `recognizer-fleet keys ceremony`)")
    root = roots[-1] if roots else state.root  # type: ignore[union-attr]
    _require_fresh("root", root, now)
    targets = _new_targets(source, state)
    if not roots and targets is None:
        raise DataError(f"{source.folder}: nothing is staged (hint: `recognizer-fleet sign`; or `publish --renew`)")
    newest = targets or (state.targets if state else None)
    if newest:
        require_signed(root, "targets", newest)
        _require_fresh("targets", newest, now)
    files = _new_files(repository, source, targets) if targets else []
    return _Plan(roots, root, targets, files)


def _new_roots(source: Layout, state: State | None) -> list[Metadata[Root]]:
    trusted, found = (state.root if state else None), []
    for version in source.versions("root"):
        if trusted and version <= trusted.signed.version:
            continue
        root = source.read("root", Root, version)
        trusted = newer_root(trusted or root, root)
        found.append(root)
    return found


def _new_targets(source: Layout, state: State | None) -> Metadata[Targets] | None:
    known = state.targets.signed.version if state and state.targets else 0
    version = max(source.versions("targets"), default=0)
    if version <= known:
        return None
    if version != known + 1:
        raise DataError(f"{source.folder}: targets {version} does not follow targets {known}, which is published")
    return source.read("targets", Targets, version)


def _new_files(repository: Repository, source: Layout, targets: Metadata[Targets]) -> list[tuple[Path, Path]]:
    """Every target has its bytes, here or there. Raises TrustError, DataError."""
    files = []
    for info in targets.signed.targets.values():
        release_of(info)
        here = repository.target_file(info)
        if here.is_file() and here.stat().st_size == info.length:
            continue
        there = source.target_file(info)
        _require_bytes(there, info)
        files.append((there, here))
    return files


def _require_bytes(file: Path, info: TargetFile) -> None:
    try:
        with file.open("rb") as content:
            info.verify_length_and_hashes(content)
    except OSError as error:
        raise DataError(f"{info.path}: its bytes are missing: {file}: {error.strerror}") from error
    except LengthOrHashMismatchError as error:
        raise TrustError(f"{file}: not the bytes that are signed as {info.path}") from error


def _write(
    repository: Repository, signing: Signing, state: State | None, plan: _Plan, targets: Metadata[Targets]
) -> Published:
    done = Published()
    for there, here in plan.files:
        copy_durably(there, here)
        done.written.append(here.relative_to(repository.folder).as_posix())
    if plan.targets is not None:
        _put(repository, plan.targets, done)
    snapshot = _snapshot(repository, signing, state, plan.root, targets)
    _put(repository, snapshot, done)
    timestamp = _timestamp(repository, signing, state, plan.root, snapshot)
    old = state.root if state else None
    overlaps = (
        old is not None
        and is_signed(old, "targets", targets)
        and is_signed(old, "snapshot", snapshot)
        and is_signed(old, "timestamp", timestamp)
    )
    if overlaps:
        _put(repository, timestamp, done)
    for root in plan.roots:
        _put(repository, root, done)
    if not overlaps:
        _put(repository, timestamp, done)
    return done


def _put(repository: Repository, metadata: Metadata[Any], done: Published) -> None:
    done.written.append(repository.write(metadata).relative_to(repository.folder).as_posix())


def _snapshot(
    repository: Repository, signing: Signing, state: State | None, root: Metadata[Root], targets: Metadata[Targets]
) -> Metadata[Snapshot]:
    """Names the targets, which are on the disk, by version, length and hash: nothing else goes with it."""
    version = state.snapshot.signed.version + 1 if state and state.snapshot else 1
    content = (repository.metadata / f"{targets.signed.version}.targets.json").read_bytes()
    meta = MetaFile.from_data(targets.signed.version, content, ["sha256"])
    snapshot = Metadata(Snapshot(version=version, expires=signing.until("snapshot"), meta={"targets.json": meta}))
    signing.sign(snapshot, "snapshot", state.root if state else None, root)
    require_signed(root, "snapshot", snapshot)
    return snapshot


def _timestamp(
    repository: Repository, signing: Signing, state: State | None, root: Metadata[Root], snapshot: Metadata[Snapshot]
) -> Metadata[Timestamp]:
    """Names the snapshot, which is on the disk."""
    version = state.timestamp.signed.version + 1 if state and state.timestamp else 1
    content = (repository.metadata / f"{snapshot.signed.version}.snapshot.json").read_bytes()
    meta = MetaFile.from_data(snapshot.signed.version, content, ["sha256"])
    timestamp = Metadata(Timestamp(version=version, expires=signing.until("timestamp"), snapshot_meta=meta))
    signing.sign(timestamp, "timestamp", state.root if state else None, root)
    require_signed(root, "timestamp", timestamp)
    return timestamp


def _clear(source: Layout, plan: _Plan) -> None:
    """What is out need not wait any longer. A medium that cannot be written keeps it: its versions are known to be old."""
    published = {f"{metadata.signed.version}.root.json" for metadata in plan.roots}
    if plan.targets:
        published.add(f"{plan.targets.signed.version}.targets.json")
    try:
        for name in published:
            (source.metadata / name).unlink(missing_ok=True)
        for there, _ in plan.files:
            there.unlink(missing_ok=True)
    except OSError:
        return


def _require_fresh(role: str, metadata: Metadata[Root] | Metadata[Targets], now: datetime) -> None:
    if metadata.signed.is_expired(now):
        hint = "`keys renew`" if role == "root" else "`sign --renew`"
        raise TrustError(
            f"{role} {metadata.signed.version} expired on {metadata.signed.expires:%Y-%m-%d} (hint: {hint})"
        )


def _old(expires: datetime, days: float, now: datetime) -> bool:
    return expires - now < timedelta(days=days) / 2


def _warn(done: Published, root: Metadata[Root], targets: Metadata[Targets], now: datetime) -> None:
    """Words about what is signed offline and has little time left."""
    for role, expires, hint in (
        ("root", root.signed.expires, "`recognizer-fleet keys renew`"),
        ("targets", targets.signed.expires, "`recognizer-fleet sign --renew`"),
    ):
        left = expires - now
        if left < timedelta(0):
            done.expired = True
            done.warnings.append(f"{role} has EXPIRED on {expires:%Y-%m-%d}: no device takes updates (hint: {hint})")
        elif left < WARN:
            done.warnings.append(f"{role} expires on {expires:%Y-%m-%d}, in {left.days} days (hint: {hint})")


def _warn_of_keys(done: Published, root: Metadata[Root], signing: Signing) -> None:
    """Said at once, not only when there is something to sign: after a rotation the timer may still have the old keys."""
    here = {public.keyid for public in signing.ring.publics}
    for role in ("snapshot", "timestamp"):
        named = root.signed.roles[role]
        if len(here.intersection(named.keyids)) < named.threshold:
            done.unable = True
            wanted = ", ".join(keyid[:8] for keyid in named.keyids)
            done.warnings.append(
                f"{role} cannot be renewed: too few of its keys are here, needs {named.threshold} of {wanted}"
                " (hint: was it rotated? bring the new key here)"
            )
