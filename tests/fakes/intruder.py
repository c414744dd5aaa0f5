"""Somebody who has taken the server: its folders, and the online keys in them. He has no key that may sign targets."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import create_engine
from tuf.api.metadata import MetaFile, TargetFile

from ota.release.files import copy_durably
from ota.release.keys import KeyRing
from ota.release.pack import Packed, Wishes, pack
from ota.release.repository import NUMBERS, Repository, Signing, State, custom_of, numbers
from ota.store import releases


class _NoPassphrases:
    """Online keys have none."""

    def new(self, title: str) -> bytes:
        raise AssertionError(title)

    def known(self, file: Path) -> Iterator[bytes]:
        yield from ()


def plant(folder: Path, online: Path, bundle: Path, place: Path) -> Packed:
    """Put `bundle` on the published list of the repository in `folder` as its next release, and all that the keys in `online` can make good.

    The list keeps the signature that it had, which does not fit any more; snapshot and timestamp are signed as they should be. place: for
    the archive.
    """
    repository = Repository(folder)
    state = repository.published()
    assert state is not None
    assert state.targets is not None
    targets = copy.deepcopy(state.targets)
    packed = pack(bundle, place, numbers(targets.signed), Wishes(slot="pose"))
    release = packed.release
    info = TargetFile(packed.length, {"sha256": packed.sha256}, release.path, {"custom": custom_of(release)})
    targets.signed.version += 1
    targets.signed.targets[info.path] = info
    targets.signed.unrecognized_fields[NUMBERS] = numbers(targets.signed) | {release.slot: release.number}
    copy_durably(packed.file, repository.target_file(info))
    signing = Signing(KeyRing([online], _NoPassphrases()), datetime.now(UTC))
    _let_out(repository, state, repository.write(targets), signing)
    return packed


def _let_out(repository: Repository, state: State, targets: Path, signing: Signing) -> None:
    """As `recognizer-fleet publish`, which would refuse such a list."""
    assert state.snapshot is not None
    assert state.timestamp is not None
    snapshot, timestamp = copy.deepcopy(state.snapshot), copy.deepcopy(state.timestamp)
    version = int(targets.name.partition(".")[0])
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, targets.read_bytes(), ["sha256"])
    for metadata, role in ((snapshot, "snapshot"), (timestamp, "timestamp")):
        metadata.signed.version += 1
        metadata.signed.expires = signing.until(role)
        metadata.signatures.clear()
        assert signing.sign(metadata, role, state.root) == 1
        file = repository.write(metadata)
        if role == "snapshot":
            timestamp.signed.snapshot_meta = MetaFile.from_data(metadata.signed.version, file.read_bytes(), ["sha256"])


def enter(data: Path, packed: Packed) -> None:
    """Write it into the database of the fleet server in `data`, which takes releases from signed lists alone."""
    engine = create_engine(f"sqlite:///{data / 'fleet.db'}")
    with engine.begin() as connection:
        releases.add(
            connection, packed.release, target=packed.release.path, length=packed.length, sha256=packed.sha256,
            sha1="0" * 40, md5="0" * 32, now_ms=round(time.time() * 1000),
        )  # fmt: skip
    engine.dispose()


def restore(repository: Path, copied: Path) -> None:
    """The published repository as it was when it was copied."""
    shutil.rmtree(repository)
    shutil.copytree(copied, repository)
