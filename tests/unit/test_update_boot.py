"""The start: what serves each slot after whatever has happened to journal, store and process."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fakes.update_world import Releases

from agent.errors import StorageError, StorageFullError
from agent.runtime.bundle import sha256_of
from agent.update.archive import unpack
from agent.update.boot import JOURNAL, Booted, boot
from agent.update.journal import Journal
from agent.update.machine import Phase, report
from agent.update.models import VersionStore
from agent.update.records import Action, Serving, Version


class Box:
    """A device that is switched on again and again."""

    def __init__(self, root: Path, releases: Releases) -> None:
        self.root = root
        self.releases = releases
        self.store = VersionStore(root)

    def version(self, text: str) -> Version:
        release = self.releases.make(text, publish=False)
        archive = self.root.parent / f"{text}.tar.zst"
        archive.write_bytes(
            next(
                content
                for path, content in self.releases.repository.files.items()
                if path.endswith(f"tiny-{text}.tar.zst")
            )
        )
        found = Version(sha256_of(archive), release)
        self.store.add(found, lambda folder: unpack(archive, folder, release))
        return found

    def begin(self, action_id: str, version: Version, phase: Phase) -> Action:
        """An update that stands in `phase`."""
        journal = Journal.open(self.root / JOURNAL)
        action = journal.begin(action_id, version.release.path, "pose", report(Phase.DOWNLOADING))
        action = journal.identified(action, version)
        action = journal.enter(action, phase, report(phase), came_from="")
        journal.close()
        return action

    def commit(self, action_id: str, version: Version) -> None:
        action = self.begin(action_id, version, Phase.PROBATION)
        journal = Journal.open(self.root / JOURNAL)
        journal.commit(action, report(Phase.COMMITTED))
        journal.close()

    def start(self, *, enabled: bool = True) -> Booted:
        journal = Journal.open(self.root / JOURNAL)
        try:
            return boot(journal, self.store, enabled=enabled)
        finally:
            journal.close()

    def stop(self) -> None:
        journal = Journal.open(self.root / JOURNAL)
        journal.stopped()
        journal.close()

    def action(self, action_id: str) -> Action:
        journal = Journal.open_to_read(self.root / JOURNAL)
        found = journal.action(action_id)
        journal.close()
        assert found is not None
        return found

    def serving(self) -> Serving:
        journal = Journal.open_to_read(self.root / JOURNAL)
        found = journal.serving("pose")
        journal.close()
        return found

    def reported(self) -> list[tuple[str, str]]:
        journal = Journal.open_to_read(self.root / JOURNAL)
        found = [(one.action_id, one.report.details[0]) for one in journal.waiting()]
        journal.close()
        return found


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "updates", Releases(tmp_path / "releases"))


def test_nothing_has_come_yet(box: Box) -> None:
    assert box.start() == Booted()


@pytest.mark.parametrize("phase", [Phase.VERIFIED, Phase.VALIDATED])
def test_before_its_probation_a_candidate_does_not_serve(box: Box, phase: Phase) -> None:
    old, new = box.version("1.1.0"), box.version("1.2.0")
    box.commit("1", old)
    box.begin("2", new, phase)
    for _ in range(3):
        assert box.start().models == {"pose": box.store.path(old)}
    assert box.action("2").phase is phase


def test_the_second_death_in_a_shadow_run_refuses_the_candidate(box: Box) -> None:
    old, new = box.version("1.1.0"), box.version("1.2.0")
    box.commit("1", old)
    box.begin("2", new, Phase.SHADOW)
    for phase in (Phase.SHADOW, Phase.REFUSED):
        assert box.start().models == {"pose": box.store.path(old)}
        assert box.action("2").phase is phase
    assert box.action("2").reason == "restart"
    assert ("2", "refused") in box.reported()


def test_a_shadow_run_that_is_over_is_not_to_blame_for_deaths_while_it_waits(box: Box) -> None:
    action = box.begin("2", box.version("1.2.0"), Phase.SHADOW)
    journal = Journal.open(box.root / JOURNAL)
    journal.measured(action, {"agreement": 0.99})
    journal.close()
    for _ in range(3):
        box.start()
    assert box.action("2").phase is Phase.SHADOW


def test_a_configuration_that_waits_for_its_moment_is_not_to_blame_for_deaths(box: Box) -> None:
    release = box.releases.configuration("2026.1", "log: {level: info}\n")
    version = Version("c" * 64, release)
    journal = Journal.open(box.root / JOURNAL)
    action = journal.identified(journal.begin("2", release.path, "configuration", report(Phase.DOWNLOADING)), version)
    journal.enter(action, Phase.SHADOW, report(Phase.SHADOW))
    journal.close()
    for _ in range(3):
        box.start()
    assert box.action("2").phase is Phase.SHADOW


def test_the_second_death_in_a_probation_goes_back(box: Box) -> None:
    old, new = box.version("1.1.0"), box.version("1.2.0")
    box.commit("1", old)
    box.begin("2", new, Phase.PROBATION)
    assert box.start().models == {"pose": box.store.path(new)}
    assert box.store.linked() == {"pose": new}
    assert box.start().models == {"pose": box.store.path(old)}
    ended = box.action("2")
    assert (ended.phase, ended.reason, ended.settled) == (Phase.ROLLED_BACK, "restart", True)
    assert ("2", "rolled_back") in box.reported()
    assert box.store.linked() == {"pose": old}


def test_a_proper_restart_is_no_sign_against_it(box: Box) -> None:
    new = box.version("1.2.0")
    box.begin("2", new, Phase.PROBATION)
    for _ in range(5):
        assert box.start().models == {"pose": box.store.path(new)}
        box.stop()
    box.start()  # and one death in between is one
    assert box.start().models == {}
    assert box.action("2").phase is Phase.ROLLED_BACK


def test_a_roll_back_that_was_cut_off_is_finished(box: Box) -> None:
    old, new = box.version("1.1.0"), box.version("1.2.0")
    box.commit("1", old)
    box.begin("2", new, Phase.ROLLED_BACK)
    box.store.switch("pose", new)
    assert box.start().models == {"pose": box.store.path(old)}
    assert box.action("2").settled


def test_updates_switched_off_end_a_probation(box: Box) -> None:
    new = box.version("1.2.0")
    box.begin("2", new, Phase.PROBATION)
    assert box.start(enabled=False).models == {}
    assert box.action("2").reason == "command"


def test_a_damaged_version_gives_way_to_the_one_before_and_then_to_the_configured(box: Box) -> None:
    old, new = box.version("1.1.0"), box.version("1.2.0")
    box.commit("1", old)
    box.commit("2", new)
    (box.store.path(new) / "model.onnx").write_bytes(b"rot")
    booted = box.start()
    assert booted.models == {"pose": box.store.path(old)}
    assert "1.2.0 cannot be used" in booted.remarks[0]
    assert box.serving().highest == new.release.number
    shutil.rmtree(box.store.path(old))
    booted = box.start()
    assert booted.models == {}
    assert box.start().remarks == []


def test_a_damaged_candidate_ends_its_probation(box: Box) -> None:
    new = box.version("1.2.0")
    box.begin("2", new, Phase.PROBATION)
    (box.store.path(new) / "model.onnx").write_bytes(b"rot")
    assert box.start().models == {}
    assert box.action("2").reason == "archive"


@pytest.mark.parametrize("damage", ["garbage", "truncated", "gone", "empty tables"])
def test_a_lost_journal_is_made_anew_from_the_store(box: Box, damage: str) -> None:
    old, new = box.version("1.1.0"), box.version("1.2.0")
    box.commit("1", old)
    box.commit("2", new)
    box.start()
    file = box.root / JOURNAL
    content = file.read_bytes()
    if damage == "garbage":
        file.write_bytes(content[:2000] + b"\xa5" * 9000 + content[11_000:])
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"")
    booted = box.start()
    assert booted.models == {"pose": box.store.path(new)}
    assert bool(booted.remarks) is (damage in {"garbage", "truncated"})
    found = box.serving()
    assert (found.current, found.before, found.highest) == (new, old, new.release.number)
    set_aside = list(box.root.glob(f"{JOURNAL}.corrupt-*"))
    assert bool(set_aside) is (damage in {"garbage", "truncated"})


@pytest.mark.parametrize("before", [True, False])
def test_a_candidate_on_trial_is_not_taken_for_committed_when_the_journal_is_lost(box: Box, before: bool) -> None:
    if before:
        box.commit("1", box.version("1.1.0"))
    box.start()
    box.begin("2", new := box.version("1.2.0"), Phase.PROBATION)
    assert box.start().models == {"pose": box.store.path(new)}
    (box.root / JOURNAL).unlink()
    assert box.start().models.get("pose") != box.store.path(new)
    found = box.serving()
    assert (found.current.release.version if found.current else "configured") == ("1.1.0" if before else "configured")
    assert (found.before, found.highest) == (None, 1 if before else 0)


def test_a_damaged_version_is_no_way_back_when_the_journal_is_made_anew(box: Box) -> None:
    oldest, old, new = box.version("1.0.0"), box.version("1.1.0"), box.version("1.2.0")
    for number, version in enumerate((oldest, old, new)):
        box.commit(str(number), version)
    box.start()
    (box.store.path(old) / "model.onnx").write_bytes(b"rot")
    (box.root / JOURNAL).unlink()
    box.start()
    found = box.serving()
    assert (found.current, found.before) == (new, oldest if box.store.version(oldest.sha256) else None)
    assert found.before != old


def test_a_candidate_that_only_lies_there_is_nothing_to_go_back_to(box: Box) -> None:
    box.commit("1", box.version("1.1.0"))
    box.start()
    box.begin("2", box.version("1.2.0"), Phase.SHADOW)
    (box.root / JOURNAL).unlink()
    box.start()
    found = box.serving()
    assert found.current is not None
    assert (found.current.release.version, found.before) == ("1.1.0", None)


def test_a_journal_of_a_newer_agent_is_left_alone(box: Box) -> None:
    box.start()
    connection = sqlite3.connect(box.root / JOURNAL)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match=r"schema 99.*newer agent"):
        box.start()


def test_the_number_that_was_committed_is_remembered_without_journal_and_version(box: Box) -> None:
    box.commit("1", version := box.version("1.1.0"))
    box.start()
    (box.root / JOURNAL).unlink()
    shutil.rmtree(box.root / "sha256")
    box.start()
    assert box.serving().highest == version.release.number


# --- a full disk ------------------------------------------------------------------------------------------------------


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_start_at_which_nothing_changes_writes_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.commit("1", version := box.version("1.1.0"))
    box.start()
    monkeypatch.setattr(VersionStore, "write_numbers", no_room)
    monkeypatch.setattr(VersionStore, "switch", no_room)
    assert box.start() == Booted({"pose": box.store.path(version)})


def test_links_and_numbers_that_cannot_be_written_are_said_and_mended_later(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.commit("1", old := box.version("1.1.0"))
    box.start()
    box.commit("2", new := box.version("1.2.0"))
    with monkeypatch.context() as full:
        full.setattr(VersionStore, "write_numbers", no_room)
        full.setattr(VersionStore, "switch", no_room)
        booted = box.start()
    assert booted.models == {"pose": box.store.path(new)}
    assert ["No space left" in remark for remark in booted.remarks] == [True, True]
    assert (box.store.linked(), box.store.numbers()) == ({"pose": old}, {"pose": old.release.number})
    assert box.start().remarks == []
    assert (box.store.linked(), box.store.numbers()) == ({"pose": new}, {"pose": new.release.number})


def test_a_trial_whose_start_cannot_be_counted_waits_beside_what_served_before(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageFullError("no room")

    box.commit("1", old := box.version("1.1.0"))
    box.begin("2", new := box.version("1.2.0"), Phase.PROBATION)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "started", full)
        booted = box.start()
    assert booted.models == {"pose": box.store.path(old)}
    assert "cannot be judged: no room" in booted.remarks[0]
    assert box.action("2").phase is Phase.PROBATION
    assert box.start().models == {"pose": box.store.path(new)}


def test_a_number_is_not_forgotten_with_the_slot_that_it_is_of(box: Box) -> None:
    box.start()
    box.store.write_numbers({"action/fall": 7})
    box.commit("1", version := box.version("1.1.0"))
    box.start()
    assert box.store.numbers() == {"action/fall": 7, "pose": version.release.number}


def test_a_number_that_has_risen_under_the_same_bytes_writes_no_link_anew(box: Box) -> None:
    box.commit("1", version := box.version("1.1.0"))
    box.start()
    link = box.root / "current" / "pose"
    before = link.lstat().st_ino
    risen = Version(version.sha256, version.release.model_copy(update={"number": 9}))
    box.commit("2", risen)
    assert box.start().models == {"pose": box.store.path(version)}
    assert box.serving() == Serving("pose", risen, None, has_before=True, highest=9)
    assert link.lstat().st_ino == before
