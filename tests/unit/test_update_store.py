"""Versions on the disk: whole or not there, switched by one rename, and found again when nothing else is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.update_world import Releases

from agent.errors import DataError, StorageFullError
from agent.runtime.bundle import sha256_of
from agent.update.archive import unpack
from agent.update.models import VersionStore, folder_of, slot_of
from agent.update.records import Version


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(tmp_path_factory.mktemp("releases"))


Add = Callable[[str], Version]


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "updates")


@pytest.fixture
def add(store: VersionStore, releases: Releases, tmp_path: Path) -> Add:
    def work(version: str) -> Version:
        release = releases.make(version, publish=False)
        archive = tmp_path / version
        archive.write_bytes(
            next(
                content
                for path, content in releases.repository.files.items()
                if path.endswith(f"tiny-{version}.tar.zst")
            )
        )
        found = Version(sha256_of(archive), release)
        store.add(found, lambda folder: unpack(archive, folder, release))
        return found

    return work


@pytest.mark.parametrize("slot", ["pose", "configuration", "action/fight", "action/fall-bed", "action/action-x"])
def test_a_slot_is_a_file_name_and_back(slot: str) -> None:
    assert slot_of(folder_of(slot)) == slot
    assert "/" not in folder_of(slot)


def test_a_version_is_whole_or_not_there(store: VersionStore, releases: Releases) -> None:
    release = releases.make("3.0.0", publish=False)
    version = Version("ab" * 32, release)

    def half(folder: Path) -> None:
        (folder / "manifest.json").write_text("{")
        raise OSError("the power went")

    with pytest.raises(OSError, match="the power went"):
        store.add(version, half)
    assert not store.has(version.sha256)
    assert not list((store.root / "staging").iterdir())
    with pytest.raises(DataError):  # and what is unpacked but not what was signed goes again
        store.add(version, lambda folder: (folder / "manifest.json").write_text("{}"))  # type: ignore[func-returns-value]
    assert store.versions() == []


def test_the_link_follows_and_tells(store: VersionStore, add: Add) -> None:
    first, second = add("1.1.0"), add("1.2.0")
    for version in (first, second):
        store.switch("pose", version)
        assert store.linked() == {"pose": version}
        assert (store.root / "current" / "pose" / "bundle").resolve() == store.path(version).resolve()
    store.switch("pose", None)
    assert store.linked() == {}


def test_a_damaged_version_is_found_out_and_replaced(store: VersionStore, add: Add) -> None:
    version = add("1.1.0")
    assert not store.problem(version)
    model = store.path(version) / "model.onnx"
    content = bytearray(model.read_bytes())
    content[100] ^= 1
    model.write_bytes(content)
    assert "sha256" in store.problem(version)


def test_only_what_is_needed_stays(store: VersionStore, add: Add) -> None:
    versions = [add(f"2.{n}.0") for n in range(4)]
    needed = {versions[0].sha256}
    gone = store.prune(needed, extra=1)
    left = {version.sha256 for version in store.versions()}
    assert needed < left
    assert len(left) == 2
    assert set(gone) == {version.sha256 for version in versions} - left
    store.prune(needed)
    assert {version.sha256 for version in store.versions()} == needed


def test_what_a_death_left_behind_goes_but_not_what_is_wanted(store: VersionStore) -> None:
    wanted, other = store.partial("ab" * 32), store.partial("cd" * 32)
    for part in (wanted, other, wanted.with_suffix(".json")):
        part.write_bytes(b"x")
    (store.root / "staging" / "half").mkdir(parents=True)
    store.tidy(iter(["ab" * 32]))
    assert wanted.exists()
    assert wanted.with_suffix(".json").exists()
    assert not other.exists()
    assert not (store.root / "staging").exists()


def test_no_room_says_how_much(store: VersionStore) -> None:
    store.require_room(1000, 0)
    with pytest.raises(StorageFullError, match="MB needed"):
        store.require_room(2**60, 1000)


def test_numbers_survive_beside_the_journal(store: VersionStore) -> None:
    assert store.numbers() == {}
    store.write_numbers({"pose": 7})
    assert store.numbers() == {"pose": 7}
    (store.root / "numbers.json").write_text("[1]")
    assert store.numbers() == {}


@pytest.mark.parametrize("name", ["", "..", "../../etc", "AB" * 32, "ab" * 31])
def test_a_digest_is_nothing_else(store: VersionStore, name: str) -> None:
    with pytest.raises(DataError, match="no SHA-256"):
        store.has(name)
