"""What may be installed: targets added to the signed list and taken from it. Results are staged; `publish` lets them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.errors import DataError
from ota.release.files import copy_durably
from ota.release.pack import Packed, Wishes, pack
from ota.release.repository import NUMBERS, Repository, Signing, custom_of, numbers, release_of
from ota.release.roots import Staged, newest_root, next_targets, staged_targets


def add_release(
    repository: Repository,
    signing: Signing,
    source: Path,
    wishes: Wishes,
    *,
    again: bool = False,
) -> tuple[Packed, Staged]:
    """Pack `source`, stage its bytes and the targets metadata that names it, signed with the keys here.

    again: the same bytes under a new number, to bring a fleet back to an older version.
    Raises DataError (the version is signed already), ModelError, TrustError, ConfigError, OSError.
    """
    targets = next_targets(repository)
    with TemporaryDirectory(prefix="recognizer-pack-") as place:
        packed = pack(source, Path(place), numbers(targets.signed), wishes)
        info = TargetFile(
            packed.length, {"sha256": packed.sha256}, packed.release.path, {"custom": custom_of(packed.release)}
        )
        _require_new(targets.signed, info, again=again)
        targets.signed.targets[info.path] = info
        targets.signed.unrecognized_fields[NUMBERS] = numbers(targets.signed) | {
            packed.release.slot: packed.release.number
        }
        copy_durably(packed.file, repository.staged.target_file(info))
    return packed, _stage(repository, signing, targets)


def slots(repository: Repository) -> set[str]:
    """Those that something on the list is for, staged or published. Raises TrustError, DataError."""
    return {release_of(info).slot for info in next_targets(repository).signed.targets.values()}


def withdraw(repository: Repository, signing: Signing, paths: Sequence[str]) -> Staged:
    """Take targets off the list: no device installs them from then on; those that have them keep them. Raises DataError."""
    targets = next_targets(repository)
    for path in paths:
        if path not in targets.signed.targets:
            known = ", ".join(sorted(targets.signed.targets)) or "none"
            raise DataError(f"no target {path!r} (there are: {known})")
        del targets.signed.targets[path]
    return _stage(repository, signing, targets)


def renew_targets(repository: Repository, signing: Signing) -> Staged:
    """The same list with a new expiry."""
    return _stage(repository, signing, next_targets(repository))


def _stage(repository: Repository, signing: Signing, targets: Metadata[Targets]) -> Staged:
    root = newest_root(repository)
    published = repository.published()
    targets.signed.expires = signing.until("targets")
    targets.signatures.clear()
    if not signing.sign(targets, "targets", published.root if published else None, root):
        named = ", ".join(keyid[:8] for keyid in root.signed.roles["targets"].keyids)
        raise DataError(f"none of the keys given may sign targets (these may: {named})")
    repository.staged.write(targets)
    return staged_targets(root, targets)


def _require_new(targets: Targets, info: TargetFile, *, again: bool) -> None:
    known = targets.targets.get(info.path)
    if known is None:
        return
    if known.hashes != info.hashes:
        raise DataError(f"{info.path} is signed already, with other bytes (hint: give it a new version)")
    if not again:
        raise DataError(f"{info.path} is signed already (hint: --again gives the same bytes a new number)")
