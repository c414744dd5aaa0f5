"""What devices report, and what it makes of their actions. `outcome` is the whole state machine, and pure."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from ota.store import actions, tables
from ota.store.errors import ClosedError, ConflictError, LimitError, MissingError
from ota.store.rows import CLOSED, Action, ActionState, FeedbackRow, Report

DEPLOYMENT, CANCEL, CONFIRMATION = "deployment", "cancel", "confirmation"
MAX_REPORTS = 1000
"""Of one action, as hawkBit's default; one that ends it is always taken."""
_UNDERWAY = {"rejected": ActionState.WARNING, "downloaded": ActionState.DOWNLOADED}
_T = tables.feedback.c


def outcome(state: ActionState, report: Report) -> ActionState:
    """The state after `report` for an action in an open `state`."""
    if report.kind == CONFIRMATION:
        return ActionState.PENDING if report.execution == "confirmed" else state
    failed = report.finished == "failure"
    if report.execution == "canceled":
        return ActionState.CANCELED
    if report.kind == CANCEL:
        refused = report.execution == "rejected" or (report.execution == "closed" and failed)
        after = ActionState.CANCELED if report.execution == "closed" else state
        return ActionState.RUNNING if refused else after
    if report.execution == "closed":
        return ActionState.ERROR if failed else ActionState.FINISHED
    if state is ActionState.CANCELING:
        return state  # it has not seen yet that it should stop
    return _UNDERWAY.get(report.execution, ActionState.RUNNING)


def add(connection: Connection, device_id: int, action_id: int, report: Report, *, now_ms: int) -> Action:
    """Log a report and bring its action into the state that follows; the action.

    The same report once more, after the action's end, is no error: its answer was lost. Raises MissingError, ClosedError, ConflictError
    (a confirmation nobody waits for, a cancellation nobody asked for), LimitError.
    """
    action = actions.get(connection, action_id)
    if action.device_id != device_id:
        raise MissingError("there is no such action")
    if not action.open:
        if _is_last(connection, action_id, report):
            return action
        raise ClosedError(f"the action is {action.state} already")
    _check(action.state, report)
    after = outcome(action.state, report)
    closing = after in CLOSED
    if not closing and _number(connection, action_id) >= MAX_REPORTS:
        raise LimitError(f"an action takes at most {MAX_REPORTS} reports, and one that ends it")
    connection.execute(
        insert(tables.feedback).values(
            action_id=action_id, at_ms=now_ms, kind=report.kind, execution=report.execution, finished=report.finished,
            code=report.code, details=list(report.details), progress=dict(report.progress or {}),
        )
    )  # fmt: skip
    move = actions.close if closing else actions.set_state
    detail = "; ".join(report.details) if report.details else None
    return move(connection, action, after, now_ms=now_ms, detail=detail, code=report.code)


def _check(state: ActionState, report: Report) -> None:
    waiting = state is ActionState.WAITING
    if report.kind == CONFIRMATION and not waiting:
        raise MissingError("the action does not wait for a confirmation")
    if report.kind == DEPLOYMENT and waiting:
        raise MissingError("the action waits for a confirmation")
    if report.kind == CANCEL and state is not ActionState.CANCELING:
        raise ConflictError("nobody asked to cancel the action")


def _number(connection: Connection, action_id: int) -> int:
    return connection.execute(select(func.count()).where(_T.action_id == action_id)).scalar_one()


def _is_last(connection: Connection, action_id: int, report: Report) -> bool:
    last = history(connection, action_id, limit=1)
    if not last:
        return False
    told = Report(last[0].kind, last[0].execution, last[0].finished, last[0].code, last[0].details, last[0].progress)
    return told == Report(
        report.kind, report.execution, report.finished, report.code, report.details, dict(report.progress or {})
    )


def history(connection: Connection, action_id: int, *, limit: int) -> list[FeedbackRow]:
    """The latest reports, newest first."""
    chosen = select(tables.feedback).where(_T.action_id == action_id).order_by(_T.id.desc()).limit(limit)
    return [_of_row(row) for row in connection.execute(chosen)]


def total(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(tables.feedback)).scalar_one()


def _of_row(row: Row[Any]) -> FeedbackRow:
    return FeedbackRow(
        row.id,
        row.action_id,
        row.at_ms,
        row.kind,
        row.execution,
        row.finished,
        row.code,
        tuple(row.details),
        row.progress,
    )
