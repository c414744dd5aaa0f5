"""The journal: one transaction a step, and what the server has yet to hear is neither lost nor doubled."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fakes.tuf_repository import release

from agent.errors import StorageError
from agent.migrations import advance, migrations_of
from agent.update.journal import Journal
from agent.update.journal_file import InUseError, sole_owner
from agent.update.machine import Phase, report
from agent.update.records import Action, Serving, Version
from agent.update.trials import Refusal

OLD, NEW = (
    Version(letter * 64, release("pose", version=f"1.{number}.0", number=number))
    for letter, number in (("a", 1), ("b", 2))
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "updates.db")
    yield opened
    opened.close()


def begun(journal: Journal, action_id: str = "7") -> Action:
    return journal.begin(action_id, "pose/x-1.0.0.tar.zst", "pose", report(Phase.DOWNLOADING))


def committed(journal: Journal, action_id: str, version: Version) -> Action:
    action = journal.enter(
        begun(journal, action_id), Phase.PROBATION, report(Phase.PROBATION), version=version, came_from=""
    )
    return journal.commit(action, report(Phase.COMMITTED))


def waiting(journal: Journal) -> list[tuple[str, str, str]]:
    return [(one.action_id, one.about, one.report.details[0]) for one in journal.waiting()]


def test_everything_about_an_update_is_read_as_it_was_written(journal: Journal, tmp_path: Path) -> None:
    action = begun(journal)
    action = journal.identified(action, NEW)
    action = journal.enter(action, Phase.VERIFIED, report(Phase.VERIFIED))
    action = journal.measured(action, {"latency_ms": 3.5, "device": "cpu"})
    refusal = Refusal("slower", "41 ms", {"latency_ms": 41.0})
    action = journal.enter(action, Phase.REFUSED, report(Phase.REFUSED), refusal=refusal, settled=True)
    assert journal.action("7") == action
    assert action.flat_figures == {"latency_ms": 41.0, "device": "cpu"}
    assert journal.unsettled() == []
    again = Journal.open_to_read(tmp_path / "updates.db")
    assert again.recent(5) == [action]
    again.close()


def test_an_id_is_used_once(journal: Journal) -> None:
    begun(journal)
    with pytest.raises(StorageError, match="UNIQUE"):
        begun(journal)
    assert len(journal.waiting()) == 1


def test_an_id_that_stands_for_another_update_now_begins_anew(journal: Journal) -> None:
    committed(journal, "7", OLD)
    journal.tell("7", "cancel", report(Phase.CANCELLED))
    begun(journal, "8")
    action = journal.begin("7", "pose/y-2.0.0.tar.zst", "pose", report(Phase.DOWNLOADING), anew=True)
    assert journal.action("7") == action
    assert [one.action_id for one in journal.recent(5)] == ["7", "8"]
    assert waiting(journal) == [("8", "deployment", "downloading"), ("7", "deployment", "downloading")]
    assert journal.serving("pose").current == OLD


def test_news_takes_the_place_of_old_news_but_the_end_stays(journal: Journal) -> None:
    action = begun(journal)
    begun(journal, "8")
    action = journal.enter(action, Phase.VERIFIED, report(Phase.VERIFIED))
    assert sorted(waiting(journal)) == [("7", "deployment", "verified"), ("8", "deployment", "downloading")]
    journal.enter(action, Phase.REFUSED, report(Phase.REFUSED), refusal=Refusal("x", "y"), settled=True)
    journal.tell("7", "deployment", report(Phase.REFUSED))
    journal.tell("7", "cancel", report(Phase.CANCELLED))
    assert sorted(waiting(journal))[:2] == [("7", "cancel", "cancelled"), ("7", "deployment", "refused")]
    for one in journal.waiting():
        journal.delivered(one, "accepted")
    assert journal.waiting() == []
    assert journal.audit(1)[0].what == "told"


def test_a_slot_keeps_its_version_the_one_before_and_the_highest_number(journal: Journal) -> None:
    committed(journal, "1", OLD)
    committed(journal, "2", NEW)
    assert journal.serving("pose") == Serving("pose", NEW, OLD, has_before=True, highest=2)
    assert journal.exchange("pose", "why", "anna") == Serving("pose", OLD, NEW, has_before=True, highest=2)
    assert journal.exchange("pose", "why", "anna").current == NEW
    assert journal.audit(1)[0].detail == {"slot": "pose", "to": NEW.release.title, "why": "why", "by": "anna"}


def test_there_is_nothing_to_go_back_to(journal: Journal) -> None:
    with pytest.raises(StorageError, match="no version to go back to"):
        journal.exchange("pose", "why", "anna")
    assert journal.slots() == {}


def test_a_proper_stop_is_remembered_until_the_next_start(journal: Journal) -> None:
    action = journal.enter(begun(journal), Phase.PROBATION, None, version=NEW, came_from="")
    journal.stopped()
    stopped = journal.action("7")
    assert stopped is not None
    assert stopped.clean
    assert not journal.started(action, 0).clean


def test_what_is_written_after_a_proper_stop_does_not_undo_it(journal: Journal) -> None:
    action = journal.enter(begun(journal), Phase.SHADOW, report(Phase.SHADOW), version=NEW)
    journal.stopped()
    action = journal.measured(action, {"agreement": 0.9})
    journal.enter(action, Phase.PROBATION, report(Phase.PROBATION), came_from="")
    found = journal.action("7")
    assert found is not None
    assert (found.phase, found.clean) == (Phase.PROBATION, True)


def test_one_owner(tmp_path: Path) -> None:
    with (
        sole_owner(tmp_path / "updates.db"),
        pytest.raises(InUseError, match="already in use"),
        sole_owner(tmp_path / "updates.db"),
    ):
        pass


def test_a_transaction_that_a_death_cut_off_is_taken_back(tmp_path: Path) -> None:
    """Also by somebody who only wants to look."""
    file = tmp_path / "updates.db"
    code = """
import os, signal, sys
from pathlib import Path
from agent.update.journal import Journal
from agent.update.machine import Phase, report
journal = Journal.open(Path(sys.argv[1]))
journal.begin("7", "t", "pose", report(Phase.DOWNLOADING))
journal._connection.execute("PRAGMA cache_size = 1")
journal._connection.execute("BEGIN IMMEDIATE")
journal._connection.execute("DELETE FROM actions")
journal._connection.executemany("INSERT INTO audit (t_us, action_id, what, detail) VALUES (1, '', ?, '')", [("x" * 900,)] * 500)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], check=False, cwd=Path.cwd())
    assert done.returncode == -signal.SIGKILL
    assert file.with_name("updates.db-journal").exists()
    looking = Journal.open_to_read(file)
    assert [one.action_id for one in looking.recent(9)] == ["7"]
    looking.close()


def test_the_record_does_not_grow_for_ever(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.update.journal._MOST_AUDIT", 20)
    monkeypatch.setattr("agent.update.journal._MOST_ACTIONS", 5)
    for number in range(30):
        committed(journal, str(number), NEW)
    assert len(journal.audit(1000)) == 20
    assert len(journal.recent(1000)) <= 6


# --- another schema -----------------------------------------------------------------------------------------------------

NEWEST = migrations_of("agent.update.migrations")[-1][0]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that knows a schema more."""
    steps = [
        *migrations_of("agent.update.migrations"),
        (NEWEST + 1, "ALTER TABLE audit ADD COLUMN seen INTEGER NOT NULL DEFAULT 0;"),
    ]
    monkeypatch.setattr("agent.update.journal_file.migrations_of", lambda _: steps)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A journal of the schema before, with an update in it."""
    path = tmp_path / "updates.db"
    journal = Journal.open(path)
    begun(journal)
    journal.close()
    return path


def test_the_time_on_trial_belongs_to_its_phase(journal: Journal) -> None:
    action = journal.enter(begun(journal), Phase.SHADOW, None, version=NEW)
    action = journal.spent(action, 90.5)
    assert journal.action("7") == action
    assert journal.started(action, 1).spent_s == 90.5
    assert journal.enter(action, Phase.PROBATION, None, came_from="").spent_s == 0.0


def test_an_update_of_the_first_schema_has_spent_no_time_yet(tmp_path: Path) -> None:
    path = tmp_path / "updates.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        advance(old, migrations_of("agent.update.migrations")[:1], 0)
        old.execute(
            "INSERT INTO actions (action_id, target, slot, phase, t_begun_us, t_phase_us) VALUES ('7', 't', 'pose', 'shadow', 1, 2)"
        )
    with pytest.raises(StorageError, match=r"schema 1.*start of the agent"):
        Journal.open_to_read(path)
    journal = Journal.open(path)
    (action,) = journal.unsettled()
    journal.close()
    assert (action.phase, action.spent_s) == (Phase.SHADOW, 0.0)
    Journal.open_to_read(path).close()


def copies(file: Path) -> list[str]:
    return sorted(one.name for one in file.parent.iterdir() if ".schema-" in one.name)


def schema(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return int(version)


def test_a_new_journal_is_not_copied(file: Path) -> None:
    Journal.open(file).close()
    assert copies(file) == []


def test_before_a_migration_a_copy_is_made_to_go_back_to(
    file: Path, newer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.with_name("updates.db.schema-0").write_bytes(b"of the migration before")
    file.with_name(f"updates.db.schema-{NEWEST}.part").write_bytes(b"of a start that was cut off")
    journal = Journal.open(file)
    assert [one.action_id for one in journal.unsettled()] == ["7"]
    begun(journal, "8")
    journal.close()
    assert (schema(file), copies(file)) == (NEWEST + 1, [f"updates.db.schema-{NEWEST}"])
    monkeypatch.undo()
    with pytest.raises(StorageError, match=rf"newer agent.*put updates\.db\.schema-{NEWEST}, .*docs/operations\.md"):
        Journal.open(file)
    file.with_name(f"updates.db.schema-{NEWEST}").replace(file)  # as docs/operations.md says
    journal = Journal.open(file)
    assert [one.action_id for one in journal.unsettled()] == ["7"]
    journal.close()


def test_a_migration_goes_on_without_a_copy_where_the_disk_has_no_room(
    file: Path, newer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = file.with_name("updates.db.schema-0")
    kept.write_bytes(b"of the migration before")
    usage = shutil.disk_usage(file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=file.stat().st_size))
    with structlog.testing.capture_logs() as logs:
        Journal.open(file).close()
    assert (schema(file), copies(file)) == (NEWEST + 1, [kept.name])
    assert [one["event"] for one in logs] == ["update_journal_not_copied_before_migration"]


def test_a_migration_that_fails_leaves_the_schema_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [*migrations_of("agent.update.migrations"), (NEWEST + 1, "DROP TABLE audit; nonsense;")]
    monkeypatch.setattr("agent.update.journal_file.migrations_of", lambda _: steps)
    with pytest.raises(StorageError):
        Journal.open(file)
    monkeypatch.undo()
    journal = Journal.open(file)
    assert [one.action_id for one in journal.unsettled()] == ["7"]
    assert len(journal.audit(9)) > 0
    journal.close()
