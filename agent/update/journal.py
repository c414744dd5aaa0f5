"""The record of updates, `updates.db`: where each stands, what serves each slot, what the server has yet to hear, and who did what.

Every method is one transaction that is on the disk when it returns. They block: call them in a thread, one at a time.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from pydantic import ValidationError

from agent.errors import StorageError
from agent.update.journal_file import guarded, open_file, open_to_read
from agent.update.machine import Phase, Report
from agent.update.records import About, Action, AuditEntry, Feedback, Serving, Version, release_json, to_json
from agent.update.release import Release
from agent.update.trials import Figures, Refusal

_MOST_AUDIT = 10_000
_MOST_ACTIONS = 500
_ACTION = (
    "action_id, target, slot, phase, settled, release, sha256, came_from, reason, text, figures, failures, starts, clean, "
    "spent_s, t_begun_us, t_phase_us"
)
_SLOT = "slot, sha256, release, before_sha256, before_release, has_before, highest"


def _now_us() -> int:
    return time.time_ns() // 1000


class Journal:
    """damage: what was wrong with the file that was found, empty = nothing. Raises StorageError, StorageFullError."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, damage: str = "", now_us: Callable[[], int] = _now_us
    ) -> None:
        self._connection = connection
        self._path = path
        self._now_us = now_us
        self._lock = threading.Lock()
        self._stopping = False
        self.damage = damage

    @classmethod
    def open(cls, path: Path) -> Self:
        """The journal in `path`; a damaged one is set aside and a new one begun. Raises StorageError."""
        connection, damage = open_file(path)
        return cls(connection, path, damage)

    @classmethod
    def open_to_read(cls, path: Path) -> Self:
        """For a look beside the agent that runs: nothing may be written. Raises StorageError."""
        return cls(open_to_read(path), path)

    def close(self) -> None:
        """Nothing is lost without it."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, guarded(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, question: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, guarded(self._path):
            return self._connection.execute(question, values).fetchall()

    # --- actions ------------------------------------------------------------------------------------------------------

    def action(self, action_id: str) -> Action | None:
        """The update of this id, if it is known."""
        rows = self._rows(f"SELECT {_ACTION} FROM actions WHERE action_id = ?", (action_id,))  # noqa: S608 - constants only
        return _action(rows[0]) if rows else None

    def unsettled(self) -> list[Action]:
        """Updates with something left to do, oldest first."""
        return [_action(row) for row in self._rows(f"SELECT {_ACTION} FROM actions WHERE NOT settled ORDER BY number")]  # noqa: S608

    def recent(self, limit: int) -> list[Action]:
        """The latest, newest first."""
        rows = self._rows(f"SELECT {_ACTION} FROM actions ORDER BY number DESC LIMIT ?", (limit,))  # noqa: S608
        return [_action(row) for row in rows]

    def begin(self, action_id: str, target: str, slot: str, report: Report, *, anew: bool = False) -> Action:
        """A new update, in `downloading`. anew: the id stood for another one, which is forgotten with all that is still to be told."""
        now_us = self._now_us()
        action = Action(action_id, target, slot, Phase.DOWNLOADING, t_begun_us=now_us, t_phase_us=now_us)
        with self._writing() as connection:
            if anew:
                connection.execute("DELETE FROM actions WHERE action_id = ?", (action_id,))
                connection.execute("DELETE FROM feedback WHERE action_id = ?", (action_id,))
            connection.execute(
                "INSERT INTO actions (action_id, target, slot, phase, t_begun_us, t_phase_us) VALUES (?, ?, ?, ?, ?, ?)",
                (action_id, target, slot, action.phase, now_us, now_us),
            )
            _queue(connection, action_id, "deployment", report)
            self._note(connection, action_id, "begun", {"target": target, "slot": slot})
            connection.execute(
                "DELETE FROM actions WHERE settled AND number <= (SELECT max(number) FROM actions) - ?",
                (_MOST_ACTIONS,),
            )
        return action

    def enter(
        self,
        action: Action,
        phase: Phase,
        report: Report | None,
        *,
        about: About = "deployment",
        version: Version | None = None,
        came_from: str | None = None,
        refusal: Refusal | None = None,
        settled: bool = False,
    ) -> Action:
        """`action` is in `phase` from now on, and the server is to hear `report` (None: later)."""
        changed = replace(action, phase=phase, settled=settled, failures=0, spent_s=0.0, t_phase_us=self._now_us())
        if version is not None:
            changed = replace(changed, release=version.release, sha256=version.sha256)
        if came_from is not None:
            changed = replace(changed, came_from=came_from, starts=0, clean=False)
        if refusal is not None:
            figures = {
                **action.figures,
                action.phase.value: {**action.figures.get(action.phase.value, {}), **refusal.figures},
            }
            changed = replace(changed, reason=refusal.reason, text=refusal.text, figures=figures)
        with self._writing() as connection:
            self._update(connection, changed)
            if report is not None:
                _queue(connection, action.action_id, about, report)
            why = {"reason": changed.reason, "text": changed.text} if refusal is not None else {}
            self._note(connection, action.action_id, phase.value, {"release": changed.title, **why})
        return changed

    def commit(self, action: Action, report: Report) -> Action:
        """The end of a good probation: the slot has a new version, and one to go back to. What serves already has a new number at most."""
        changed = replace(action, phase=Phase.COMMITTED, settled=True, t_phase_us=self._now_us())
        release = action.version.release
        with self._writing() as connection:
            serving = _serving_in(connection, action.slot)
            self._update(connection, changed)
            if serving.current is None or serving.current.sha256 != action.sha256:
                serving = replace(serving, before=serving.current, has_before=True)
            highest = max(serving.highest, release.number)
            self._serve(connection, replace(serving, current=action.version, highest=highest))
            _queue(connection, action.action_id, "deployment", report)
            self._note(connection, action.action_id, Phase.COMMITTED.value, {"release": release.title})
        return changed

    def measured(self, action: Action, figures: Figures) -> Action:
        """Figures of the phase that `action` is in."""
        changed = replace(action, figures={**action.figures, action.phase.value: dict(figures)})
        return self._store(changed)

    def failed_once(self, action: Action, failures: int) -> Action:
        """A download that will be tried again."""
        return self._store(replace(action, failures=failures))

    def spent(self, action: Action, seconds: float) -> Action:
        """What its shadow run or probation has taken so far."""
        return self._store(replace(action, spent_s=seconds))

    def identified(self, action: Action, version: Version) -> Action:
        """What the target is, by its signed metadata."""
        return self._store(replace(action, release=version.release, sha256=version.sha256))

    def settle(self, action: Action, report: Report) -> Action:
        """Nothing is left to be done about it, and the server is to hear `report`."""
        changed = replace(action, settled=True)
        with self._writing() as connection:
            self._update(connection, changed)
            _queue(connection, action.action_id, "deployment", report)
        return changed

    def started(self, action: Action, starts: int) -> Action:
        """The agent has started during its shadow run or probation; until it stops properly the next start counts as after a death."""
        return self._store(replace(action, starts=starts, clean=False))

    def stopped(self) -> None:
        """The agent stops properly: its next start is no sign against anything, whatever is still written until its end."""
        self._stopping = True
        with self._writing() as connection:
            connection.execute("UPDATE actions SET clean = 1 WHERE phase IN (?, ?)", (Phase.SHADOW, Phase.PROBATION))

    def _store(self, action: Action) -> Action:
        with self._writing() as connection:
            self._update(connection, action)
        return action

    def _update(self, connection: sqlite3.Connection, action: Action) -> None:
        release = action.release.model_dump_json() if action.release else None
        connection.execute(
            "UPDATE actions SET phase = ?, settled = ?, release = ?, sha256 = ?, came_from = ?, reason = ?, text = ?, "
            "figures = ?, failures = ?, starts = ?, clean = ?, spent_s = ?, t_phase_us = ? WHERE action_id = ?",
            (action.phase, action.settled, release, action.sha256 or None, action.came_from, action.reason, action.text,
             to_json(action.figures), action.failures, action.starts, action.clean or self._stopping,
             action.spent_s, action.t_phase_us, action.action_id),
        )  # fmt: skip

    # --- slots --------------------------------------------------------------------------------------------------------

    def slots(self) -> dict[str, Serving]:
        """What serves each slot that an update ever changed."""
        return {row[0]: _serving(row) for row in self._rows(f"SELECT {_SLOT} FROM slots ORDER BY slot")}  # noqa: S608

    def serving(self, slot: str) -> Serving:
        """What serves `slot`."""
        return self.slots().get(slot, Serving(slot))

    def exchange(self, slot: str, why: str, by: str) -> Serving:
        """Go back to the version before, which becomes the one that serves. Raises StorageError when there is none."""
        with self._writing() as connection:
            serving = _serving_in(connection, slot)
            if not serving.has_before:
                raise StorageError(f"{slot}: there is no version to go back to")
            changed = replace(serving, current=serving.before, before=serving.current)
            self._serve(connection, changed)
            self._note(connection, "", "back", {"slot": slot, "to": title_of(changed.current), "why": why, "by": by})
        return changed

    def adopt(self, serving: Serving, why: str) -> None:
        """What was found in the store is what serves: after the journal was lost, or a version was."""
        with self._writing() as connection:
            self._serve(connection, serving)
            self._note(connection, "", "adopted", {"slot": serving.slot, "is": title_of(serving.current), "why": why})

    def _serve(self, connection: sqlite3.Connection, serving: Serving) -> None:
        current, before = serving.current, serving.before
        connection.execute(
            f"INSERT OR REPLACE INTO slots ({_SLOT}, t_changed_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (serving.slot, current.sha256 if current else None, release_json(current), before.sha256 if before else None,
             release_json(before), serving.has_before, serving.highest, self._now_us()),
        )  # fmt: skip

    # --- feedback and record ------------------------------------------------------------------------------------------

    def tell(self, action_id: str, about: About, report: Report) -> None:
        """Have the server hear `report`."""
        with self._writing() as connection:
            _queue(connection, action_id, about, report)

    def waiting(self) -> list[Feedback]:
        """What the server has not accepted yet, oldest first."""
        rows = self._rows("SELECT feedback_id, action_id, about, body FROM feedback ORDER BY feedback_id")
        return [Feedback(number, action, cast("About", about), _report(body)) for number, action, about, body in rows]

    def delivered(self, feedback: Feedback, how: str) -> None:
        """The server has it, or will never want it. how: for the record."""
        with self._writing() as connection:
            connection.execute("DELETE FROM feedback WHERE feedback_id = ?", (feedback.feedback_id,))
            detail = {"about": feedback.about, "execution": feedback.report.execution, "how": how}
            self._note(connection, feedback.action_id, "told", detail)

    def note(self, what: str, action_id: str = "", **detail: object) -> None:
        """A line of the record."""
        with self._writing() as connection:
            self._note(connection, action_id, what, detail)

    def audit(self, limit: int) -> list[AuditEntry]:
        """The latest lines of the record, newest first."""
        rows = self._rows("SELECT t_us, action_id, what, detail FROM audit ORDER BY audit_id DESC LIMIT ?", (limit,))
        return [AuditEntry(t_us, action_id, what, json.loads(detail)) for t_us, action_id, what, detail in rows]

    def _note(self, connection: sqlite3.Connection, action_id: str, what: str, detail: Mapping[str, object]) -> None:
        values = (self._now_us(), action_id, what, to_json(detail))
        connection.execute("INSERT INTO audit (t_us, action_id, what, detail) VALUES (?, ?, ?, ?)", values)
        connection.execute("DELETE FROM audit WHERE audit_id <= (SELECT max(audit_id) FROM audit) - ?", (_MOST_AUDIT,))


def title_of(version: Version | None) -> str:
    """Name and version, or that it is the configured one."""
    return version.release.title if version is not None else "as configured"


def _queue(connection: sqlite3.Connection, action_id: str, about: About, report: Report) -> None:
    """What the server has not heard of the same action is out of date."""
    connection.execute("DELETE FROM feedback WHERE action_id = ? AND about = ? AND NOT final", (action_id, about))
    known = connection.execute(
        "SELECT 1 FROM feedback WHERE action_id = ? AND about = ? AND final", (action_id, about)
    ).fetchone()
    if known is None:
        body = to_json({"execution": report.execution, "finished": report.finished, "details": report.details})
        connection.execute(
            "INSERT INTO feedback (action_id, about, body, final) VALUES (?, ?, ?, ?)",
            (action_id, about, body, report.final),
        )


def _report(body: str) -> Report:
    document = json.loads(body)
    return Report(document["execution"], document["finished"], tuple(document["details"]))


def _serving_in(connection: sqlite3.Connection, slot: str) -> Serving:
    row = connection.execute(f"SELECT {_SLOT} FROM slots WHERE slot = ?", (slot,)).fetchone()  # noqa: S608
    return _serving(row) if row else Serving(slot)


def _serving(row: tuple[Any, ...]) -> Serving:
    slot, sha256, release, before_sha256, before_release, has_before, highest = row
    current, before = _version(sha256, release), _version(before_sha256, before_release)
    return Serving(slot, current, before, bool(has_before), highest)


def _version(sha256: str | None, release: str | None) -> Version | None:
    return Version(sha256, _release(release)) if sha256 and release else None


def _release(text: str) -> Release:
    try:
        return Release.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(f"the journal of updates holds a release that is none: {error}") from error


def _action(row: tuple[Any, ...]) -> Action:
    (action_id, target, slot, phase, settled, release, sha256, came_from, reason, text, figures, failures, starts, clean,
     spent_s, t_begun_us, t_phase_us) = row  # fmt: skip
    try:
        known, measured = Phase(phase), json.loads(figures)
    except ValueError as error:
        raise StorageError(f"the journal of updates holds an action that is none: {error}") from error
    return Action(
        action_id, target, slot, known, settled=bool(settled), release=_release(release) if release else None,
        sha256=sha256 or "", came_from=came_from, reason=reason, text=text, figures=measured, failures=failures,
        starts=starts, clean=bool(clean), spent_s=spent_s, t_begun_us=t_begun_us, t_phase_us=t_phase_us,
    )  # fmt: skip
